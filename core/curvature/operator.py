"""The one interface of all curvature engines: v -> F v and v -> (F + lambda I)^-1 v on adapter parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..params import Params, norm, scale


@dataclass(frozen=True)
class Solution:
    """What a solve of (F + lambda I) x = v came to.

    Attributes:
        x: The solution.
        image: F x, which a solve knows at no further product.
        relative_residual: |(F + lambda I) x - v| / |v|; None for an engine that inverts its own F exactly.
        products: Curvature products it took.
        status: `exact`, `converged`, or `limit` (the products allowed were used up; raise them, or lambda).
    """

    x: Params
    image: Params
    relative_residual: float | None
    products: int
    status: str


class CurvatureOperator(Protocol):
    """A symmetric positive semi-definite matrix F over the adapter parameters."""

    @property
    def mean_diagonal(self) -> float:
        """trace(F) / d, the scale against which the damping is stated; 0 for no curvature."""
        ...

    def matvec(self, v: Params) -> Params:
        """Return F v."""
        ...

    def solve(self, v: Params, damping: float) -> Solution:
        """Return (F + damping I)^-1 v, damping > 0."""
        ...


@dataclass(frozen=True)
class Identity:
    """No curvature (F = 0): a solve is the gradient over the damping. The null control of every engine."""

    mean_diagonal: float = 0.0

    def matvec(self, v: Params) -> Params:
        """Return 0."""
        return scale(0.0, v)

    def solve(self, v: Params, damping: float) -> Solution:
        """Return v / damping."""
        return Solution(scale(1.0 / damping, v), self.matvec(v), None, 0, "exact")


def outcome(x: Params, residual: Params, v: Params, damping: float, products: int, status: str) -> Solution:
    """Return the solution of an iteration that knows its residual r = v - (F + damping I) x."""
    image = {name: v[name] - residual[name] - damping * x[name] for name in v}
    return Solution(x, image, norm(residual) / norm(v), products, status)
