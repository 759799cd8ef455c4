"""Correlations against scipy, and their intervals against what is known."""

from __future__ import annotations

import numpy as np
import pytest
from saferestore.core.errors import UsageError
from saferestore.core.geometry.similarity import (
    LEAST,
    change_correlation,
    changes,
    correlation,
    interval,
    need_rows,
    row_correlation,
    surfaces,
)
from saferestore.core.geometry.slices import Slice
from scipy import stats

RNG = np.random.default_rng(0)


def test_correlations_are_those_of_scipy() -> None:
    x, y = RNG.normal(size=(2, 7, 20))
    assert np.allclose(correlation(x, y), [stats.pearsonr(a, b)[0] for a, b in zip(x, y, strict=True)])
    assert np.allclose(correlation(x, y, ranked=True), [stats.spearmanr(a, b)[0] for a, b in zip(x, y, strict=True)])


@pytest.mark.parametrize("ranked", [False, True])
def test_a_partial_correlation_is_that_of_residuals(ranked: bool) -> None:
    z = RNG.normal(size=40)
    x, y = z + RNG.normal(size=40), z + RNG.normal(size=40)
    found = correlation(x, y, ranked=ranked, given=z)
    a, b, c = (stats.rankdata(v) if ranked else v for v in (x, y, z))
    design = np.stack([np.ones(40), c], axis=1)
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a, b)]
    assert found == pytest.approx(stats.pearsonr(*left)[0])


def test_length_alone_makes_no_partial_correlation() -> None:
    lengths = RNG.integers(5, 100, size=400).astype(float)
    first, second = (0.1 * lengths + RNG.normal(size=400) for _ in range(2))
    raw = row_correlation(first, second, lengths, ranked=False, partial=False, seed=0)
    partial = row_correlation(first, second, lengths, ranked=False, partial=True, seed=0)
    assert raw.value is not None and raw.value > 0.8
    assert partial.ci_low is not None and partial.ci_high is not None and partial.ci_low < 0 < partial.ci_high


def test_the_interval_of_a_correlation_holds_it_about_as_often_as_it_says() -> None:
    true, held = 0.6, 0
    for seed in range(100):
        draw = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, true], [true, 1]], size=60).T
        found = row_correlation(*draw, np.ones(60), ranked=False, partial=False, seed=seed)
        assert found.ci_low is not None and found.ci_high is not None
        held += found.ci_low <= true <= found.ci_high
    assert held >= 88


def test_rows_that_are_not_finite_are_gaps() -> None:
    x, y = RNG.normal(size=(2, 12))
    x[3] = np.nan
    found = row_correlation(x, y, np.ones(12), ranked=False, partial=False, seed=0)
    assert (found.n, found.gaps) == (11, 1)
    assert found.value == pytest.approx(stats.pearsonr(np.delete(x, 3), np.delete(y, 3))[0])
    assert row_correlation(x[2:5], y[2:5], np.ones(3), ranked=False, partial=False, seed=0).value is None


def test_a_constant_has_no_correlation() -> None:
    found = row_correlation(np.ones(12), RNG.normal(size=12), np.ones(12), ranked=False, partial=False, seed=0)
    assert found.value is None and found.ci_low is None


def slice_of(sums: np.ndarray, tokens: np.ndarray) -> Slice:
    axes = tuple(tuple(map(float, range(n))) for n in sums.shape[:-1])
    return Slice(axes, sums, tokens, {"harmful": range(1, sums.shape[-1])})


def test_surfaces_are_correlated_point_by_point_of_the_set_alone() -> None:
    tokens = RNG.integers(3, 9, size=13).astype(float)
    first, second = (slice_of(RNG.normal(size=(4, 5, 13)), tokens) for _ in range(2))
    found = surfaces(first, second, "harmful", ranked=True, seed=0)
    wanted = stats.spearmanr(first.surface("harmful").ravel(), second.surface("harmful").ravel())[0]
    assert found.value == pytest.approx(wanted) and found.n == 12 and found.gaps == 0


def test_a_point_with_a_gap_in_either_surface_is_left_out_and_never_filled() -> None:
    tokens = np.ones(13)
    sums = RNG.normal(size=(2, 4, 5, 13))
    sums[0, 1, 2, 4] = np.nan
    sums[1, 3, 3, 0] = np.nan  # a row of another set
    found = surfaces(*(slice_of(each, tokens) for each in sums), "harmful", ranked=False, seed=0)
    keep = np.ones((4, 5), dtype=bool)
    keep[1, 2] = False
    wanted = stats.pearsonr(*(each[..., 1:].mean(axis=-1)[keep] for each in sums))[0]
    assert found.gaps == 1 and found.value == pytest.approx(wanted)
    empty = slice_of(np.full((4, 5, 13), np.nan), tokens)
    assert surfaces(empty, empty, "harmful", ranked=False, seed=0).value is None


def test_changes_start_at_the_model_itself() -> None:
    tokens = np.ones(13)
    fan, centre = slice_of(RNG.normal(size=(6, 2, 13)), tokens), slice_of(RNG.normal(size=13), tokens)
    assert np.allclose(changes(fan, centre, "harmful"), fan.surface("harmful") - centre.sums[1:].mean())


def test_directions_are_resampled_whole() -> None:
    first = RNG.normal(size=(14, 2))
    second = first + RNG.normal(size=(14, 2))
    first[5, 1] = np.nan
    found = change_correlation(first, second, ranked=False, seed=0)
    keep = np.delete(np.arange(14), 5)
    assert found.value == pytest.approx(stats.pearsonr(first[keep].ravel(), second[keep].ravel())[0])
    assert (found.n, found.gaps) == (13, 2)
    assert change_correlation(first[5:6], second[5:6], ranked=False, seed=0).value is None


def test_a_centred_interval_holds_its_value() -> None:
    found = interval(0.9, np.array([0.4, 0.5, 0.6]), 3, centred=True)
    assert found.ci_low == pytest.approx(0.9 - 1.96 * np.std([0.4, 0.5, 0.6]))
    assert interval(float("nan"), np.zeros(3), 3).value is None


def test_too_few_rows_says_how_many_are_needed() -> None:
    need_rows({"harmful": LEAST, "benign": LEAST})
    with pytest.raises(UsageError, match=f"benign has 4, {LEAST} are needed"):
        need_rows({"harmful": 20, "benign": 4})
