"""The paired interval against published numbers and against a likelihood maximised without its formula."""

from __future__ import annotations

import math

import pytest
from saferestore.core.evaluation.gate.paired import paired_difference, samples_needed
from saferestore.core.evaluation.intervals import mcnemar_exact
from scipy import optimize
from scipy.special import ndtri

Z = float(ndtri(0.975))
TABLES = [(1, 7, 21), (6, 16, 161), (40, 20, 160), (0, 5, 41), (3, 0, 30), (9, 9, 100)]


def test_it_is_tangos_interval_of_the_airway_study() -> None:
    """Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014) 2850-2875: 21 children, 1 and 7 changed."""
    low, high = paired_difference(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


def test_it_is_what_r_prints_at_another_level() -> None:
    low, high = paired_difference(28, 25, 618, level=0.90)  # PropCIs::scoreci.mp(25, 28, 618, 0.90)
    assert (round(low, 4), round(high, 4)) == (-0.0148, 0.0247)


def likeliest_share(d: float, b: int, c: int, n: int) -> float:
    """The share of "only the second" that makes the table likeliest when the rates differ by d, by search."""
    def unlikelihood(q: float) -> float:
        shares = ((b, q + d), (c, q), (n - b - c, 1 - 2 * q - d))
        return -sum(count * math.log(share) for count, share in shares if count)

    bounds = (max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12)
    return float(optimize.minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x)


@pytest.mark.parametrize(("b", "c", "n"), TABLES)
def test_its_ends_are_where_the_score_statistic_reaches_the_quantile(b: int, c: int, n: int) -> None:
    for end, sign in zip(paired_difference(b, c, n), (1, -1), strict=True):
        spread = 2 * likeliest_share(end, b, c, n) + end - end**2
        assert (b - c - n * end) / math.sqrt(n * spread) == pytest.approx(sign * Z, rel=1e-4)


def test_it_holds_the_estimate_and_stays_inside_for_every_small_table() -> None:
    for n in range(1, 16):
        for b in range(n + 1):
            for c in range(n - b + 1):
                low, high = paired_difference(b, c, n)
                assert -1 <= low <= (b - c) / n <= high <= 1
                assert (low, high) == pytest.approx(tuple(-end for end in paired_difference(c, b, n)[::-1]))


def test_systems_that_never_differ_have_an_interval_with_width() -> None:
    low, high = paired_difference(0, 0, 100)
    assert high == -low == pytest.approx(Z * Z / (100 + Z * Z))


@pytest.mark.parametrize(("b", "c"), [(20, 5), (30, 10), (9, 9), (12, 1)])
def test_it_leaves_zero_out_where_mcnemar_finds_a_difference(b: int, c: int) -> None:
    low, high = paired_difference(b, c, 100)
    assert (low > 0 or high < 0) == (mcnemar_exact(b, c) < 0.05)


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.2])
@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 10), (1, 1, 20), (2, 4, 30), (0, 3, 60)])
def test_the_samples_needed_are_the_fewest_by_trying_all(b: int, c: int, n: int, threshold: float) -> None:
    needed = samples_needed(b, c, n, threshold)
    assert needed is not None

    def is_within(times: int) -> bool:
        """The table made larger without changing its shares; only whole multiples have whole counts."""
        return paired_difference(b * times, c * times, n * times)[1] <= threshold

    fewest = next(times for times in range(1, 3000) if is_within(times))
    assert n * (fewest - 1) < needed <= n * fewest


@pytest.mark.parametrize(("b", "c", "n"), [(5, 0, 50), (6, 0, 50), (10, 4, 50)])
def test_a_difference_that_is_not_below_the_threshold_is_never_settled(b: int, c: int, n: int) -> None:
    assert samples_needed(b, c, n, 0.1) is None
