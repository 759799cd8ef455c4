"""How alike the losses of two models are: correlations with bootstrap intervals, over rows or over directions.

Replicates are drawn from a seed alone, so that two comparisons of the same rows share them and their difference has an
interval of its own: that is how a pair of models is held against an unrelated one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from ..errors import UsageError
from .slices import Slice

Floats = np.ndarray
LEAST = 10
"""Rows, or directions, below which a correlation says nothing: at 10, r = .63 is the 5% bound of no correlation."""
REPLICATES = 1000


@dataclass(frozen=True)
class Alike:
    """How alike two models are by one measure.

    Attributes:
        value: The measure; None where it is not defined (a constant, or no finite points).
        ci_low: Lower end of its 95% interval.
        ci_high: Upper end.
        n: What was resampled: rows or directions.
        gaps: Points left out because a loss was not finite.
        replicates: The measure on every resample.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    gaps: int = 0
    replicates: Floats = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)


def need_rows(counts: Mapping[str, int]) -> None:
    """Refuse sets that are too small.

    Args:
        counts: Set name -> rows.

    Raises:
        UsageError: A set with fewer than `LEAST` rows.
    """
    name, count = min(counts.items(), key=lambda pair: pair[1])
    if count < LEAST:
        raise UsageError(f"too few rows for a correlation - {name} has {count}, {LEAST} are needed",
                         hint=f"give more rows with --{name} FILE, or raise --rows")


def resamples(n: int, seed: int, count: int = REPLICATES) -> Floats:
    """Return `count` resamples of n things, [count, n] indices, the same for a seed."""
    return np.random.default_rng(seed).integers(0, n, size=(count, n))


def correlation(x: Floats, y: Floats, *, ranked: bool = False, given: Floats | None = None) -> Floats:
    """Return the correlation of x and y along the last axis, [...]; nan where one of them is constant.

    Args:
        x: [..., n].
        y: [..., n].
        ranked: Of ranks (Spearman) instead of values (Pearson).
        given: [..., n], partialled out of both: what is left when each is regressed on it.
    """
    if ranked:
        x, y = stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1)
    r = _pearson(x, y)
    if given is None:
        return r
    z: Floats = stats.rankdata(given, axis=-1) if ranked else given
    xz, yz = np.nan_to_num(_pearson(x, z)), np.nan_to_num(_pearson(y, z))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (r - xz * yz) / np.sqrt((1 - xz ** 2) * (1 - yz ** 2))


def _pearson(x: Floats, y: Floats) -> Floats:
    x, y = (a - a.mean(axis=-1, keepdims=True) for a in (x, y))
    scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, np.clip((x * y).sum(axis=-1) / scale, -1, 1), np.nan)


def interval(value: float, replicates: Floats, n: int, *, gaps: int = 0, centred: bool = False) -> Alike:
    """Return a measure with its 95% interval.

    Args:
        value: Of all rows.
        replicates: Of the resamples; those that are not finite are left out.
        n: What was resampled.
        gaps: Points left out.
        centred: Put the interval around the value (1.96 standard deviations) instead of at the percentiles: for what
            resampling itself biases, as it does eigenspaces, which lose rank where rows are drawn twice.

    Returns:
        The measure; value and interval are None where they are not defined.
    """
    usable = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or len(usable) < 2:
        return Alike(float(value) if np.isfinite(value) else None, None, None, n, gaps, replicates)
    if centred:
        spread = 1.96 * float(usable.std())
        return Alike(float(value), float(value) - spread, float(value) + spread, n, gaps, replicates)
    low, high = np.percentile(usable, [2.5, 97.5])
    return Alike(float(value), float(low), float(high), n, gaps, replicates)


def surfaces(first: Slice, second: Slice, name: str, *, ranked: bool, seed: int) -> Alike:
    """Correlate the losses of a set at the same points of two slices; rows are resampled.

    Args:
        first: A plane around one model.
        second: The same plane around another.
        name: Of the set.
        ranked: Spearman.
        seed: Of the resamples.

    Returns:
        How alike they are. Both surfaces may rise away from the centre, which alone makes this high: its control is an
        unrelated model.
    """
    rows = list(first.sets[name])
    tables = [each.sums[..., rows].reshape(-1, len(rows)) for each in (first, second)]
    finite = np.isfinite(tables[0]).all(axis=1) & np.isfinite(tables[1]).all(axis=1)
    picks = resamples(len(rows), seed)
    counts = np.stack([np.bincount(pick, minlength=len(rows)) for pick in picks]).astype(float)
    counts = np.concatenate([np.ones((1, len(rows))), counts])
    weights = counts / (counts @ first.tokens[rows])[:, None]
    x, y = (weights @ table[finite].T for table in tables)
    return _measured(lambda: correlation(x, y, ranked=ranked), len(rows), int((~finite).sum()), x.shape[-1])


def _measured(compute: Callable[[], Floats], n: int, gaps: int, points: int) -> Alike:
    """The first correlation is that of all rows, the others are replicates."""
    if points < 3:
        return Alike(None, None, None, n, gaps)
    found = compute()
    return interval(float(found[0]), found[1:], n, gaps=gaps)


def changes(fan: Slice, centre: Slice, name: str) -> Floats:
    """Return how the loss of a set changes at the ends of each direction, [directions, steps], nats per token."""
    return fan.surface(name) - centre.surface(name).reshape(-1)[0]


def change_correlation(first: Floats, second: Floats, *, ranked: bool, seed: int) -> Alike:
    """Correlate loss changes over directions of equal length; directions are resampled.

    Args:
        first: [directions, steps].
        second: The same directions and steps at another model.
        ranked: Spearman.
        seed: Of the resamples.

    Returns:
        How alike they are: does a direction that raises the loss of one model raise the other's?
    """
    finite = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    x, y = first[finite], second[finite]
    n, gaps = len(x), int((~finite).sum()) * first.shape[1]
    picks = np.concatenate([np.arange(n)[None], resamples(max(n, 1), seed)]) if n else np.zeros((1, 0), dtype=int)
    return _measured(lambda: correlation(*(t[picks].reshape(len(picks), -1) for t in (x, y)), ranked=ranked), n, gaps,
                     x.size)


def row_correlation(first: Floats, second: Floats, lengths: Floats, *, ranked: bool, partial: bool, seed: int) -> Alike:
    """Correlate the mean losses of rows; rows are resampled.

    Args:
        first: [rows].
        second: [rows] of the same rows.
        lengths: [rows] answer tokens.
        ranked: Spearman.
        partial: With the answer's length partialled out: long answers of common words are easy for any model.
        seed: Of the resamples.

    Returns:
        How alike they are.
    """
    finite = np.isfinite(first) & np.isfinite(second)
    x, y, z = (a[finite] for a in (first, second, lengths))
    if len(x) < 3:
        return Alike(None, None, None, len(x), int((~finite).sum()))
    picks = np.concatenate([np.arange(len(x))[None], resamples(len(x), seed)])
    return _measured(lambda: correlation(x[picks], y[picks], ranked=ranked, given=z[picks] if partial else None),
                     len(x), int((~finite).sum()), len(x))
