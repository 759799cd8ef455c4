"""The minimiser: what every accepted step keeps to, why it stops, and what it says it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint.session import read_params, write_params
from saferestore.core.config import ENGINES
from saferestore.core.curvature import engines
from saferestore.core.curvature.fisher import fisher
from saferestore.core.errors import NumericalError
from saferestore.core.losses import (
    AnswerLogits,
    Loss,
    answer_logits,
    cross_entropy,
    gradient,
    kl_divergence,
    log_probabilities,
)
from saferestore.core.params import axpy
from saferestore.core.restoration import trust_region
from saferestore.core.restoration.attribution import Attribution, Point
from saferestore.core.restoration.settings import Settings
from saferestore.core.restoration.trust_region import GIVEN_BACK, Outcome, Problem, is_restored, minimise
from torch import Tensor

from .. import dense
from ..cases import live_model, ragged_batches

SAFE, RETAIN = ragged_batches(5, seed=1), ragged_batches(6, seed=2)


def _problem(*, target: float | None = 0.0, safety: Loss | None = None, temperature: float | None = None) -> Problem:
    """Learn some answers while other rows keep their distributions, held by a softened divergence if asked."""
    live = live_model()
    reference = log_probabilities(live.model, RETAIN)
    drift = kl_divergence("D", RETAIN, reference.__getitem__)
    soft = kl_divergence("P", RETAIN, reference.__getitem__, temperature=temperature) if temperature else None
    return Problem(live, (safety or cross_entropy("anchor", SAFE, target=target),), drift, soft)


def _measured(problem: Problem) -> tuple[float, float]:
    """S and D at the model's present parameters, written out."""
    live, now = problem.live, read_params(problem.live)
    safety = float(dense.cross_entropy(live, dense.flat(now), SAFE))
    write_params(live, read_params(live_model()))
    start = dense.probabilities(live, RETAIN)
    write_params(live, now)
    return safety, float(dense.divergence(live, dense.flat(now), RETAIN, start))


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=[(engine, None) for engine in ENGINES] + [("fisher", 2.0), ("cg", 3.0)])
def ran(request: pytest.FixtureRequest) -> tuple[Problem, Settings, Outcome]:
    """A short run of every engine."""
    engine, temperature = request.param
    problem = _problem(temperature=temperature)
    settings = Settings(engine=engine, max_drift=0.05, max_steps=4, max_products=4)
    return problem, settings, minimise(problem, settings)


def test_the_outcome_holds_the_models_parameters_and_their_measured_values(ran: tuple[Problem, Settings, Outcome]):
    problem, _, outcome = ran
    assert _same(outcome.point.params, read_params(problem.live))
    safety, drift = _measured(problem)
    assert sum(outcome.point.safety) == pytest.approx(safety, rel=1e-9)
    assert outcome.point.drift == pytest.approx(drift, rel=1e-6)


def _keeps_the_rules(settings: Settings, outcome: Outcome) -> bool:
    """Every accepted step lowers S within what is allowed or, from beyond it, wins drift back and keeps most of S."""
    drift, start, good = outcome.start.drift, sum(outcome.start.safety), []
    for step in (step for step in outcome.steps if step.accepted):
        allowed, before = settings.allowed(step.step), step.objective + step.decrease
        lost = -step.decrease <= GIVEN_BACK * (start - before) + 1e-12
        good.append(step.drift < drift and lost if drift > allowed else step.decrease > 0 and step.drift <= allowed)
        drift = step.drift
    return all(good) and bool(good)


def test_accepted_steps_lower_the_objective_within_what_the_path_allows(ran: tuple[Problem, Settings, Outcome]):
    _, settings, outcome = ran
    assert _keeps_the_rules(settings, outcome)


@pytest.mark.parametrize("budget", [1e-4, 1e-3, 0.02])
def test_from_beyond_what_is_allowed_drift_is_won_back_and_most_of_s_kept(budget: float):
    settings = Settings(max_drift=budget, max_steps=12)
    outcome = minimise(_problem(), settings)
    assert _keeps_the_rules(settings, outcome)
    drifts = [step.drift for step in outcome.steps if step.accepted]
    assert max(drifts) > budget >= outcome.point.drift  # the way did leave the budget


