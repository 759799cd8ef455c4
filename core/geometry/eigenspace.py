"""Leading eigenspaces of Fisher matrices compared through inner products of their rows; none is ever formed.

With R the [n, d] rows of a model's Fisher matrix R'R and R R' = U L U', the top-k eigenvectors of R'R are the rows of
V = L^-1/2 U_k' R, so that principal angles between two models need R_1 R_2' alone (Bjorck and Golub 1973), and the
energy of a gradient inside V needs R G'. A resample of rows is a weighting of these matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .similarity import Alike, interval, resamples

Floats = np.ndarray
REPLICATES = 100
"""Resamples: each costs an eigendecomposition a model."""


@dataclass(frozen=True)
class Spectrum:
    """R R' decomposed: eigenvalues descending and never negative, eigenvectors in columns."""

    values: Floats
    vectors: Floats


def spectrum(gram: Floats) -> Spectrum:
    """Decompose the inner products [n, n] of a model's rows; its eigenvalues are those of R'R that are not zero."""
    values, vectors = np.linalg.eigh(gram)
    return Spectrum(np.clip(values[::-1], 0, None), vectors[:, ::-1])


def leading(found: Spectrum, k: int) -> Floats | None:
    """Return W [n, k] with W' R the top-k eigenvectors of R'R; None where it has fewer than k."""
    values = found.values
    if len(values) < k or values[0] <= 0 or values[k - 1] <= 1e-12 * values[0]:
        return None
    return found.vectors[:, :k] / np.sqrt(values[:k])


def overlap(first: Spectrum, second: Spectrum, cross: Floats, k: int) -> float:
    """Return the mean squared cosine of the principal angles of two top-k eigenspaces: 1 the same, k/d by chance.

    Args:
        first: Of R_1 R_1'.
        second: Of R_2 R_2'.
        cross: [n, m] R_1 R_2'.
        k: Dimensions of both.

    Returns:
        |V_1 V_2'|^2 / k, nan where a matrix has fewer than k directions.
    """
    left, right = leading(first, k), leading(second, k)
    if left is None or right is None:
        return float("nan")
    return float(np.square(left.T @ cross @ right).sum() / k)


def spectral_distance(first: Floats, second: Floats) -> float:
    """Return the distance of two spectra of one total: mean |difference of log10| of eigenvalues of the same rank.

    It is the Wasserstein-1 distance of the densities of log10 of the larger half of the eigenvalues, each spectrum
    divided by its sum; in decades. nan where either has fewer than half of its eigenvalues above rounding.
    """
    count = min(len(first), len(second)) // 2
    a, b = (values[:count] / values.sum() if values.sum() > 0 else values[:0] for values in (first, second))
    if not count or len(a) != len(b) or any(each[-1] <= len(first) * np.finfo(float).eps * each[0] for each in (a, b)):
        return float("nan")
    return float(np.abs(np.log10(a) - np.log10(b)).mean())


def _repeated(weights: Floats, gram_rows: int) -> Floats:
    """Weights of rows for all their draws."""
    return np.tile(weights, gram_rows // len(weights))


def compare_eigenspaces(first: Floats, second: Floats, cross: Floats, *, rows: int, k: int,
                        seed: int) -> tuple[Alike, Alike]:
    """Return the overlap of top-k eigenspaces and the spectral distance of two models, rows resampled.

    Args:
        first: [n, n] R_1 R_1' of the rows of a set, all draws of them one after the other.
        second: The same of the other model.
        cross: R_1 R_2'.
        rows: Rows of the set (n is a multiple).
        k: Dimensions.
        seed: Of the resamples.

    Returns:
        Both measures, with intervals of 1.96 bootstrap deviations around the value: a resample holds fewer different
        rows, which lowers the overlap itself.
    """
    whole = spectrum(first), spectrum(second)
    spaces, distances = [], []
    for pick in resamples(rows, seed, REPLICATES):
        w = np.sqrt(np.bincount(pick, minlength=rows).astype(float))
        a, b = _repeated(w, len(first)), _repeated(w, len(second))
        one, two = spectrum(first * np.outer(a, a)), spectrum(second * np.outer(b, b))
        spaces.append(overlap(one, two, cross * np.outer(a, b), k))
        distances.append(spectral_distance(one.values, two.values))
    return (interval(overlap(*whole, cross, k), np.array(spaces), rows, centred=True),
            interval(spectral_distance(whole[0].values, whole[1].values), np.array(distances), rows, centred=True))


def energy_share(space: Floats, gram: Floats, *, seed: int) -> Alike:
    """Return the share of a mean gradient's energy that lies in a space, |V g|^2 / |g|^2; gradient rows are resampled.

    Args:
        space: [k, n] inner products of the space's orthonormal vectors with the gradients of n rows.
        gram: [n, n] inner products of these gradients.
        seed: Of the resamples.

    Returns:
        The share, in [0, 1].
    """
    n = len(gram)
    weights = np.stack([np.ones(n), *(np.bincount(pick, minlength=n) for pick in resamples(n, seed))]).astype(float)
    inside = np.square(weights @ space.T).sum(axis=1)
    whole = np.einsum("ri,ij,rj->r", weights, gram, weights, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(whole > 0, inside / whole, np.nan)
    return interval(float(shares[0]), shares[1:], n)
