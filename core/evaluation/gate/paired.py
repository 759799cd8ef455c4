"""The score interval of the difference of two proportions on the same prompts.

T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
Statistics in Medicine 17 (1998) 891-908. With b and c the prompts on which only the first or only the second system
counts, the statistic of a difference d is

    z(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d))),    q the larger root of 2 n q^2 + B q - c d (1 - d) = 0,
    B = (2 n - b + c) d - b - c,

q being the likeliest share of "only the second" under d. The interval is where |z(d)| stays below the normal
quantile; it has width even where the systems never differ, and its test of d = 0 is McNemar's.
"""

from __future__ import annotations

import math

from scipy import optimize, special

LEVEL = 0.95
BESIDE = 1e-9
"""The statistic is 0/0 at the point estimate itself where the systems never differ."""


def paired_difference(only_first: float, only_second: float, n: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Return Tango's interval for the rate of the first system less that of the second.

    Args:
        only_first: Prompts on which only the first system counts.
        only_second: Prompts on which only the second one does.
        n: Prompts, at least as many as the two together. All three are divided by the design effect where prompts
            come in groups.
        level: Coverage aimed at.

    Returns:
        Lower and upper end, in [-1, 1].
    """
    return -_upper(only_second, only_first, n, level), _upper(only_first, only_second, n, level)


def samples_needed(only_first: float, only_second: float, n: float, threshold: float, *,
                   level: float = LEVEL) -> int | None:
    """Return the smallest number of prompts with which the interval's upper end is within a threshold.

    Args:
        only_first: As above; these shares are taken to stay as they are, so that z(d)^2 grows in proportion to n.
        only_second: As above.
        n: As above.
        threshold: Largest difference allowed.
        level: Coverage aimed at.

    Returns:
        Prompts in all; None where the difference is not below the threshold already.
    """
    gap = n * threshold - (only_first - only_second)
    if gap <= 0:
        return None
    z = float(special.ndtri(0.5 + level / 2))
    return max(1, math.ceil(n * n * z * z * _spread(threshold, only_first, only_second, n) / gap**2 - BESIDE))


def _upper(b: float, c: float, n: float, level: float) -> float:
    z = float(special.ndtri(0.5 + level / 2))

    def beyond(d: float) -> float:
        return (b - c - n * d) ** 2 - z * z * n * _spread(d, b, c, n)

    start = (b - c) / n + BESIDE
    return 1.0 if start >= 1 else float(optimize.root_scalar(beyond, bracket=(start, 1.0), method="brentq").root)


def _spread(d: float, b: float, c: float, n: float) -> float:
    """Return 2 q + d (1 - d), the variance of n differences under d, by n."""
    linear = (2 * n - b + c) * d - b - c
    root = math.sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d)))  # below 0 by rounding alone
    q = (root - linear) / (4 * n)
    return 2 * q + d * (1 - d)
