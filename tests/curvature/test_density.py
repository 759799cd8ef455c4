"""Stochastic Lanczos quadrature against dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from saferestore.core.curvature.density import Density, curve, density, estimate, negative_mass
from saferestore.core.curvature.spectrum import ends, lanczos
from saferestore.core.params import gaussian
from scipy import stats

from .. import dense
from ..cases import live_model, ragged_batches
from . import given

VALUES = torch.cat([torch.tensor([-4.0, -1.0, 10.0, 30.0]), torch.logspace(-3, 0, 196)]).double()
MATRIX = given.symmetric(VALUES)
LIKE = given.shapes(200)


def top(count: int = 6, steps: int = 60):
    return ends(lanczos(given.products(MATRIX), gaussian(LIKE, 99), steps), count)


def test_moments_of_a_matrix_with_its_large_eigenvalues_taken_out_are_right_to_one_percent() -> None:
    found = density(given.products(MATRIX), LIKE, probes=16, steps=12, seed=1, known=top())
    for power in (1, 2, 3, 4):
        assert found.estimated_moment(power).value == pytest.approx(float((VALUES**power).mean()), rel=0.01)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_moments_of_a_model_are_right_to_one_percent_of_the_absolute_ones(matrix: str) -> None:
    live, batches = live_model(), ragged_batches()
    exact = EXACT[matrix](live, batches)
    like = {name: leaf.detach() for name, leaf in live.leaves.items()}
    multiply = given.products(exact)
    known = ends(lanczos(multiply, gaussian(like, 5), 60), 30)
    found = density(multiply, like, probes=30, steps=10, seed=1, known=known)
    values = torch.linalg.eigvalsh(exact)
    for power in (1, 2, 3):
        # The eigenvalues of a Hessian cancel in odd moments: their absolute values are the scale.
        error = found.estimated_moment(power).value - float((values**power).mean())
        assert abs(error) < 0.01 * float((values.abs()**power).mean())


EXACT = {"hessian": lambda live, batches: dense.hessian(lambda theta: dense.cross_entropy(live, theta, batches),
                                                        dense.flat(live.leaves)),
         "gauss_newton": dense.gauss_newton}


def test_a_probe_of_m_products_is_exact_for_powers_below_2m() -> None:
    z = dense.flat(gaussian(LIKE, 1))
    z = z / z.norm()
    found = density(given.products(MATRIX), LIKE, probes=1, steps=4, seed=1)
    for power in range(8):
        wanted = float(z @ torch.linalg.matrix_power(MATRIX, power) @ z)
        assert found.estimated_moment(power).value == pytest.approx(wanted, rel=1e-8)
    assert found.products == 4


def test_without_known_pairs_the_mean_over_many_probes_is_right() -> None:
    found = density(given.products(MATRIX), LIKE, probes=300, steps=3, seed=1)
    interval = estimate(found.per_probe(lambda x: x))
    assert interval.ci_low is not None and interval.ci_high is not None
    assert interval.ci_low < float(VALUES.mean()) < interval.ci_high
    assert found.estimated_moment(0).value == pytest.approx(1)


def test_the_negative_mass_is_the_share_below_zero() -> None:
    found = negative_mass(density(given.products(MATRIX), LIKE, probes=8, steps=20, seed=1, known=top()))
    wanted = float(-VALUES[VALUES < 0].sum() / VALUES.abs().sum())
    assert found.value == pytest.approx(wanted, rel=0.02)
    assert found.ci_low is not None and found.ci_low <= found.value <= (found.ci_high or 0)


def test_a_matrix_that_is_wholly_known_needs_no_probe() -> None:
    matrix, like = given.symmetric([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), given.shapes(8)
    known = ends(lanczos(given.products(matrix), gaussian(like, 1), 8), 4)
    found = density(given.products(matrix), like, probes=3, steps=4, seed=1, known=known)
    assert found.products == 0 and sorted(found.known) == pytest.approx(list(range(1, 9)))


def test_the_zero_matrix_has_no_negative_mass() -> None:
    found = density(given.products(torch.zeros(8, 8, dtype=torch.float64)), given.shapes(8), probes=2, steps=3, seed=1)
    assert negative_mass(found).value == 0 and found.estimated_moment(1).value == 0


def test_an_interval_is_students_t() -> None:
    low, high = stats.t.interval(0.95, 3, loc=2.5, scale=stats.sem([1, 2, 3, 4]))
    found = estimate([1, 2, 3, 4])
    assert (found.ci_low, found.ci_high) == (pytest.approx(low), pytest.approx(high))
    assert estimate([2.0]).ci_low is None


def test_the_curve_is_a_density_with_a_bump_at_every_eigenvalue() -> None:
    made = Density((100.0,), (np.array([-1.0, 1.0]),), (np.array([0.25, 0.25]),), 2, 2)
    found = curve(made, points=2001)
    unit = 100 * 1e-4
    area = np.trapezoid(found.density, np.arcsinh(found.eigenvalues / unit) / np.log(10))
    assert area == pytest.approx(1, rel=1e-3) and found.half is None
    assert found.eigenvalues[found.density.argmax()] == pytest.approx(100, rel=0.02)


def test_a_curve_of_known_eigenvalues_alone_has_no_interval() -> None:
    found = curve(Density((1.0, 2.0), (), (), 2, 0))
    assert found.half is None and found.density.max() > 0


def test_the_interval_of_a_curve_is_students_t_over_the_curves_of_its_probes() -> None:
    nodes, weights = (np.array([1.0, 5.0]), np.array([2.0, 5.0]), np.array([1.0, 4.0])), (np.array([0.3, 0.2]),) * 3
    found = curve(Density((6.0,), nodes, weights, 2, 6))
    places = np.arcsinh(found.eigenvalues / 6e-4) / np.log(10)

    def alone(values: np.ndarray) -> np.ndarray:
        at = np.arcsinh(np.array([6.0, *values]) / 6e-4) / np.log(10)
        return sum(w * stats.norm.pdf(places, a, 0.12) for w, a in zip((0.5, 0.3, 0.2), at, strict=True))

    each = np.array([alone(values) for values in nodes])
    low, high = stats.t.interval(0.95, 2, loc=each.mean(axis=0), scale=stats.sem(each) + 1e-300)
    assert found.half is not None
    assert np.allclose(found.density, each.mean(axis=0)) and np.allclose(found.half, (high - low) / 2)
