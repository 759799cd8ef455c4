"""Eigenspaces by inner products of rows against dense eigenvectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from saferestore.core.geometry.eigenspace import (
    compare_eigenspaces,
    energy_share,
    leading,
    overlap,
    spectral_distance,
    spectrum,
)
from saferestore.core.geometry.similarity import resamples

RNG = np.random.default_rng(0)


def top(rows: np.ndarray, k: int) -> np.ndarray:
    """The top-k eigenvectors [d, k] of rows' rows, dense."""
    return np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :k]


def test_the_overlap_is_that_of_the_principal_angles() -> None:
    first, second = RNG.normal(size=(2, 12, 30))
    second += first
    cosines = np.cos(scipy.linalg.subspace_angles(top(first, 4), top(second, 4)))
    found = overlap(spectrum(first @ first.T), spectrum(second @ second.T), first @ second.T, 4)
    assert found == pytest.approx(np.mean(cosines ** 2), rel=1e-9)


def test_a_model_overlaps_itself_wholly_and_another_by_chance() -> None:
    rows = RNG.normal(size=(12, 30))
    gram = rows @ rows.T
    assert overlap(spectrum(gram), spectrum(gram), gram, 5) == pytest.approx(1)
    by_chance = []
    for seed in range(200):
        a, b = np.random.default_rng(seed).normal(size=(2, 12, 30))
        by_chance.append(overlap(spectrum(a @ a.T), spectrum(b @ b.T), a @ b.T, 5))
    assert np.mean(by_chance) == pytest.approx(5 / 30, abs=0.01)


def test_more_dimensions_than_rows_have_no_overlap() -> None:
    rows = RNG.normal(size=(3, 30))
    gram = rows @ rows.T
    found = spectrum(gram)
    assert leading(found, 4) is None and np.isnan(overlap(found, found, gram, 4))
    assert leading(spectrum(np.zeros((3, 3))), 1) is None
    assert leading(spectrum(np.ones((5, 5))), 2) is None  # one direction, five times


def test_leading_rows_are_orthonormal() -> None:
    rows = RNG.normal(size=(12, 30))
    weights = leading(spectrum(rows @ rows.T), 5)
    assert weights is not None
    basis = weights.T @ rows
    assert np.allclose(basis @ basis.T, np.eye(5))


def test_the_spectral_distance_sees_shape_and_not_size() -> None:
    values = np.logspace(3, -3, 20)
    assert spectral_distance(values, 7 * values) == pytest.approx(0)
    flat, falling = np.ones(20), np.logspace(0, -19, 20)
    assert spectral_distance(flat, falling) > 3
    assert np.isnan(spectral_distance(values, np.zeros(20)))
    assert np.isnan(spectral_distance(values[:1], values[:1]))


def test_eigenvalues_are_those_of_the_matrix() -> None:
    rows = RNG.normal(size=(6, 30))
    assert np.allclose(spectrum(rows @ rows.T).values, np.linalg.eigvalsh(rows.T @ rows)[::-1][:6])


def test_resampled_rows_take_all_their_draws_along() -> None:
    first = RNG.normal(size=(20, 30))
    second = first + 0.3 * RNG.normal(size=(20, 30))
    space, distance = compare_eigenspaces(first @ first.T, second @ second.T, first @ second.T, rows=10, k=3, seed=0)
    assert space.n == 10 and space.value is not None and space.ci_low is not None and space.ci_high is not None
    assert 0.5 < space.value <= 1 and space.ci_low < space.value < space.ci_high
    assert distance.value is not None and 0 <= distance.value < 0.2


def test_a_replicate_is_the_overlap_and_distance_of_dense_matrices_of_the_rows_drawn() -> None:
    first = RNG.normal(size=(20, 30))
    second = first + 0.3 * RNG.normal(size=(20, 30))
    space, distance = compare_eigenspaces(first @ first.T, second @ second.T, first @ second.T, rows=10, k=3, seed=0)
    picks, spaces, distances = resamples(10, 0, 100), [], []
    for pick in picks:
        a, b = (np.concatenate([rows[:10][pick], rows[10:][pick]]) for rows in (first, second))
        spaces.append(np.mean(np.cos(scipy.linalg.subspace_angles(top(a, 3), top(b, 3))) ** 2))
        one, two = (np.linalg.eigvalsh(rows.T @ rows)[::-1][:10] / np.square(rows).sum() for rows in (a, b))
        distances.append(np.abs(np.log10(one / two)).mean())
    assert space.replicates == pytest.approx(spaces, rel=1e-9)
    enough = [len(set(pick)) >= 5 for pick in picks]  # for ten eigenvalues above 0
    assert distance.replicates[enough] == pytest.approx(np.array(distances)[enough], rel=1e-6) and sum(enough) > 90
    assert space.value is not None and space.ci_low is not None and space.ci_high is not None
    spread = 1.96 * np.std(spaces)
    assert (space.ci_low, space.ci_high) == pytest.approx((space.value - spread, space.value + spread), rel=1e-9)


def test_the_energy_share_is_that_of_the_mean_gradient() -> None:
    gradients, basis = RNG.normal(size=(15, 30)), np.linalg.qr(RNG.normal(size=(30, 4)))[0].T
    found = energy_share(basis @ gradients.T, gradients @ gradients.T, seed=0)
    mean = gradients.mean(axis=0)
    assert found.value == pytest.approx(np.square(basis @ mean).sum() / np.square(mean).sum())
    assert energy_share(np.zeros((4, 15)), np.zeros((15, 15)), seed=0).value is None


def test_eigenvalues_that_are_rounding_have_no_distance() -> None:
    draw = np.random.default_rng(0)
    rows, few = draw.normal(size=(10, 40)), draw.normal(size=(4, 40))
    whole, poor = (spectrum(r @ r.T).values for r in (rows, few[np.arange(10) % 4]))
    assert poor[4] < 1e-12 * poor[0]
    assert math.isnan(spectral_distance(whole, poor)) and math.isnan(spectral_distance(poor, whole))
    assert spectral_distance(whole, whole) == 0.0
