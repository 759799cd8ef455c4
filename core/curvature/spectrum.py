"""The ends of a spectrum by Lanczos iterations with full reorthogonalisation (Golub and Van Loan 2013, section 10.3).

In finite precision the vectors of a three-term recursion lose their orthogonality as soon as an eigenvalue converges,
and converged values come again as ghosts. Every new vector is therefore orthogonalised against all earlier ones, twice.
A Ritz value's distance from the nearest eigenvalue is at most its residual |beta_m s_m|, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..config import Progress, no_progress
from ..params import Params, dot, norm, scale, size

Products = Callable[[Params], Params]
"""v -> M v for a symmetric M."""

Floats = np.ndarray
BREAKDOWN = 100
"""A new vector shorter than so many roundings of the matrix's size is rounding itself: the subspace is invariant."""


class Basis:
    """Orthonormal vectors of parameters, kept as one matrix a parameter where that parameter lives."""

    def __init__(self, like: Params, capacity: int) -> None:
        self._shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in like.items()}
        self._rows = {name: tensor.new_zeros(capacity, tensor.numel()) for name, tensor in like.items()}
        self.eps = max(torch.finfo(tensor.dtype).eps for tensor in like.values())
        self.size = 0

    def append(self, v: Params) -> None:
        """Add a vector of length 1."""
        for name, rows in self._rows.items():
            rows[self.size] = v[name].reshape(-1)
        self.size += 1

    def coefficients(self, v: Params) -> Tensor:
        """Return the inner products with every vector, [size], float64."""
        parts = [(rows[:self.size] @ v[name].reshape(-1)).double().cpu() for name, rows in self._rows.items()]
        return torch.stack(parts).sum(0)

    def combine(self, weights: Tensor) -> Params:
        """Return the sum of the vectors, weighted [size]."""
        return {name: (rows[:self.size].T @ weights.to(rows)).view(self._shapes[name][0])
                for name, rows in self._rows.items()}

    def remove(self, v: Params) -> Params:
        """Return `v` without its part in the span; twice, because once leaves rounding of that part's own size."""
        for _ in range(2 if self.size else 0):
            part = self.combine(self.coefficients(v))
            v = {name: v[name] - part[name] for name in v}
        return v


@dataclass(frozen=True)
class Tridiagonal:
    """What m steps of Lanczos leave: Q'M Q = T.

    Attributes:
        diagonal: [m], float64.
        beside: [m - 1] the off-diagonal.
        last: The length of the vector that was not added: 0 where the subspace is invariant.
        basis: Q, m vectors.
    """

    diagonal: Floats
    beside: Floats
    last: float
    basis: Basis

    @property
    def ritz(self) -> tuple[Floats, Floats]:
        """Eigenvalues [m], ascending, and eigenvectors [m, m] of T."""
        values, vectors = scipy.linalg.eigh_tridiagonal(self.diagonal, self.beside)
        return np.asarray(values), np.asarray(vectors)


def lanczos(products: Products, start: Params, steps: int, *, avoid: Basis | None = None, stage: str = "Lanczos",
            progress: Progress = no_progress) -> Tridiagonal:
    """Run Lanczos from a vector.

    Args:
        products: v -> M v.
        start: Any vector that is not zero.
        steps: Products at most; fewer where the subspace becomes invariant.
        avoid: Vectors that the iteration stays orthogonal to: it then sees P M P, P the projection away from them.
        stage: What progress calls it.
        progress: Told of every product.

    Returns:
        T, Q and the residual length.
    """
    avoid = avoid or Basis(start, 0)
    q = avoid.remove(start)
    q, basis = scale(1 / norm(q), q), Basis(start, steps)
    diagonal: list[float] = []
    beside: list[float] = []
    rounding = BREAKDOWN * max(torch.finfo(tensor.dtype).eps for tensor in start.values())
    for step in range(steps):
        progress(stage, step, steps)
        basis.append(q)
        image = products(q)
        diagonal.append(dot(q, image))
        rest = basis.remove(avoid.remove(image))
        length = norm(rest)
        beside.append(length)
        if length <= rounding * max(map(abs, (*diagonal, *beside))) or basis.size + avoid.size >= size(start):
            beside[-1] = 0.0
            break
        q = scale(1 / length, rest)
    progress(stage, steps, steps)
    return Tridiagonal(np.array(diagonal), np.array(beside[:-1]), beside[-1], basis)


@dataclass(frozen=True)
class Eigenpair:
    """One Ritz pair.

    Attributes:
        value: The Ritz value.
        error: Its residual, or where that is less a rounding of the largest: an eigenvalue lies within this distance.
        weight: The Ritz vector's coefficients in the basis, [m].
    """

    value: float
    error: float
    weight: Floats


@dataclass(frozen=True)
class Spectrum:
    """The ends of a spectrum.

    Attributes:
        largest: Pairs in descending order.
        smallest: Pairs in ascending order; none is among `largest`.
        iteration: What they are taken from.
    """

    largest: tuple[Eigenpair, ...]
    smallest: tuple[Eigenpair, ...]
    iteration: Tridiagonal

    def vector(self, pair: Eigenpair) -> Params:
        """Return a pair's vector, of length 1."""
        found = self.iteration.basis.combine(torch.from_numpy(pair.weight))
        return scale(1 / norm(found), found)


def ends(iteration: Tridiagonal, count: int) -> Spectrum:
    """Return the `count` largest and smallest Ritz pairs of an iteration, each pair once."""
    values, vectors = iteration.ritz
    rounding = iteration.basis.eps * float(np.abs(values).max())
    pairs = [Eigenpair(float(value), max(iteration.last * abs(float(vectors[-1, i])), rounding), vectors[:, i].copy())
             for i, value in enumerate(values)]
    upper = min(count, (len(pairs) + 1) // 2)
    return Spectrum(tuple(reversed(pairs[len(pairs) - upper:])), tuple(pairs[:min(count, len(pairs) - upper)]),
                    iteration)
