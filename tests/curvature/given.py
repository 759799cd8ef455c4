"""Matrices given by their eigenvalues, as products on parameters of two tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from saferestore.core.params import Params
from torch import Tensor

from .. import dense


def shapes(dimension: int, dtype: torch.dtype = torch.float64) -> Params:
    """Zeros of two parameters with so many numbers together."""
    return {"a": torch.zeros(2, dimension // 4, dtype=dtype),
            "b": torch.zeros(dimension - 2 * (dimension // 4), dtype=dtype)}


def symmetric(values: Sequence[float] | Tensor, *, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues and random eigenvectors, float64."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return q @ torch.diag(values) @ q.T


def products(matrix: Tensor) -> Callable[[Params], Params]:
    """v -> matrix v."""
    return lambda v: {name: part.to(next(iter(v.values())).dtype) for name, part in
                      dense.unflat(matrix @ dense.flat(v).double(), v).items()}
