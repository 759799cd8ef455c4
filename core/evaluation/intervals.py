"""Rates and means with their 95% intervals, and the paired test of two systems; by scipy.

Prompts that are variants of one another are not independent. Their interval is that of fewer prompts: n by the design
effect, the variance of the mean over clusters by that of as many independent prompts (Kish 1965; Wilson's interval
with the effective n, Korn and Graubard, Survey Methodology 24, 1998).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from ..errors import UsageError


@dataclass(frozen=True)
class Rate:
    """A share of `n` samples with its Wilson 95% interval, all in [0, 1]."""

    value: float
    n: int
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Mean:
    """A mean of `n` numbers with its BCa 95% interval, None where one number alone gives no interval."""

    value: float
    n: int
    ci_low: float | None
    ci_high: float | None


def wilson(hits: int, n: int, *, design_effect: float = 1.0) -> Rate:
    """Return the rate hits/n with its Wilson score interval (Wilson 1927), which has width even at 0 and 1.

    Args:
        hits: Samples that count.
        n: Samples.
        design_effect: At least 1; the interval is that of n by it. See `design_effect`.

    Returns:
        The rate.

    Raises:
        UsageError: No samples, or `hits` outside 0..n.
    """
    if n < 1:
        raise UsageError("no samples - a rate needs at least one", hint="give a set with at least one row")
    if not 0 <= hits <= n:
        raise UsageError(f"impossible count - {hits} of {n}", hint="count every sample once")
    if design_effect > 1:
        return Rate(hits / n, n, *_score_interval(hits / n, n / design_effect))
    interval = stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(hits / n, n, float(interval.low), float(interval.high))


def _score_interval(rate: float, n: float) -> tuple[float, float]:
    """Return Wilson's interval for an n that is no whole number, which scipy does not take."""
    z2 = float(special.ndtri(0.975)) ** 2
    centre, half = rate + z2 / (2 * n), math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * n)) / n)
    return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


def clustered(hits: Sequence[bool], clusters: Sequence[Hashable]) -> Rate:
    """Return the rate of hits with the Wilson interval of n divided by their design effect.

    Args:
        hits: At least one.
        clusters: The cluster of each; samples of one are no independent evidence.
    """
    return wilson(sum(hits), len(hits), design_effect=design_effect(hits, clusters))


def design_effect(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return by how much clusters inflate the variance of a mean, at least 1.

    Values that are all equal, or all but a few, say nothing of how alike those of a cluster are: no harmful answer
    among variants of few prompts would have the interval of as many prompts. So it is taken as if one more cluster, of
    the size that a sample's cluster has in the mean, held values of the rarer kind, alike: with none of that kind seen
    a cluster counts once, and the more are seen, the more it is what was measured.

    Args:
        values: A number a sample.
        clusters: The cluster of each.

    Returns:
        (k e + m^2) / (k + m): k the values that are not the most common one, m the sum of squared sizes of clusters by
        that of sizes (Kish 1965, for clusters of equal values), e the variance of the mean between
        clusters (ultimate cluster estimator, Hansen, Hurwitz and Madow 1953) by that of independent samples, 1 at
        least. It is 1 where every cluster is one sample.
    """
    data, sizes = np.asarray(values, dtype=np.float64), Counter(clusters)
    n, count = len(data), len(sizes)
    if count == n:
        return 1.0
    alike = sum(size * size for size in sizes.values()) / n
    rare = n - int(np.unique(data, return_counts=True)[1].max())
    measured = max(1.0, _between(data, clusters) / (float(data.var(ddof=1)) / n)) if rare and count > 1 else alike
    return (rare * measured + alike * alike) / (rare + alike)


def _between(data: np.ndarray, clusters: Sequence[Hashable]) -> float:
    """Return the variance of the mean of samples in clusters."""
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(data - data.mean(), clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + float(value)
    return len(sums) / (len(sums) - 1) * sum(total * total for total in sums.values()) / len(data)**2


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p-value of McNemar's test on paired samples.

    Args:
        only_first: Pairs in which only the first system counts.
        only_second: Pairs in which only the second one does.

    Returns:
        The p-value, 1.0 where the systems never differ.
    """
    differing = only_first + only_second
    return float(stats.binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def clusters_ahead(pairs: Sequence[tuple[int, int]], clusters: Sequence[Hashable]) -> tuple[int, int]:
    """Return in how many clusters of prompts the first system has more, and in how many the second.

    Of these `mcnemar_exact` makes the sign test on differences within clusters, which is McNemar's where each has one
    prompt. Prompts of a cluster that agree would count as evidence several times otherwise.

    Args:
        pairs: 1 or 0 of the first and of the second system, a prompt each.
        clusters: The cluster of each.
    """
    sums: dict[Hashable, int] = {}
    for (first, second), cluster in zip(pairs, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0) + first - second
    return sum(each > 0 for each in sums.values()), sum(each < 0 for each in sums.values())


def mean_interval(values: Sequence[float], seed: int) -> Mean:
    """Return the mean with a seeded BCa bootstrap interval (Efron 1987; 9,999 resamples).

    Equal values give an interval of no width: that is all the bootstrap can say of them.

    Args:
        values: Finite numbers.
        seed: Of the resamples.

    Returns:
        The mean.

    Raises:
        UsageError: No values.
    """
    if not len(values):
        raise UsageError("no samples - a mean needs at least one", hint="give a set with at least one row")
    data = np.asarray(values, dtype=np.float64)
    value = float(data.mean())
    if len(data) == 1:
        return Mean(value, 1, None, None)
    if np.ptp(data) == 0:
        return Mean(value, len(data), value, value)
    return Mean(value, len(data), *bca(data, np.mean, seed))


def bca(data: np.ndarray, statistic: Callable[..., np.ndarray], seed: int, *,
        confidence: float = 0.95) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval of a statistic of numbers that are not all equal.

    Args:
        data: [n] numbers.
        statistic: Takes an array and `axis`.
        seed: Of the 9,999 resamples.
        confidence: Coverage aimed at.

    Returns:
        Lower and upper end.
    """
    found = stats.bootstrap((data,), statistic, confidence_level=confidence, method="BCa", vectorized=True,
                            n_resamples=9999, batch=max(1, 2_000_000 // len(data)),
                            rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
