"""Conjugate gradients for (F + lambda I) x = v with a diagonal preconditioner (Hestenes and Stiefel 1952).

Differs from SciPy's: the matrix is damped here, vectors are mappings of tensors that stay on their devices, and an
exhausted limit is an outcome with its residual, not an exception: a rough solve is still a descent direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..params import Params, axpy, dot, each, norm, scale, zeros
from .operator import Solution, outcome


class Products(Protocol):
    """Anything that multiplies by a symmetric positive semi-definite matrix."""

    def matvec(self, v: Params) -> Params:
        """Return F v."""
        ...


@dataclass(frozen=True)
class ConjugateGradients:
    """Solve by products alone.

    Attributes:
        operator: F.
        preconditioner: Diagonal approximation of F; None for none.
        mean_diagonal: trace(F) / d, or an estimate of it.
        max_products: Products a solve may take.
        tolerance: Relative residual at which it stops.
    """

    operator: Products
    preconditioner: Params | None
    mean_diagonal: float
    max_products: int = 8
    tolerance: float = 1e-3

    def matvec(self, v: Params) -> Params:
        """Return F v, one product."""
        return self.operator.matvec(v)

    def _precondition(self, r: Params, damping: float) -> Params:
        if self.preconditioner is None:
            return r
        return each(lambda ri, fi: ri / (fi + damping), r, self.preconditioner)

    def solve(self, v: Params, damping: float) -> Solution:
        """Return x with (F + damping I) x = v, to `tolerance` or `max_products`, whichever comes first."""
        x, r, scale_of_v = zeros(v), v, norm(v)
        if scale_of_v == 0:
            return Solution(x, x, 0.0, 0, "exact")
        z = self._precondition(r, damping)
        p, rz = z, dot(r, z)
        for products in range(1, self.max_products + 1):
            product = axpy(damping, p, self.operator.matvec(p))
            step = rz / dot(p, product)
            x, r = axpy(step, p, x), axpy(-step, product, r)
            if norm(r) <= self.tolerance * scale_of_v:
                return outcome(x, r, v, damping, products, "converged")
            z = self._precondition(r, damping)
            rz, previous = dot(r, z), rz
            p = axpy(1.0, z, scale(rz / previous, p))
        return outcome(x, r, v, damping, self.max_products, "limit")
