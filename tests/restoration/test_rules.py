"""The rules of a step, on functions of two numbers whose steps can be written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from saferestore.core.curvature.operator import Solution
from saferestore.core.restoration import trust_region
from saferestore.core.restoration.attribution import Point
from saferestore.core.restoration.settings import Settings
from saferestore.core.restoration.step import Model
from saferestore.core.restoration.trust_region import (
    Outcome,
    Problem,
    _damping,
    _learn,
    _State,
    _weight,
    _wins_back,
    minimise,
)
from torch import Tensor

Function = Callable[[Tensor], Tensor]
METRIC = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -2.0], dtype=torch.float64)


@dataclass(frozen=True)
class _Of:
    """A loss that is a function of the two numbers."""

    function: Function
    target: float | None = None

    def value(self, model: Any) -> float:
        return float(self.function(model.x.detach()))

    def gradient(self, live: Any) -> tuple[float, dict[str, Tensor]]:
        x = live.leaves["x"].detach().clone().requires_grad_()
        value = self.function(x)
        return float(value.detach()), {"x": torch.autograd.grad(value, x)[0]}


@dataclass(frozen=True)
class _Metric:
    """F as a dense matrix."""

    f: Tensor

    @property
    def mean_diagonal(self) -> float:
        return float(self.f.diagonal().mean())

    def solve(self, v: dict[str, Tensor], damping: float) -> Solution:
        x = torch.linalg.solve(self.f + damping * torch.eye(2).double(), v["x"])
        return Solution({"x": x}, {"x": self.f @ x}, None, 0, "exact")


def _half_square(metric: Tensor, factor: float = 1.0) -> Function:
    return lambda x: 0.5 * factor * x @ metric @ x


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Outcome, list[Tensor]]]:
    """Return what takes steps on S, D and P from 0 with a given F, and the points at which gradients were taken."""

    def ran(safety: _Of, drift: Function, penalty: Function, f: Tensor,
            settings: Settings) -> tuple[Outcome, list[Tensor]]:
        x, seen = torch.zeros(2, dtype=torch.float64), list[Tensor]()
        live: Any = SimpleNamespace(leaves={"x": x}, model=SimpleNamespace(x=x))

        def beside(at: Any, loss: Any, others: Any) -> Any:
            seen.append(x.clone())
            value, slope = loss.gradient(at)
            return value, tuple(other.value(at.model) for other in others), slope

        monkeypatch.setattr(trust_region, "gradient", lambda at, loss: loss.gradient(at))
        monkeypatch.setattr(trust_region, "gradient_beside", beside)
        monkeypatch.setattr(trust_region, "values", lambda model, losses: tuple(loss.value(model) for loss in losses))
        row = replace(trust_region.ENGINES["fisher"], make=lambda _: _Metric(f))
        monkeypatch.setitem(trust_region.ENGINES, "fisher", row)
        problem: Any = Problem(live, (safety,), _Of(drift), _Of(penalty))  # type: ignore[arg-type]
        return minimise(problem, replace(settings, engine="fisher")), seen

    return ran


def _line(at: float, target: float = 0.0) -> _Of:
    return _Of(lambda x: at + x @ SLOPE, target)


FREE = Settings(max_drift=1e6, max_steps=1, drift_weight=1e-3, tail=0.0, damping=0.5)
"""Nothing but the goal bounds a step."""


def test_a_step_goes_to_half_of_the_bases_value_with_the_least_of_p_and_says_what_it_foretold_and_found(run: Any):
    safety, drift, penalty = _Of(lambda x: torch.exp(x @ SLOPE), 0.8), _half_square(METRIC, 3.0), _half_square(METRIC)
    outcome, _ = run(safety, drift, penalty, METRIC, FREE)
    h = METRIC + 0.5 * METRIC.diagonal().mean() * torch.eye(2)
    way = torch.linalg.solve(h, SLOPE)
    d = -0.6 * way / (SLOPE @ way)  # the slope of S is SLOPE where S is 1, and foretells a fall to 0.4
    torch.testing.assert_close(outcome.point.params["x"], d)
    step, value = outcome.steps[0], float(torch.exp(SLOPE @ d))
    assert step.drift == pytest.approx(float(drift(d))) and step.objective == pytest.approx(
        value + 1e-3 * float(penalty(d)))
    assert step.decrease == pytest.approx(1 - value - 1e-3 * float(penalty(d)))
    assert step.predicted_decrease == pytest.approx(0.6 - 1e-3 * float(0.5 * d @ h @ d))


def test_no_more_of_p_is_paid_than_one_over_mu_for_a_nat_of_s(run: Any):
    outcome, _ = run(_line(100.0), _half_square(METRIC), _half_square(METRIC), METRIC,
                     replace(FREE, drift_weight=4.0, damping=1e-12))
    paid, fall = METRIC @ outcome.point.params["x"], SLOPE
    torch.testing.assert_close(paid, -fall / 4.0, rtol=1e-6, atol=0)  # at its end P rises by 1/mu for a fall of S by 1


def test_the_scale_is_at_least_what_keeps_the_least_p_of_the_model_from_being_below_0(run: Any):
    """F is a hundredth of how P bends: one measurement may raise the scale to 8, what P can fall by needs 100."""
    falling = _Of(lambda x: torch.exp(x @ SLOPE))
    outcome, _ = run(falling, _half_square(METRIC), _half_square(METRIC), METRIC / 100,
                     replace(FREE, max_steps=2, drift_weight=1e-9, damping=1e-12))
    assert [step.curvature_scale for step in outcome.steps[:2]] == pytest.approx([1.0, 100.0])


@pytest.mark.parametrize(("budget", "drift", "won_back"), [(1e3, 9e-4, False), (1e3, 1.1e-3, True), (5e-3, 9e-4, True),
                                                           (5e-3, 4e-4, False)])
def test_no_drift_is_won_back_below_a_thousandth_or_a_tenth_of_the_budget(run: Any, budget: float, drift: float,
                                                                         won_back: bool):
    """The second step lies along the gradient of S alone, or along a mix with that of P."""
    eye = torch.eye(2).double()
    safety = _Of(lambda x: 1 + x[0] - x[1] + 3 * x[1]**2)  # its gradient turns on the way
    end = torch.tensor([-0.5, 0.5]).double()  # of a step whose slope foretells a fall by 1
    first = drift / float(_half_square(eye)(end))
    settings = replace(FREE, max_drift=budget, max_steps=5, drift_weight=1e-9, damping=1e-12, path_slack=1e6)
    _, seen = run(safety, _half_square(eye, first), _half_square(eye), eye, settings)
    slope = safety.gradient(SimpleNamespace(leaves={"x": seen[1]}))[1]["x"]
    step = seen[2] - seen[1]
    assert float(_half_square(eye, first)(seen[1])) == pytest.approx(drift)
    parallel = float(-step @ slope / (step.norm() * slope.norm()))
    assert (parallel < 0.999) == won_back and parallel > 0


def _at(safety: float, penalty: float = 0.0, drift: float = 0.0) -> Point:
    return Point({}, (safety,), drift, penalty, {}, {})


UNIT = Model(pp=0.0, sp=0.0, ss=1.0, scale=1.0)
"""S falls by nu and P rises by nu^2 / 2."""


def test_a_weight_is_bounded_by_what_is_allowed_in_units_of_p_less_what_is_spent():
    settings, state = Settings(), _State(goal=0.1, exchange=0.5, reach=0.5)
    assert _weight(settings, state, UNIT, _at(1.1, 0.3), 100.0) == pytest.approx(0.5)  # half of the gap of 1
    assert _weight(settings, state, UNIT, _at(1.1, 0.3), 0.16) == pytest.approx(math.sqrt(2 * (0.16 / 0.5 - 0.3)))


@pytest.mark.parametrize(("budget", "room"), [(0.03, 0.005), (0.006, 0.003)])
def test_in_the_tail_a_weight_reaches_the_goal_of_an_exponential_within_the_drift_of_the_tail(budget: float,
                                                                                              room: float):
    settings, state = Settings(max_drift=budget), _State(goal=0.05, exchange=2.0, reach=0.5)
    here, fall = 0.25, 0.25 * math.log(5)
    assert _weight(settings, state, replace(UNIT, ss=1e6), _at(here), 1.0) == pytest.approx(0.5 * fall / 1e6)
    bounded = math.sqrt(2 * (room / 2 - 1e-4))  # of D, two for one of P, of which something is spent
    assert _weight(settings, replace(state, reach=1.0), UNIT, _at(here, 1e-4), 1e-6) == pytest.approx(bounded)
    assert _weight(settings, state, UNIT, _at(0.3), 1.0) == pytest.approx(0.5 * 0.25)  # S is not in the tail


def test_the_tail_never_shortens_a_step():
    settings, state = Settings(max_drift=0.01), _State(goal=0.0)
    assert _weight(settings, state, UNIT, _at(0.25), 0.03) == pytest.approx(0.06**0.5)


@pytest.mark.parametrize(("safety", "drift", "taken"), [
    (0.54, 0.3, True), (0.56, 0.3, False), (0.54, 0.41, False),  # a tenth of the fall by 0.5 may be given back
    (0.49, 0.05, True), (0.6, 0.05, False)])
def test_from_beyond_what_is_allowed_a_step_wins_drift_back_and_keeps_most_of_s(safety: float, drift: float,
                                                                               taken: bool):
    assert _wins_back(_at(1.0), _at(0.5, drift=0.4), safety, drift) is taken


def test_a_step_is_refused_by_the_drift_that_was_measured_however_far_s_falls(run: Any):
    """D is a hundred times P, which the first attempt cannot know."""
    outcome, _ = run(_line(100.0), _half_square(METRIC, 100.0), _half_square(METRIC), METRIC,
                     replace(FREE, max_drift=0.1, drift_weight=1e-6))
    first = outcome.steps[0]
    assert first.decrease > 0 and first.drift > replace(FREE, max_drift=0.1).allowed(1) and not first.accepted


def test_what_is_allowed_is_brought_to_p_by_the_ratio_that_was_measured_last(run: Any):
    """D is a quarter of P: the first step spends a quarter of what is allowed, the second all of it."""
    settings = replace(FREE, max_drift=1.0, max_steps=10, path_slack=3.0, drift_weight=1e-6, damping=1e-12)
    outcome, _ = run(_line(100.0), _half_square(METRIC, 0.25), _half_square(METRIC), METRIC, settings)
    wanted = [0.25 * settings.allowed(1), settings.allowed(2)]
    assert [step.drift for step in outcome.steps[:2]] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("fall", "taken"), [(5e-6, False), (5e-5, True)])
def test_a_fall_that_may_be_one_of_rounding_is_none(run: Any, fall: float, taken: bool):
    budget = fall**2 / (2 * float(SLOPE @ torch.linalg.solve(METRIC, SLOPE)))  # P of a step that lowers S so far
    settings = replace(FREE, max_drift=budget, drift_weight=1e-9, damping=1e-12, path_slack=1.0, path_drift=0.0)
    outcome, _ = run(_line(1.0), _half_square(METRIC, 0.9), _half_square(METRIC), METRIC, settings)
    assert outcome.steps[0].decrease == pytest.approx(fall, rel=1e-3) and outcome.steps[0].accepted is taken


@pytest.mark.parametrize(("factor", "accepted", "lowered", "won_back", "scale", "reach", "back"), [
    (3.0, True, True, False, 3.0, 1.0, 0.5),  # what was measured is followed
    (1e9, True, True, False, 8.0, 1.0, 0.5),
    (1e-9, True, True, False, 1 / 8, 1.0, 0.5),
    (math.inf, False, False, False, 8.0, 0.25, 0.25),  # S rose: a step half as far
    (0.1, False, False, False, 2.0, 0.25, 0.25),
    (0.1, False, True, False, 2.0, 0.5, 0.25),  # P rose too much: a step less far
    (0.1, False, False, True, 1.0, 0.5, 0.0625),  # winning back made S rise: less of it
    (5.0, False, False, True, 5.0, 0.5, 0.0625)])
def test_a_measurement_moves_the_scale_by_eight_at_most_and_a_rejection_shortens_what_was_too_long(
        factor: float, accepted: bool, lowered: bool, won_back: bool, scale: float, reach: float, back: float):
    state = _State(goal=0.0, scale=10.0, reach=0.5, back=0.25)
    _learn(state, 10.0 * factor, accepted=accepted, lowered=lowered, won_back=won_back)
    assert (state.scale, state.reach, state.back) == pytest.approx((10.0 * scale, reach, back))


def test_reach_and_back_never_grow_beyond_the_whole():
    state = _State(goal=0.0, reach=0.75, back=0.75)
    _learn(state, 1.0, accepted=True, lowered=True, won_back=False)
    assert (state.reach, state.back) == (1.0, 1.0)


def test_without_curvature_the_damping_is_that_whose_step_to_the_goal_spends_what_is_allowed():
    settings, slope = Settings(max_drift=0.02, max_steps=10), {"x": SLOPE}
    nothing: Any = _Metric(torch.zeros(2, 2).double())
    found = _damping(nothing, settings, replace(_at(1.0), safety_gradient=slope), gap=0.7)
    d = 0.7 * SLOPE / (SLOPE @ SLOPE)
    assert 0.5 * found * float(d @ d) == pytest.approx(settings.allowed(1))


def test_a_step_that_had_drift_to_win_back_ends_no_run_as_converged(run: Any):
    """The path leaves the budget and comes back to it, where S rises; there are steps to lower it again."""
    settings = replace(FREE, max_drift=1.0, max_steps=10, path_slack=4.0, drift_weight=1e-9, damping=1e-12)
    outcome, seen = run(_line(100.0), _half_square(METRIC), _half_square(METRIC), METRIC, settings)
    drifts = [float(_half_square(METRIC)(x)) for x in seen]
    back = next(at for at in range(1, len(seen)) if drifts[at] <= 1.0 < drifts[at - 1])
    assert float(SLOPE @ seen[back]) > float(SLOPE @ seen[back - 1])
    assert len(seen) > back + 1 and outcome.stopped_because != "converged"


def test_whether_a_run_has_converged_does_not_depend_on_the_unit_of_s_d_and_p(run: Any):
    ends = []
    for unit in (1.0, 1e-3, 1e3):
        settings = replace(FREE, max_drift=1e3 * unit, max_steps=40, drift_weight=0.1, idle_drift=0.0, path_drift=0.0)
        safety = _Of(lambda x, unit=unit: unit * torch.exp(x @ SLOPE), 0.0)
        outcome, _ = run(safety, _half_square(METRIC, unit), _half_square(METRIC, unit), unit * METRIC, settings)
        ends.append((outcome.stopped_because, len(outcome.steps)))
    assert ends[0][0] == "converged" and ends == 3 * ends[:1] and ends[0][1] < 40


@pytest.mark.parametrize(("slope", "pulled"), [(-0.1, True), (0.1, False)])
def test_the_segment_to_a_path_that_ended_outside_is_followed_only_where_s_is_less(monkeypatch: pytest.MonkeyPatch,
                                                                                  slope: float, pulled: bool):
    def there(x: Tensor) -> tuple[tuple[float, ...], float, float]:
        return (1.0 + slope * float(x),), float(x)**2, 0.0

    monkeypatch.setattr(trust_region, "_values", lambda problem, params, cost: there(params["x"]))
    monkeypatch.setattr(trust_region, "evaluate",
                        lambda problem, params, cost: replace(_at(*there(params["x"])[0]), params=params))
    inside, outside = replace(_at(1.0), params={"x": torch.tensor(0.0)}), {"x": torch.tensor(1.0)}
    problem: Any = None
    found = trust_region._pulled_back(problem, replace(FREE, max_drift=0.25), _State(goal=0.0), inside, outside)
    if not pulled:
        assert found is inside
    else:
        assert 0.5 - 2**-8 <= float(found.params["x"]) <= 0.5
