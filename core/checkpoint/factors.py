"""Low-rank factors A [r, in], B [out, r] of a module's change B A: ranks, padding, balance."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Factors = dict[str, tuple[Tensor, Tensor]]
"""Module name to (A, B)."""


def servable_rank(ranks: Iterable[int]) -> int:
    """Return the smallest of 8, 16, 32, 64, ... that holds every rank: servers read one rank, of these sizes."""
    return max(8, 1 << (max(ranks) - 1).bit_length())


def pad(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors with zero rows of A and zero columns of B up to `rank`; B A is unchanged."""
    extra = rank - a.shape[0]
    return torch.cat([a, a.new_zeros(extra, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], extra)], dim=1)


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product with A A^T = B^T B, so that a step costs both alike.

    From QR of B and A^T and the SVD of the small core R_B R_A^T = U S V^T: B' = Q_B U S^1/2, A' = S^1/2 V^T Q_A^T.
    Directions that the product does not have (padding, cancelling columns) become exact zeros. A product of zero is
    returned as it is: balancing it would set both factors to zero, where every gradient vanishes for ever.

    Args:
        a: [r, in].
        b: [out, r].

    Returns:
        (A', B') of the same shapes and dtype, computed in float64.
    """
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    # Below the rounding of float32 a direction is noise of the input's own storage.
    s = torch.where(s > s.max() * torch.finfo(torch.float32).eps, s, torch.zeros_like(s))
    if not bool(s.any()):
        return a, b
    root = s.sqrt()
    return pad((root[:, None] * (vt @ q_a.T)).to(a.dtype), (q_b @ u * root).to(b.dtype), a.shape[0])
