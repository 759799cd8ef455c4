"""Rates and means with their 95% intervals, and the paired test of two systems; all by scipy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

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


def wilson(hits: int, n: int) -> Rate:
    """Return the rate hits/n with its Wilson score interval (Wilson 1927), which has width even at 0 and 1.

    Args:
        hits: Samples that count.
        n: Samples.

    Returns:
        The rate.

    Raises:
        UsageError: No samples, or `hits` outside 0..n.
    """
    if n < 1:
        raise UsageError("no samples - a rate needs at least one", hint="give a set with at least one row")
    if not 0 <= hits <= n:
        raise UsageError(f"impossible count - {hits} of {n}", hint="count every sample once")
    interval = stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(hits / n, n, float(interval.low), float(interval.high))


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
