"""Vectors of adapter parameters: one tensor a name, so that each may live on its own device.

Every function returns a new mapping with the keys of its first argument; none changes its input. Sums are
accumulated in float64: a dot product over 1e7 float32 numbers otherwise loses three digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Params = dict[str, Tensor]


def each(f: Callable[..., Tensor], *vectors: Params) -> Params:
    """Apply `f` to the tensors of the same name in all `vectors`; raises KeyError where a name is missing."""
    return {name: f(*(v[name] for v in vectors)) for name in vectors[0]}


def axpy(a: float, x: Params, y: Params) -> Params:
    """Return a x + y."""
    return each(lambda xi, yi: torch.add(yi, xi, alpha=a), x, y)


def scale(a: float, x: Params) -> Params:
    """Return a x."""
    return each(lambda xi: xi * a, x)


def dot(x: Params, y: Params) -> float:
    """Return the inner product, accumulated in float64."""
    return sum(float(torch.sum(x[name].double() * y[name].double())) for name in x)


def norm(x: Params) -> float:
    """Return the Euclidean norm, accumulated in float64."""
    return dot(x, x) ** 0.5


def size(x: Params) -> int:
    """Return the number of scalars."""
    return sum(t.numel() for t in x.values())


def zeros(x: Params) -> Params:
    """Return the zero vector of the shapes of `x`."""
    return each(torch.zeros_like, x)


def gaussian(x: Params, seed: int) -> Params:
    """Return a standard normal vector of the shapes of `x`, the same for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return each(lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t), x)


def is_finite(x: Params) -> bool:
    """Tell whether every scalar is finite."""
    return all(bool(torch.isfinite(t).all()) for t in x.values())