@pytest.mark.parametrize(("prize", "kept"), [(2.0, False), (0.17, True)])
def test_a_step_that_wins_drift_back_is_refused_where_it_gives_back_more_than_a_tenth_of_the_fall_of_s(
        prize: float, kept: bool):
    """A term without a slope falls by a prize where the first step ends, and rises by it on the way back."""
    settings = Settings(engine="fisher", max_drift=0.01, max_steps=2, path_slack=1e7, aim=1.0)
    problem, together = _problem(), ragged_batches(6, batch_size=6, seed=2)
    drift = kl_divergence("D", together, log_probabilities(problem.live.model, together).__getitem__)

    def near(number: int, out: AnswerLogits) -> Tensor:
        return 0.0 * out.logits.sum() + prize * (float(drift.contribution(number, out).detach()) < 0.53)

    term = Loss("near", together, near, 0.0, target=prize)
    outcome = minimise(replace(problem, safety=(*problem.safety, term)), settings)
    first, second = outcome.steps[:2]
    assert (first.step, second.step, first.accepted, second.accepted) == (1, 2, True, kept)
    assert first.drift > second.drift > settings.allowed(2) and second.decrease < 0 < first.decrease


def _times(factor: float, loss: Loss) -> Loss:
    return replace(loss, contribution=lambda number, out: factor * loss.contribution(number, out),
                   token_weight=factor * loss.token_weight)


def test_a_penalty_that_is_a_multiple_of_the_drift_makes_the_same_steps():
    """The first goes to the goal, the second to what is allowed, which it knows in units of P by then."""
    settings = Settings(engine="fisher", max_drift=0.3, max_steps=2, path_slack=100.0, tail=0.0)
    one, problem = minimise(_problem(), settings), _problem()
    quarter = replace(problem, penalty=_times(0.25, problem.drift))
    other = minimise(quarter, replace(settings, drift_weight=4 * settings.drift_weight))
    assert [step.accepted for step in other.steps] == [step.accepted for step in one.steps]
    assert [step.drift for step in other.steps] == pytest.approx([step.drift for step in one.steps], rel=1e-6)
    assert one.steps[0].accepted and one.steps[0].drift > settings.allowed(2)


def test_the_outcome_stays_within_the_budget(ran: tuple[Problem, Settings, Outcome]):
    problem, settings, outcome = ran
    assert outcome.point.drift <= settings.max_drift
    assert _measured(problem)[1] <= settings.max_drift


def test_what_the_path_allows_shrinks_to_the_budget_and_ends_there():
    settings = Settings(max_drift=0.01, max_steps=10, path_slack=20.0)
    allowed = [settings.allowed(number) for number in range(1, 11)]
    assert allowed == sorted(allowed, reverse=True)
    assert 0.01 < allowed[0] < 0.2 and allowed[6:] == [0.01] * 4
    assert Settings(max_drift=0.01, path_slack=1.0, path_drift=0.0).allowed(1) == 0.01


@pytest.mark.parametrize(("budget", "slack"), [(0.1, 4.0), (0.01, 4.0), (0.004, 10.0), (0.001, 40.0), (1e-9, 40.0)])
def test_the_way_may_come_to_as_much_drift_for_a_small_budget_as_for_a_large_one(budget: float, slack: float):
    settings = Settings(max_drift=budget, max_steps=10)
    assert settings.slack == pytest.approx(slack)
    assert settings.allowed(1) == pytest.approx(budget * slack ** (6 / 7)) and settings.allowed(7) == budget


def test_safety_improves_and_some_drift_is_paid_for_it(ran: tuple[Problem, Settings, Outcome]):
    _, settings, outcome = ran
    assert sum(outcome.point.safety) < sum(outcome.start.safety) - 0.01
    assert 0 < outcome.point.drift <= settings.max_drift and abs(outcome.start.drift) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_cost_counts_every_pass(monkeypatch: pytest.MonkeyPatch, engine: str):
    calls: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **named)
        return call

    for name in ("gradient_beside", "values"):
        monkeypatch.setattr(trust_region, name, counting(name, getattr(trust_region, name)))
    settings = Settings(engine=engine, max_drift=0.05, max_steps=4, max_products=4)
    outcome = minimise(_problem(), settings)
    cost, tries = outcome.cost, Counter(step.step for step in outcome.steps)
    assert cost.score_passes == engines.ENGINES[engine].score_passes
    assert cost.gradient_passes == calls["gradient_beside"] + cost.score_passes
    assert cost.forward_passes == calls["values"] > 0
    assert calls["values"] < len(outcome.steps) + 8  # some values came with their gradient; 8 halvings at most
    assert cost.gradient_passes <= settings.max_steps + 1 + max(1, cost.score_passes)
    assert (cost.curvature_products > 0) == (engine in ("cg", "lbfgs"))
    assert cost.curvature_products <= 2 * len(tries) * settings.max_products


