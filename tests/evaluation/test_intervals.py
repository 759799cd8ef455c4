"""Intervals and tests against published worked examples and against formulas written another way."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.intervals import (
    Mean,
    bca,
    clusters_ahead,
    design_effect,
    mcnemar_exact,
    mean_interval,
    wilson,
)
from scipy.special import ndtr, ndtri

# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3: hits, n, interval to four digits
NEWCOMBE = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize(("hits", "n", "low", "high"), NEWCOMBE)
def test_wilson_agrees_with_newcombes_table(hits: int, n: int, low: float, high: float) -> None:
    rate = wilson(hits, n)
    assert (round(rate.ci_low, 4), round(rate.ci_high, 4)) == (low, high)
    assert (rate.value, rate.n) == (hits / n, n)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_wilson_ends_solve_its_quadratic(n: int) -> None:
    z = float(ndtri(0.975))
    for hits in range(n + 1):
        rate = wilson(hits, n)
        for end in (rate.ci_low, rate.ci_high):
            assert (hits / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)
        assert rate.ci_low <= rate.value <= rate.ci_high


def test_no_hit_of_a_hundred_is_not_zero() -> None:
    assert wilson(0, 100).ci_high == pytest.approx(0.037, abs=5e-4)


@pytest.mark.parametrize(("hits", "n", "what"), [(0, 0, "no samples"), (3, 2, "impossible count - 3 of 2"),
                                                 (-1, 2, "impossible count")])
def test_impossible_counts_are_refused(hits: int, n: int, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        wilson(hits, n)


@pytest.mark.parametrize(("hits", "n", "effect"), [(30, 100, 2), (0, 60, 3), (90, 90, 4.5), (25, 200, 2.5)])
def test_a_design_effect_gives_the_interval_of_fewer_samples(hits: int, n: int, effect: float) -> None:
    found, fewer = wilson(hits, n, design_effect=effect), wilson(round(hits / effect), round(n / effect))
    assert (found.value, found.n) == (hits / n, n)
    assert (found.ci_low, found.ci_high) == pytest.approx((fewer.ci_low, fewer.ci_high), abs=1e-12)


@pytest.mark.parametrize(("groups", "copies"), [(2, 3), (10, 1), (25, 4)])
def test_copies_of_a_sample_are_worth_one(groups: int, copies: int) -> None:
    """n by the design effect is the number of groups, but for the degrees of freedom: n - 1 beside groups - 1."""
    values = [float(group % 3) for group in range(groups) for _ in range(copies)]
    clusters = [group for group in range(groups) for _ in range(copies)]
    n = groups * copies
    assert copies <= design_effect(values, clusters) <= (n - 1) / (groups - 1) + 1e-12
    assert design_effect(values, range(n)) == 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_of_clusters_are_worth_a_value_a_cluster(value: float) -> None:
    clusters = [number // 4 for number in range(60)]
    assert design_effect([value] * 60, clusters) == pytest.approx(4.0)
    assert wilson(0, 60, design_effect=4.0).ci_high == pytest.approx(wilson(0, 15).ci_high)
    assert design_effect([value] * 6, "aaaabb") == pytest.approx(20 / 6)  # n by it: (sum of sizes)^2 / sum of squares
    assert design_effect([value] * 5, "aaaaa") == pytest.approx(5.0)  # wordings of one prompt are one sample


@pytest.mark.parametrize("size", [2, 5, 8, 16])
def test_a_first_hit_or_two_do_not_narrow_the_interval(size: int) -> None:
    """Beside none at all; a percent of it is left to the weights."""
    clusters = [number // size for number in range(16 * size)]
    ends = [wilson(hits, len(clusters), design_effect=design_effect(
        [number % size == 0 and number // size < hits for number in range(len(clusters))], clusters)).ci_high
        for hits in (0, 1, 2, 4)]
    assert all(after > 0.98 * before for before, after in itertools.pairwise(ends))


def test_with_many_of_both_kinds_the_design_effect_is_what_was_measured() -> None:
    """Against analysis of variance: of n values in clusters of m, half hits, drawn without regard to clusters."""
    draw = np.random.default_rng(1)
    hits = draw.permutation(np.arange(4000) % 2)
    assert design_effect(hits, np.repeat(np.arange(1000), 4).tolist()) == pytest.approx(1.0, abs=0.05)


def test_three_hits_of_one_cluster_are_weighed_by_hand() -> None:
    """Sizes 3, 3, 2: m = 22/8, k = 3; sums of deviations 3 - 9/8, -9/8, -6/8."""
    between = 3 / 2 * ((15 / 8)**2 + (9 / 8)**2 + (6 / 8)**2) / 64
    independent = (3 * (5 / 8)**2 + 5 * (3 / 8)**2) / 7 / 8
    measured, alike = between / independent, 22 / 8
    assert measured > 1
    assert design_effect([1, 1, 1, 0, 0, 0, 0, 0], "aaabbbcc") == pytest.approx(
        (3 * measured + alike**2) / (3 + alike))


def test_the_design_effect_is_that_of_the_intracluster_correlation() -> None:
    """1 + (m - 1) rho for clusters of m, whose rate is drawn from a beta distribution (Kish 1965)."""
    draw = np.random.default_rng(0)
    m, rho, groups, found = 5, 0.4, 200, []
    for _ in range(50):
        rates = draw.beta(0.5 * (1 - rho) / rho, 0.5 * (1 - rho) / rho, size=groups)
        hits = draw.random((groups, m)) < rates[:, None]
        found.append(design_effect(hits.ravel(), np.repeat(np.arange(groups), m).tolist()))
    assert np.mean(found) == pytest.approx(1 + (m - 1) * rho, rel=0.05)


def test_clusters_never_make_an_interval_narrower() -> None:
    alike = 2.0  # negative correlation within: 1 is measured, of 2 values of the rarer kind
    assert design_effect([1, 0, 1, 0], ["a", "a", "b", "b"]) == pytest.approx((2 * 1 + alike**2) / (2 + alike))
    assert design_effect([1, 1, 1], [0, 1, 2]) == design_effect([], []) == 1.0


def exact_p(b: int, c: int) -> Fraction:
    """Twice the smaller tail of a fair coin, in whole numbers."""
    return min(Fraction(1), 2 * sum(Fraction(math.comb(b + c, k), 2 ** (b + c)) for k in range(min(b, c) + 1)))


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 9), (5, 5), (0, 20), (13, 40), (150, 86)])
def test_mcnemar_is_twice_the_smaller_tail(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(float(exact_p(b, c)), rel=1e-9)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_mcnemar_on_agrestis_approval_ratings() -> None:
    assert mcnemar_exact(150, 86) == pytest.approx(3.716e-5, rel=1e-3)  # as R's exact2x2::mcnemar.exact prints


def test_systems_that_never_differ_have_p_one() -> None:
    assert mcnemar_exact(0, 0) == 1.0


def test_clusters_of_one_prompt_are_mcnemars() -> None:
    pairs = [(1, 0)] * 9 + [(0, 1)] * 2 + [(1, 1)] * 3 + [(0, 0)] * 5
    assert clusters_ahead(pairs, range(19)) == (9, 2)


def test_a_cluster_counts_once_for_the_system_that_has_more_of_it() -> None:
    pairs = [(1, 0), (1, 0), (0, 1), (1, 0), (0, 1), (0, 1)]
    assert clusters_ahead(pairs, "aaabbc") == (1, 1)  # b is a tie
    assert clusters_ahead([], []) == (0, 0) and mcnemar_exact(0, 0) == 1.0


def test_the_test_of_clusters_rejects_true_equality_no_more_often_than_it_says() -> None:
    """Prompts of a cluster agree wholly: McNemar by prompts finds a difference in a third of all runs."""
    rng = np.random.default_rng(0)
    by_cluster, by_prompt = [], []
    for _ in range(400):
        signs = rng.choice([(1, 0), (0, 1)], size=12)
        pairs, clusters = [tuple(sign) for sign in signs for _ in range(10)], [i for i in range(12) for _ in range(10)]
        by_cluster.append(mcnemar_exact(*clusters_ahead(pairs, clusters)) < 0.05)
        by_prompt.append(mcnemar_exact(pairs.count((1, 0)), pairs.count((0, 1))) < 0.05)
    assert np.mean(by_cluster) <= 0.05 and np.mean(by_prompt) > 0.3


# Efron & Tibshirani, An Introduction to the Bootstrap (1993), table 14.1, test A of 26 children
SPATIAL = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]


def test_bca_agrees_with_efron_and_tibshirani() -> None:
    low, high = bca(np.array(SPATIAL, dtype=float), np.var, 0, confidence=0.90)
    assert np.var(SPATIAL) == pytest.approx(171.5, abs=0.05)
    assert (low, high) == pytest.approx((115.8, 259.6), rel=0.02)  # theirs is from 2,000 resamples


def bca_by_enumeration(values: list[float]) -> tuple[float, float]:
    """BCa of the mean over all n^n resamples, by the formulas of the book: no random numbers."""
    data, n = np.array(values), len(values)
    means = np.sort([float(np.mean(sample)) for sample in itertools.product(values, repeat=n)])
    below, ties = np.sum(means < data.mean() - 1e-9), np.sum(np.abs(means - data.mean()) < 1e-9)
    z0 = ndtri((below + ties / 2) / len(means))
    left_out = np.array([np.delete(data, i).mean() for i in range(n)])
    gaps = left_out.mean() - left_out
    a = np.sum(gaps**3) / (6 * np.sum(gaps**2) ** 1.5)
    ends = [ndtr(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in (ndtri(0.025), ndtri(0.975))]
    return float(np.quantile(means, ends[0])), float(np.quantile(means, ends[1]))


@pytest.mark.parametrize("values", [[0.1, 0.4, 0.35, 2.0, 0.9, 0.2], [1.0, 2.0, 3.0, 4.0, 5.5, 8.0]])
def test_the_interval_of_a_mean_agrees_with_all_resamples(values: list[float]) -> None:
    found, (low, high) = mean_interval(values, seed=1), bca_by_enumeration(values)
    spread = max(values) - min(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.ci_low == pytest.approx(low, abs=0.02 * spread)
    assert found.ci_high == pytest.approx(high, abs=0.02 * spread)


def test_the_interval_is_the_same_for_a_seed() -> None:
    assert mean_interval(SPATIAL, seed=3) == mean_interval(SPATIAL, seed=3) != mean_interval(SPATIAL, seed=4)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        found = mean_interval(draw.gamma(2.0, size=40), seed=trial)
        assert found.ci_low is not None and found.ci_high is not None
        covered += found.ci_low <= 2.0 <= found.ci_high
    assert 88 <= covered <= 100


@pytest.mark.parametrize(("values", "expected"), [([0.5] * 9, Mean(0.5, 9, 0.5, 0.5)),
                                                  ([0.5], Mean(0.5, 1, None, None))])
def test_degenerate_values_give_no_false_width(values: list[float], expected: Mean) -> None:
    assert mean_interval(values, seed=0) == expected


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.0] * 30 + [1.0], [1e-12, 2e-12, 1e-12], [1e9, 1e9 + 1, 1e9 + 2]])
def test_an_interval_is_always_made_of_numbers(values: list[float]) -> None:
    found = mean_interval(values, seed=0)
    assert found.ci_low is not None and found.ci_high is not None
    assert min(values) <= found.ci_low <= found.value <= found.ci_high <= max(values)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="a mean needs at least one"):
        mean_interval([], seed=0)
