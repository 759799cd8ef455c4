"""The query u = (F + lambda I)^-1 grad S of influence functions, a row of a table for each way of inverting.

I(z) = - grad S' (F + lambda I)^-1 grad l(z) (Koh and Liang 2017) needs the inverse once, for grad S: what is left is
one derivative of each row's loss along u. F is the Fisher matrix of the training rows, per answer token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..checkpoint.session import LiveModel
from ..curvature.datainf import datainf_solve
from ..curvature.diagonal import diagonal_fisher
from ..curvature.engines import ENGINES, EngineInputs
from ..losses import Loss
from ..params import Params


@dataclass(frozen=True)
class QueryInputs:
    """What a way may use.

    Attributes:
        live: The model at the parameters at which rows are scored.
        gradient: grad S there, nats per token by parameter.
        training: Mean cross-entropy of training rows per answer token, or of a sample of them.
        damping: lambda as a fraction of the mean diagonal of F.
        seed: Of sampled labels.
        low_memory: Keep no graph, and the rows of a Fisher matrix on disk.
        max_products: Curvature products a solve may take.
        tolerance: Relative residual at which a solve by products stops.
    """

    live: LiveModel
    gradient: Params
    training: Loss
    damping: float
    seed: int = 0
    low_memory: bool = False
    max_products: int = 20
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Query:
    """A direction u in parameters, and how it came about.

    Attributes:
        u: So that I(z) = - u' grad l(z).
        damping: lambda; None where the way has one a parameter, or none.
        relative_residual: Of an iteration; None where the way inverts its own F exactly.
        products: Curvature products spent.
    """

    u: Params
    damping: float | None
    relative_residual: float | None = None
    products: int = 0


def _by_engine(inputs: QueryInputs, *, engine: str) -> Query:
    row, losses = ENGINES[engine], (inputs.training,)
    diagonal = diagonal_fisher(inputs.live, losses, seed=inputs.seed) if row.needs_diagonal else None
    operator = row.make(EngineInputs(inputs.live, losses, inputs.seed, inputs.low_memory, inputs.max_products,
                                     diagonal, deque(), inputs.tolerance))
    damping = inputs.damping * operator.mean_diagonal
    solution = operator.solve(inputs.gradient, damping)
    return Query(solution.x, damping, solution.relative_residual, solution.products)


def _identity(inputs: QueryInputs) -> Query:
    """The gradient dot product: lambda is 1, which only sets the scale."""
    return Query(inputs.gradient, 1.0)


def _datainf(inputs: QueryInputs) -> Query:
    """DataInf, of which every parameter has a lambda of its own."""
    return Query(datainf_solve(inputs.live, inputs.training, inputs.gradient, inputs.damping), None)


QUERIES: dict[str, Callable[[QueryInputs], Query]] = {
    **{name: partial(_by_engine, engine=name) for name in ("fisher", "diagonal", "ekfac", "cg")},
    "identity": _identity,
    "datainf": _datainf,
}
"""Way -> how its query is made."""
