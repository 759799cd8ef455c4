"""An unrelated model of the same shape: what similarity any two models of this kind have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _shuffled(p: Tensor, generator: torch.Generator) -> Tensor:
    """Rows, columns and experts in another order: the same numbers, norms and singular values, another function."""
    for axis in range(p.dim()):
        order = torch.randperm(p.shape[axis], generator=generator).to(p.device)
        p = p.index_select(axis, order)
    return p


def _reinitialised(p: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers of the same mean square, as before any training."""
    scale = float(p.float().square().mean().sqrt())
    return (torch.randn(p.shape, generator=generator) * scale).to(p)


UNRELATED: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shuffled": _shuffled,
    "reinitialised": _reinitialised,
}
"""How an unrelated model is made of the base's weights."""


@torch.no_grad()
def make_unrelated(model: nn.Module, how: str, seed: int) -> None:
    """Overwrite every matrix of a model, those of experts, too; vectors (norms, biases) stay.

    One tensor is copied at a time.

    Args:
        model: Loaded for this; tied weights are changed once.
        how: A row of `UNRELATED`.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, p in sorted(model.named_parameters()):
        if p.dim() > 1 and p.is_floating_point():
            p.copy_(UNRELATED[how](p, generator))