@pytest.mark.parametrize(("budget", "max_steps"), [(1e-4, 10), (1e-3, 1), (1e-2, 3), (0.3, 3)])
@pytest.mark.parametrize("engine", ["ekfac", "identity"])
def test_gradient_passes_never_exceed_the_steps_allowed_the_first_and_the_scores(budget: float, max_steps: int,
                                                                                 engine: str):
    outcome = minimise(_problem(), Settings(engine=engine, max_drift=budget, max_steps=max_steps))
    assert outcome.cost.gradient_passes <= max_steps + (3 if engine == "ekfac" else 2)
    assert outcome.point.drift <= budget


def test_the_scale_of_the_model_follows_the_measurements(ran: tuple[Problem, Settings, Outcome]):
    *_, outcome = ran
    for before, after in zip(outcome.steps, outcome.steps[1:], strict=False):
        assert after.damping == before.damping
        change = after.curvature_scale / before.curvature_scale
        if not before.accepted:
            assert change >= 2 * (1 - 1e-12)  # a step less far
        assert change >= (1 - 1e-12) / 8


def test_engines_by_products_report_their_residual(ran: tuple[Problem, Settings, Outcome]):
    _, settings, outcome = ran
    for step in outcome.steps:
        assert (step.relative_residual is not None) == (settings.engine in ("cg", "lbfgs"))


def test_attributions_add_up_to_the_measured_changes(ran: tuple[Problem, Settings, Outcome]):
    *_, outcome = ran
    assert set(outcome.attribution.gain) == set(outcome.attribution.cost) == set(outcome.point.params)
    fall = sum(outcome.start.safety) - sum(outcome.point.safety)
    assert sum(outcome.attribution.gain.values()) == pytest.approx(fall, rel=1e-9)
    assert sum(outcome.attribution.cost.values()) == pytest.approx(outcome.point.drift, rel=1e-9)


def _point(x: float, value: float, slope: float) -> Point:
    """A function of one parameter with safety = drift = `value`."""
    params, gradient_there = ({"x": torch.tensor([t], dtype=torch.float64)} for t in (x, slope))
    return Point(params, (value,), value, value, gradient_there, gradient_there)


def test_a_step_along_which_nothing_has_a_slope_explains_nothing():
    account = Attribution({}, {}).extended(_point(0.0, 1.0, 0.0), _point(1.0, 2.0, 0.0))
    assert (account.gain["x"], account.cost["x"]) == (0.0, 0.0)


def test_parts_are_the_integrated_gradients_but_for_an_error_of_second_order():
    """f(x, y) = x^4 + x y^2 from a point along (h, 2h): its integrals by x and by y, by Gauss's rule."""
    nodes = torch.tensor([-1.0, 0.0, 1.0]).double() * 0.6**0.5 / 2 + 0.5
    weights = torch.tensor([5.0, 8.0, 5.0]).double() / 18
    errors = []
    for h in (0.4, 0.2, 0.1):
        def point(t: float, h: float = h) -> Point:
            x, y = 1 + t * h, 1 + 2 * t * h
            value = torch.tensor(4 * x**3 + y**2).double(), torch.tensor(2 * x * y).double()
            slopes = dict(zip("xy", value, strict=True))
            return Point({"x": torch.tensor(x).double(), "y": torch.tensor(y).double()}, (x**4 + x * y**2,), 0.0, 0.0,
                         slopes, slopes)

        found = Attribution({}, {}).extended(point(0.0), point(1.0)).gain["x"]
        wanted = -h * sum(float(w * point(float(t)).safety_gradient["x"]) for t, w in zip(nodes, weights, strict=True))
        errors.append(abs(found / wanted - 1))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.4)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.4)


def test_it_stops_when_every_term_is_near_the_bases_value():
    start = sum(minimise(_problem(), Settings(max_steps=1)).start.safety)
    outcome = minimise(_problem(target=0.95 * start), Settings(max_drift=1.0, max_steps=30))
    assert outcome.stopped_because == "restored"
    assert outcome.point.safety[0] <= (0.95 + 0.005 * 0.05) * start
    assert len([step for step in outcome.steps if step.accepted]) < 30


