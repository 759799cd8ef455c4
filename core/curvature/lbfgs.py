"""(F + lambda I)^-1 v by L-BFGS on the quadratic 1/2 x'(F + lambda I)x - v'x (Nocedal and Wright 2006, alg. 7.4).

Pairs (s, F s) come from exact products, not from differences of gradients, and are kept without the damping: the
pair for any lambda is (s, F s + lambda s), so pairs outlive changes of lambda and serve as a first approximation at
the next point. On a quadratic the step length along a direction is exact and costs nothing beyond its product.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..params import Params, axpy, dot, norm, scale, zeros
from .cg import Products
from .operator import Solution, outcome

Pairs = deque[tuple[Params, Params]]


def scaled_identity(pairs: Sequence[tuple[Params, Params]]) -> Callable[[Params], Params]:
    """Return q -> (s'y / y'y) q of the newest pair, the usual first guess of an inverse; the identity without pairs."""
    if not pairs:
        return lambda q: q
    s, y = pairs[-1]
    factor = dot(s, y) / dot(y, y)
    return lambda q: scale(factor, q)


def two_loop(v: Params, pairs: Sequence[tuple[Params, Params]], first: Callable[[Params], Params]) -> Params:
    """Return H v, H the L-BFGS inverse of pairs (s, y), oldest first.

    Args:
        v: Any vector.
        pairs: (s, y) with s'y > 0.
        first: The inverse that the pairs correct, symmetric positive definite.
    """
    q, alphas = v, []
    for s, y in reversed(pairs):
        alpha = dot(s, q) / dot(s, y)
        q = axpy(-alpha, y, q)
        alphas.append(alpha)
    q = first(q)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q = axpy(alpha - dot(y, q) / dot(s, y), s, q)
    return q


@dataclass(frozen=True)
class LBFGS:
    """Solve with a limited memory of exact products.

    Attributes:
        operator: F.
        mean_diagonal: trace(F) / d, or an estimate of it.
        max_products: Products a solve may take.
        memory: Pairs kept.
        tolerance: Relative residual at which a solve stops.
        pairs: (s, F s), oldest first; shared by later solves.
    """

    operator: Products
    mean_diagonal: float
    max_products: int = 8
    memory: int = 10
    tolerance: float = 1e-3
    pairs: Pairs = field(default_factory=deque)

    def matvec(self, v: Params) -> Params:
        """Return F v, one product."""
        return self.operator.matvec(v)

    def solve(self, v: Params, damping: float) -> Solution:
        """Return x with (F + damping I) x = v, to `tolerance` or `max_products`, whichever comes first."""
        x, r, scale_of_v = zeros(v), v, norm(v)
        if scale_of_v == 0:
            return Solution(x, x, 0.0, 0, "exact")
        for products in range(1, self.max_products + 1):
            damped = [(s, axpy(damping, s, fs)) for s, fs in self.pairs]
            s = two_loop(r, damped, scaled_identity(damped))
            fs = self.operator.matvec(s)
            y = axpy(damping, s, fs)
            step = dot(s, r) / dot(s, y)
            x, r = axpy(step, s, x), axpy(-step, y, r)
            self.pairs.append((s, fs))
            while len(self.pairs) > self.memory:
                self.pairs.popleft()
            if norm(r) <= self.tolerance * scale_of_v:
                return outcome(x, r, v, damping, products, "converged")
        return outcome(x, r, v, damping, self.max_products, "limit")
