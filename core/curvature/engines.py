"""The engines by name: how each makes its operator from the losses at the present parameters, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..checkpoint.session import LiveModel
from ..losses import Loss
from .cg import ConjugateGradients
from .diagonal import Diagonal, diagonal_fisher
from .fisher import fisher
from .ggn import GaussNewton
from .kfac import LEADING, ekfac
from .lbfgs import LBFGS, Pairs
from .operator import CurvatureOperator, Identity


@dataclass(frozen=True)
class EngineInputs:
    """What an engine may use.

    Attributes:
        live: The model at the parameters where curvature is wanted.
        losses: The losses whose Gauss-Newton matrix is F.
        seed: Of sampled labels.
        low_memory: Keep no graph between products, R on disk, and fewer eigenvectors of long sides.
        max_products: Products a solve may take, for engines that work by products.
        diagonal: A diagonal estimate made earlier in the run, for preconditioning.
        pairs: L-BFGS pairs of earlier points.
        tolerance: Relative residual at which conjugate gradients stop.
    """

    live: LiveModel
    losses: Sequence[Loss]
    seed: int
    low_memory: bool
    max_products: int
    diagonal: Diagonal | None
    pairs: Pairs
    tolerance: float = 1e-3


@dataclass(frozen=True)
class Engine:
    """A row of the table.

    Attributes:
        make: Inputs -> operator at the present parameters.
        score_passes: Gradient passes that the first call of `make` costs.
        fresh: Whether it must be made anew at every accepted point (it holds a graph), or lasts the run.
        needs_diagonal: Whether it is preconditioned by, or takes its damping scale from, a diagonal estimate.
    """

    make: Callable[[EngineInputs], CurvatureOperator]
    score_passes: int
    fresh: bool
    needs_diagonal: bool


def _gauss_newton(inputs: EngineInputs) -> GaussNewton:
    return GaussNewton(inputs.live, inputs.losses, keep_graph=not inputs.low_memory)


def _cg(inputs: EngineInputs) -> ConjugateGradients:
    assert inputs.diagonal is not None
    return ConjugateGradients(_gauss_newton(inputs), inputs.diagonal.f, inputs.diagonal.mean_diagonal,
                              max_products=inputs.max_products, tolerance=inputs.tolerance)


def _lbfgs(inputs: EngineInputs) -> LBFGS:
    assert inputs.diagonal is not None
    return LBFGS(_gauss_newton(inputs), inputs.diagonal.mean_diagonal, max_products=inputs.max_products,
                 pairs=inputs.pairs)


ENGINES: dict[str, Engine] = {
    "fisher": Engine(lambda i: fisher(i.live, i.losses, seed=i.seed, on_disk=i.low_memory), 1, False, False),
    "diagonal": Engine(lambda i: diagonal_fisher(i.live, i.losses, seed=i.seed), 1, False, False),
    "ekfac": Engine(lambda i: ekfac(i.live, i.losses, seed=i.seed, leading=LEADING // 4 if i.low_memory else LEADING),
                    2, False, False),
    "cg": Engine(_cg, 1, True, True),
    "lbfgs": Engine(_lbfgs, 1, True, True),
    "identity": Engine(lambda _: Identity(), 0, False, False),
}


def passes_at_most(engine: str, steps: int, *, fresh: bool) -> int:
    """Return the gradient passes of a restoration: the first gradient, the scores (or one), and one a step.

    Args:
        engine: Name of a row of `ENGINES`.
        steps: Accepted steps at most.
        fresh: Whether the adapter begins at B = 0, and is scored again after the first step.
    """
    return steps + 1 + max(1, ENGINES[engine].score_passes * (2 if fresh else 1))