def test_steps_go_on_to_their_share_of_the_bases_value():
    start = sum(minimise(_problem(), Settings(max_steps=1)).start.safety)
    there, further = (minimise(_problem(target=0.9 * start), Settings(max_drift=100.0, max_steps=30, aim=aim))
                      for aim in (1.0, 0.7))
    assert there.stopped_because == further.stopped_because == "restored"
    assert 0.63 * start < there.point.safety[0] <= (0.9 + 0.0005 * 0.1) * start
    assert further.point.safety[0] <= (0.63 + 0.0005 * 0.37) * start
    assert sum(step.accepted for step in further.steps) < 30


def test_what_is_at_the_bases_value_already_is_left_alone_whatever_the_aim():
    start = sum(minimise(_problem(), Settings(max_steps=1)).start.safety)
    outcome = minimise(_problem(target=start), Settings(max_drift=100.0, aim=0.1))
    assert (outcome.stopped_because, outcome.steps) == ("restored", ())


def test_restored_by_the_last_step_allowed_is_restored():
    start = sum(minimise(_problem(), Settings(max_steps=1)).start.safety)
    free = minimise(_problem(target=0.9 * start), Settings(max_drift=100.0, max_steps=30))
    needed = sum(step.accepted for step in free.steps)
    outcome = minimise(_problem(target=0.9 * start), Settings(max_drift=100.0, max_steps=needed))
    assert (free.stopped_because, outcome.stopped_because) == ("restored", "restored")


def test_what_is_restored_already_is_left_bit_for_bit_at_the_cost_of_one_pass():
    problem = _problem(target=1e9)
    before = read_params(problem.live)
    outcome = minimise(problem, Settings())
    assert (outcome.stopped_because, outcome.steps, outcome.cost.gradient_passes) == ("restored", (), 1)
    assert _same(before, read_params(problem.live)) and _same(before, outcome.point.params)


def test_zero_steps_leave_the_parameters_bit_for_bit():
    problem = _problem()
    before = read_params(problem.live)
    outcome = minimise(problem, Settings(max_steps=0))
    assert outcome.stopped_because == "max_steps" and not outcome.steps
    assert _same(before, read_params(problem.live))


def test_it_stops_at_the_steps_allowed():
    outcome = minimise(_problem(), Settings(max_drift=10.0, max_steps=2))
    assert outcome.stopped_because == "max_steps"
    assert sum(step.accepted for step in outcome.steps) == 2


def test_it_stops_when_the_drift_budget_is_spent():
    outcome = minimise(_problem(), Settings(max_drift=1e-4, max_steps=10))
    assert outcome.stopped_because == "drift_budget_spent"
    assert 0.95e-4 < outcome.point.drift <= 1e-4


def _false_slope(_: int, out: AnswerLogits) -> Tensor:
    """A constant that claims a gradient."""
    return out.logits.square().sum() - out.logits.square().sum().detach() + 1.0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_of_zero_moves_nothing_whatever_the_engine(engine: str):
    """What a saturated model gives: no engine may divide by it."""
    flat = Loss("flat", SAFE, lambda _, out: 0.0 * out.logits.sum() + 1.0, 0.0, 0.0)
    problem = _problem(safety=flat)
    before = read_params(problem.live)
    outcome = minimise(problem, Settings(engine=engine, tries=2))
    assert outcome.stopped_because == "no_step_helps" and not any(step.accepted for step in outcome.steps)
    assert _same(before, read_params(problem.live))


def test_it_stops_and_moves_nothing_when_no_step_helps():
    problem = _problem(safety=Loss("false", SAFE, _false_slope, 0.0, 0.0))
    before = read_params(problem.live)
    outcome = minimise(problem, Settings(tries=5))
    assert outcome.stopped_because == "no_step_helps"
    assert [step.accepted for step in outcome.steps] == [False] * 5
    assert _same(before, read_params(problem.live)) and _same(before, outcome.point.params)


def test_an_attempt_that_is_not_finite_is_refused_and_shortened():
    problem = _problem()
    plain = problem.safety[0]
    at_start = [answer_logits(problem.live.model, batch).logits.detach() for batch in SAFE]

    def broken_further_away(number: int, out: AnswerLogits) -> Tensor:
        near = float((out.logits.detach() - at_start[number]).abs().max()) < 0.03
        return plain.contribution(number, out) * (1.0 if near else math.nan)

    broken = replace(problem, safety=(replace(plain, contribution=broken_further_away),))
    outcome = minimise(broken, Settings(tries=12, max_steps=1))
    assert not outcome.steps[0].accepted and not math.isfinite(outcome.steps[0].objective)
    assert outcome.steps[-1].accepted and math.isfinite(sum(outcome.point.safety))


