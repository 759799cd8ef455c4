"""All that is measured of one curvature matrix: its ends, density, trace, negative mass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.session import LiveModel
from ..config import Progress, no_progress
from ..losses import Loss
from ..params import Params, gaussian
from .concentration import module_shares
from .density import Density, Estimate, density, negative_mass
from .ggn import GaussNewton
from .hessian import Choice, Hessian, choose_way
from .spectrum import Products, Spectrum, ends, lanczos
from .trace import LEAST_PRODUCTS, Trace, hutchpp


@dataclass(frozen=True)
class Effort:
    """How many products each estimate takes.

    Attributes:
        lanczos: Of the iteration for the ends.
        eigenvalues: Pairs reported at each end.
        probes: Of the density; each takes a fifth of `lanczos`.
        seed: Of all random vectors.
    """

    lanczos: int
    eigenvalues: int
    probes: int
    seed: int

    @property
    def probe_steps(self) -> int:
        """Products a probe of the density."""
        return max(4, self.lanczos // 5)

    @property
    def trace(self) -> int:
        """Products of the trace."""
        return max(LEAST_PRODUCTS, 3 * (self.lanczos // 10))


@dataclass(frozen=True)
class Curvature:
    """One matrix, measured.

    Attributes:
        matrix: `hessian` or `gauss_newton`.
        spectrum: Its ends.
        density: Of its eigenvalues.
        trace: With its bound.
        negative_mass: Share of the absolute spectrum below zero.
        modules: Module -> its share of the curvature at the ends.
        products: Products in all.
    """

    matrix: str
    spectrum: Spectrum
    density: Density
    trace: Trace
    negative_mass: Estimate
    modules: Mapping[str, float]
    products: int


def probe_losses(live: LiveModel, losses: Sequence[Loss], effort: Effort, *, low_memory: bool = False,
                 progress: Progress = no_progress) -> tuple[Choice, dict[tuple[str, str], Curvature]]:
    """Measure the Hessian and the Gauss-Newton matrix of each loss at the model's present parameters.

    Args:
        live: The model.
        losses: Each with a name of its own.
        effort: How many products.
        low_memory: Never keep graphs.
        progress: Told of every estimate.

    Returns:
        How Hessian products are done, and (name of the loss, matrix) -> what was found. Where the model has no exact
        second derivative there is no Gauss-Newton matrix.
    """
    like = {name: leaf.detach() for name, leaf in live.leaves.items()}
    choice = choose_way(live, losses, gaussian(like, effort.seed), low_memory=low_memory)
    matrices: dict[str, Callable[[Loss], Products]] = {
        "hessian": lambda loss: Hessian(live, [loss], way=choice.way).matvec}
    if choice.distance is not None:
        matrices["gauss_newton"] = lambda loss: GaussNewton(live, [loss], keep_graph=choice.way == "kept").matvec
    found = {}
    for loss in losses:
        for name, make in matrices.items():
            # The graphs of a matrix are dropped before those of the next one are made.
            found[loss.name, name] = measure(make(loss), like, effort, name, stage=f"{name} of {loss.name}",
                                             progress=progress)
    return choice, found


def measure(products: Products, like: Params, effort: Effort, matrix: str, *, stage: str = "curvature",
            progress: Progress = no_progress) -> Curvature:
    """Measure one matrix.

    Args:
        products: v -> M v.
        like: A vector of the parameters' shapes.
        effort: How many products.
        matrix: What the result calls it.
        stage: What progress calls it.
        progress: Told of every product of the ends.

    Returns:
        What was found.
    """
    iteration = lanczos(products, gaussian(like, effort.seed), effort.lanczos, stage=stage, progress=progress)
    spectrum = ends(iteration, effort.eigenvalues)
    # More converged pairs than are reported serve the density: each one taken out lessens its variance.
    found = density(products, like, probes=effort.probes, steps=effort.probe_steps, seed=effort.seed + 1,
                    known=ends(iteration, effort.lanczos // 2))
    trace = hutchpp(products, like, count=effort.trace, seed=effort.seed + 1_000_000)
    return Curvature(matrix, spectrum, found, trace, negative_mass(found), module_shares(spectrum),
                     len(iteration.diagonal) + found.products + trace.products)
