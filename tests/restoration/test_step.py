"""The step on two losses, against the same problems solved by a general optimiser on dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from saferestore.core.restoration.step import Model, safety_weight, tail_fall
from scipy.optimize import LinearConstraint, minimize

SIZE = 5


class Case:
    """A random pair of gradients and a metric H, with the numbers that the model is given."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(SIZE, SIZE))
        self.h = root @ root.T + 0.1 * np.eye(SIZE)
        self.s, self.p = rng.normal(size=SIZE), 0.3 * rng.normal(size=SIZE)
        self.scale = float(rng.uniform(0.3, 5.0))
        self.model = Model(pp=self.p @ np.linalg.solve(self.h, self.p), sp=self.s @ np.linalg.solve(self.h, self.p),
                           ss=self.s @ np.linalg.solve(self.h, self.s), scale=self.scale)

    def step(self, nu: float) -> np.ndarray:
        return -np.linalg.solve(self.h, self.p + nu * self.s) / self.scale

    def penalty(self, d: np.ndarray) -> float:
        return float(self.p @ d + 0.5 * self.scale * d @ self.h @ d)


@pytest.mark.parametrize("seed", range(5))
def test_the_models_numbers_are_those_of_the_step_itself(seed: int):
    case = Case(seed)
    for nu in (0.0, 0.4, 3.0):
        d = case.step(nu)
        assert case.model.safety_change(nu) == pytest.approx(case.s @ d)
        assert case.model.penalty_slope(nu) == pytest.approx(case.p @ d)
        assert case.model.bend(nu) == pytest.approx(0.5 * d @ case.h @ d)
        assert case.model.penalty_change(nu) == pytest.approx(case.penalty(d))


@pytest.mark.parametrize("seed", range(5))
def test_no_step_lowers_s_as_far_with_less_of_p(seed: int):
    case = Case(seed)
    for nu in (0.5, 2.0):
        fall = -case.model.safety_change(nu)
        exactly = LinearConstraint(case.s, -fall, -fall)
        best = minimize(case.penalty, np.zeros(SIZE), constraints=exactly, tol=1e-12)
        assert best.success and case.penalty(case.step(nu)) == pytest.approx(best.fun, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_within_a_bound_on_p_no_step_lowers_s_further(seed: int):
    case, room = Case(seed), 0.2
    nu = safety_weight(case.model, gap=1e9, room=room)
    best = minimize(lambda d: case.s @ d, 0.01 * case.step(nu), tol=1e-12,
                    constraints={"type": "ineq", "fun": lambda d: room - case.penalty(d)})
    assert best.success and case.model.safety_change(nu) == pytest.approx(best.fun, rel=1e-5)
    assert case.model.penalty_change(nu) == pytest.approx(room)


@pytest.mark.parametrize("seed", range(5))
def test_with_room_enough_s_is_brought_down_by_the_gap_and_no_more(seed: int):
    case = Case(seed)
    gap = -case.model.safety_change(0.0) + 0.7  # more than winning P back does by itself
    assert case.model.safety_change(safety_weight(case.model, gap=gap, room=1e9)) == pytest.approx(-gap)


def test_the_weight_never_raises_s_on_purpose():
    falls_anyway = Model(pp=1.0, sp=2.0, ss=1.0, scale=1.0)  # winning P back lowers S by 2
    assert safety_weight(falls_anyway, gap=0.5, room=1e9) == 0.0


def test_where_p_cannot_come_down_far_enough_all_goes_to_p():
    assert safety_weight(Model(pp=1.0, sp=0.0, ss=1.0, scale=1.0), gap=1.0, room=-0.6) == 0.0
    assert safety_weight(Model(pp=1.0, sp=0.0, ss=1.0, scale=1.0), gap=1.0, room=-0.4) == pytest.approx(0.2**0.5)


def test_without_a_slope_of_s_nothing_is_asked_of_it():
    assert safety_weight(Model(pp=1.0, sp=0.0, ss=0.0, scale=1.0), gap=1.0, room=1.0) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_measured_scale_is_the_one_whose_model_foretells_the_change(seed: int):
    case = Case(seed)
    found = case.model.measured_scale(1.5, 0.8)
    d = case.step(1.5)
    assert case.p @ d + 0.5 * found * d @ case.h @ d == pytest.approx(0.8)


def test_a_change_that_is_not_finite_or_a_step_of_nothing_has_no_scale():
    model = Model(pp=1.0, sp=0.0, ss=1.0, scale=1.0)
    assert model.measured_scale(1.0, math.inf) == math.inf and model.measured_scale(1.0, math.nan) == math.inf
    assert Model(pp=0.0, sp=0.0, ss=1.0, scale=1.0).measured_scale(0.0, 1.0) == math.inf


@pytest.mark.parametrize("goal", [0.0001, 0.002, 0.01])
def test_margins_that_grow_evenly_come_to_the_goal_by_the_fall_of_the_tail(goal: float):
    """Logistic losses of rows far on their right side, moved by the length at which their slope foretells that fall."""
    margins = np.random.default_rng(0).uniform(3.5, 5.0, size=50)
    here = float(np.log1p(np.exp(-margins)).mean())
    slope = float((-1 / (1 + np.exp(margins))).mean())
    length = tail_fall(here, goal, 9.0) / -slope
    assert float(np.log1p(np.exp(-(margins + length))).mean()) == pytest.approx(goal, rel=0.05)
    polyak = (here - goal) / -slope  # leaves a share of 1 / e however low the goal is
    assert float(np.log1p(np.exp(-(margins + polyak))).mean()) > 0.3 * here


def test_the_fall_of_the_tail_is_never_less_than_the_gap_and_at_most_so_many_times_s():
    for goal in (0.2, 0.1, 0.001):
        assert 0.2 - goal <= tail_fall(0.2, goal, 3.0) <= 3.0 * 0.2
    assert tail_fall(0.2, 1e-9, 3.0) == pytest.approx(0.6)


def test_without_a_tail_the_fall_is_the_gap_and_where_s_is_there_it_is_none():
    assert tail_fall(0.2, 0.0, 3.0) == 0.2 and tail_fall(0.2, -1.0, 3.0) == 1.2
    assert tail_fall(0.2, 0.2, 3.0) == tail_fall(0.1, 0.2, 3.0) == 0.0