def _change(settings: Settings) -> float:
    """How far the logits on the safe rows have moved when a clean run ends."""
    problem = _problem()
    at_start = [answer_logits(problem.live.model, batch).logits.detach() for batch in SAFE]
    minimise(problem, settings)
    moved = [answer_logits(problem.live.model, batch).logits.detach() for batch in SAFE]
    return max(float((there - here).abs().max()) for here, there in zip(at_start, moved, strict=True))


def test_a_gradient_that_is_not_finite_at_a_hopeful_attempt_rejects_it_and_counts_as_a_pass():
    settings = Settings(engine="fisher", max_drift=10.0, max_steps=3, damping=100.0)
    between = (_change(replace(settings, max_steps=1)) + _change(replace(settings, max_steps=2))) / 2
    problem = _problem()
    plain = problem.safety[0]
    at_start = [answer_logits(problem.live.model, batch).logits.detach() for batch in SAFE]

    def broken_far_away(number: int, out: AnswerLogits) -> Tensor:
        near = float((out.logits.detach() - at_start[number]).abs().max()) < between
        return plain.contribution(number, out) * (1.0 if near else math.nan)

    broken = replace(problem, safety=(replace(plain, contribution=broken_far_away),))
    outcome = minimise(broken, settings)
    first, second = outcome.steps[0], outcome.steps[1]
    assert first.accepted and not second.accepted and not math.isfinite(second.objective)
    assert math.isfinite(sum(outcome.point.safety)) and outcome.cost.gradient_passes <= settings.max_steps + 2
    assert outcome.cost.forward_passes == len(outcome.steps) - 1


def test_a_loss_that_is_not_finite_at_the_start_is_an_error():
    problem = _problem()
    problem.live.model.get_base_model().model.norm.weight.data[0] = math.nan
    with pytest.raises(NumericalError, match="`anchor`"):
        minimise(problem, Settings())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_huge_damping_moves_along_the_gradient(engine: str):
    problem = _problem()
    slope = dense.flat(gradient(problem.live, problem.safety[0])[1])  # the drift has none here
    outcome = minimise(problem, Settings(engine=engine, damping=1e5, max_steps=1))
    moved = dense.flat(outcome.point.params) - dense.flat(outcome.start.params)
    assert float(moved @ -slope / (moved.norm() * slope.norm())) == pytest.approx(1, abs=1e-6)


def test_the_first_fisher_step_is_the_dense_damped_step():
    problem, settings = _problem(), Settings(engine="fisher", damping=3.0, max_steps=1, max_drift=100.0, seed=7)
    rows = torch.cat(list(fisher(problem.live, [problem.drift], seed=7).rows.values()), dim=1)
    matrix = rows.T @ rows
    slope = dense.flat(gradient(problem.live, problem.safety[0])[1])
    wanted = -dense.damped_solve(matrix, 3.0 * float(matrix.diagonal().mean()), slope)
    outcome = minimise(problem, settings)
    moved = dense.flat(outcome.point.params) - dense.flat(outcome.start.params)
    cosine = float(moved @ wanted / (moved.norm() * wanted.norm()))
    if outcome.steps[0].accepted:
        assert cosine == pytest.approx(1, abs=1e-9)
    assert outcome.steps[0].damping == pytest.approx(3.0 * float(matrix.diagonal().mean()), rel=1e-9)


def test_the_same_seed_gives_the_same_run_bit_for_bit():
    runs = [minimise(_problem(), Settings(max_steps=2)) for _ in range(2)]
    assert _same(runs[0].point.params, runs[1].point.params) and runs[0].steps == runs[1].steps


def test_low_memory_gives_the_same_run():
    for engine in ("fisher", "cg"):
        runs = [minimise(_problem(), Settings(engine=engine, max_steps=2, max_products=3, low_memory=low))
                for low in (False, True)]
        torch.testing.assert_close(dense.flat(runs[0].point.params), dense.flat(runs[1].point.params))


def test_progress_is_told_and_ends_at_its_total():
    seen: list[tuple[str, int, int]] = []
    minimise(_problem(), Settings(max_steps=3), progress=lambda *call: seen.append(call), stage="here")
    assert [call[0] for call in seen] == ["here"] * len(seen)
    assert seen[0][1] == 0 and seen[-1][1] == seen[-1][2]


