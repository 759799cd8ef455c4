"""The density of a spectrum by stochastic Lanczos quadrature (Golub and Meurant 2010; Ghorbani et al. 2019).

The Ritz values of Lanczos from a random unit vector z, with the squared first components of their vectors as weights,
are the nodes and weights of the Gauss quadrature of z' f(M) z: exact for polynomials up to degree 2m - 1. Their mean
over z estimates tr f(M) / d. Eigenvalues that are known already are taken out of the probes and put back exactly
(deflation): few large ones otherwise carry nearly all of the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..config import Progress, no_progress
from ..params import Params, gaussian, size
from .spectrum import Basis, Products, Spectrum, Tridiagonal, lanczos

Floats = np.ndarray
CONVERGED = 1e-3
"""A pair is taken out where its residual is below this share of the largest absolute Ritz value."""


@dataclass(frozen=True)
class Density:
    """An estimate of a spectrum's density.

    Attributes:
        known: Eigenvalues put in exactly, each with weight 1 / dimension.
        nodes: For each probe, its Ritz values.
        weights: For each probe, their weights; they sum to 1 - known / dimension.
        dimension: d.
        products: Products of the probes.
    """

    known: tuple[float, ...]
    nodes: tuple[Floats, ...]
    weights: tuple[Floats, ...]
    dimension: int
    products: int

    def per_probe(self, f: Callable[[Floats], Floats]) -> Floats:
        """Return each probe's estimate of tr f(M) / d, [probes]; one exact number where no probe was needed."""
        exact = float(f(np.array(self.known)).sum()) / self.dimension if self.known else 0.0
        found = [exact + float((w * f(x)).sum()) for x, w in zip(self.nodes, self.weights, strict=True)]
        return np.array(found or [exact])

    def estimated_moment(self, power: int) -> Estimate:
        """Return the mean of the eigenvalues' powers with its interval over probes."""
        return estimate(self.per_probe(lambda x: x**power))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval over probes (Student's t); the ends are None for one probe alone."""

    value: float
    ci_low: float | None
    ci_high: float | None


def estimate(values: Sequence[float] | Floats) -> Estimate:
    """Return the mean of independent estimates with its interval."""
    found = np.asarray(values, dtype=float)
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean, None, None)
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    return Estimate(mean, mean - half, mean + half)


def density(products: Products, like: Params, *, probes: int, steps: int, seed: int, known: Spectrum | None = None,
            stage: str = "density", progress: Progress = no_progress) -> Density:
    """Estimate a density.

    Args:
        products: v -> M v.
        like: A vector of the parameters' shapes.
        probes: Random vectors.
        steps: Products a probe.
        seed: Of the probes.
        known: Pairs found before; the converged ones are put in exactly.
        stage: What progress calls it.
        progress: Told of every probe.

    Returns:
        The density.
    """
    values, avoid = _converged(known, like)
    dimension = size(like)
    rest = 1 - len(values) / dimension
    found = []
    for probe in range(probes if rest > 0 else 0):
        progress(stage, probe, probes)
        found.append(lanczos(products, gaussian(like, seed + probe), steps, avoid=avoid))
    progress(stage, probes, probes)
    rules = [_quadrature(each) for each in found]
    return Density(values, tuple(nodes for nodes, _ in rules), tuple(rest * weights for _, weights in rules), dimension,
                   sum(len(each.diagonal) for each in found))


def _converged(known: Spectrum | None, like: Params) -> tuple[tuple[float, ...], Basis]:
    pairs = [] if known is None else [*known.largest, *known.smallest]
    longest = max((abs(pair.value) for pair in pairs), default=0.0)
    kept = [pair for pair in pairs if pair.error <= CONVERGED * longest]
    basis = Basis(like, len(kept))
    for pair in kept:
        assert known is not None
        basis.append(known.vector(pair))
    return tuple(pair.value for pair in kept), basis


def _quadrature(iteration: Tridiagonal) -> tuple[Floats, Floats]:
    values, vectors = iteration.ritz
    return values, vectors[0] ** 2


def negative_mass(found: Density) -> Estimate:
    """Return the share of the spectrum's absolute size that is below zero: sum |l| over l < 0 by sum |l|."""
    total = found.per_probe(np.abs)
    below = found.per_probe(lambda x: np.maximum(-x, 0))
    return estimate(below / np.where(total > 0, total, 1.0))


@dataclass(frozen=True)
class Curve:
    """A density for a picture.

    Attributes:
        eigenvalues: [points] where it is taken.
        density: [points] by unit of log10 of the eigenvalue, on a symmetric-logarithmic axis.
        half: [points] half of its 95% interval over probes (Student's t); None for fewer than two probes.
    """

    eigenvalues: Floats
    density: Floats
    half: Floats | None


def curve(found: Density, points: int = 200) -> Curve:
    """Return a density smoothed for a picture.

    The axis is symmetric-logarithmic, asinh(l / l0): spectra of networks span many decades on both sides of zero. Each
    node becomes a Gaussian on that axis. The interval is of the smoothed density.

    Args:
        found: The density.
        points: Of the curve.
    """
    exact = np.array(found.known)
    nodes = np.concatenate([exact, *found.nodes])
    unit = max(float(np.abs(nodes).max(initial=0.0)) * 1e-4, 1e-30)
    places = _on_axis(nodes, unit)
    grid = np.linspace(places.min() - 0.5, places.max() + 0.5, points)
    fixed = _bumps(grid, exact, np.full(len(exact), 1 / found.dimension), unit)
    each = np.array([fixed + _bumps(grid, *rule, unit) for rule in zip(found.nodes, found.weights, strict=True)])
    half = None
    if len(each) > 1:
        half = stats.t.ppf(0.975, len(each) - 1) * each.std(axis=0, ddof=1) / len(each) ** 0.5
    return Curve(unit * np.sinh(grid * np.log(10)), each.mean(axis=0) if len(each) else fixed, half)


def _on_axis(values: Floats, unit: float) -> Floats:
    return np.arcsinh(values / unit) / np.log(10)


def _bumps(grid: Floats, nodes: Floats, weights: Floats, unit: float) -> Floats:
    """Weighted Gaussians at the nodes, [points]."""
    return stats.norm.pdf(grid[:, None], _on_axis(nodes, unit)[None, :], 0.12) @ weights