def test_terms_are_restored_when_next_to_nothing_of_the_gap_to_the_bases_value_is_left():
    losses = [cross_entropy("a", SAFE, target=2.0), cross_entropy("b", SAFE, target=0.0)]
    start = (9.0, 4.0)
    assert is_restored((2.7, 0.4), start, losses, 0.1)
    assert not is_restored((2.71, 0.4), start, losses, 0.1)
    assert not is_restored((2.7, 0.41), start, losses, 0.1)
    assert is_restored((2.0, 0.0), (1.0, 0.0), losses, 0.1) and not is_restored((2.1, 0.0), (1.0, 0.0), losses, 0.1)
    assert is_restored((1.8, 0.4), start, losses, 0.1, aim=0.5)
    assert not is_restored((1.81, 0.4), start, losses, 0.1, aim=0.5)


def test_a_fresh_adapter_is_scored_again_once_its_second_factor_is_no_longer_zero():
    """With B = 0 the outputs do not depend on A to first order, so the scores by A are 0."""
    problem = _problem()
    write_params(problem.live, {name: t * (".lora_A." in name) for name, t in read_params(problem.live).items()})
    reference = log_probabilities(problem.live.model, RETAIN)
    problem = replace(problem, drift=kl_divergence("D", RETAIN, reference.__getitem__))
    start, settings = read_params(problem.live), Settings(engine="fisher", max_drift=1e3, max_steps=4)
    first = minimise(problem, replace(settings, max_steps=1)).point.params
    dampings = [settings.damping * fisher(problem.live, [problem.drift], seed=0).mean_diagonal
                for params in (start, first) if write_params(problem.live, params) is None]
    write_params(problem.live, start)
    outcome = minimise(problem, settings)
    assert outcome.cost.score_passes == 2 and outcome.cost.gradient_passes <= 7
    assert [step.damping for step in outcome.steps if step.accepted][:2] == pytest.approx(dampings, rel=1e-6)
    assert dampings[1] > 1.01 * dampings[0]


def _all_but_refused() -> Problem:
    """A loss of margins that are 4 nats at the start and grow together, so that S is 0.02 nats per token."""
    def contrast(out: AnswerLogits) -> Tensor:
        return 5.0 * (out.logits[..., 0] - out.logits[..., 1]).mean()

    with torch.no_grad():
        at_first = [contrast(answer_logits(live_model().model, batch)) for batch in SAFE]

    def logistic(number: int, out: AnswerLogits) -> Tensor:
        return torch.nn.functional.softplus(at_first[number] - 4.0 - contrast(out)) / len(SAFE)

    return _problem(safety=Loss("tail", SAFE, logistic, 0.0, target=0.002))


def test_in_the_tail_of_s_fewer_passes_come_to_the_same_goal():
    long, short = (minimise(_all_but_refused(), Settings(max_drift=100.0, max_steps=40, tail=tail))
                   for tail in (0.3, 0.0))
    assert sum(long.start.safety) == pytest.approx(math.log1p(math.exp(-4.0)))
    assert long.stopped_because == short.stopped_because == "restored"
    assert long.cost.gradient_passes < short.cost.gradient_passes - 1


def test_a_step_is_longer_for_the_tail_within_its_share_of_the_budget_alone():
    settings = Settings(max_steps=2)
    none, off, some = (minimise(_all_but_refused(), each)
                       for each in (replace(settings, tail_drift=0.0), replace(settings, tail=0.0), settings))
    assert _same(none.point.params, off.point.params)
    assert sum(some.point.safety) < 0.5 * sum(off.point.safety)


@pytest.mark.parametrize(("idle_drift", "max_drift", "alone"),
                         [(9.0, 100.0, True), (0.0, 100.0, False), (9.0, 1.0, False)])
def test_no_drift_is_won_back_while_there_is_next_to_none(idle_drift: float, max_drift: float, alone: bool):
    """Which is a tenth of the budget at most."""
    settings = Settings(engine="identity", max_drift=max_drift, max_steps=1, path_slack=1.0, path_drift=0.0,
                        idle_drift=idle_drift)
    first = minimise(_problem(), settings).point
    second = minimise(_problem(), replace(settings, max_steps=2)).point
    moved, slope = (dense.flat(axpy(-1.0, first.params, second.params)), dense.flat(first.safety_gradient))
    cosine = float(moved @ -slope / (moved.norm() * slope.norm()))
    assert (0.0 if alone else 0.1 * max_drift if idle_drift else 0.0) < first.drift
    assert (cosine > 1 - 1e-9) is alone
