"""Steps on J = S + mu P within a drift budget, strength chosen by measured drift alone.

P is the drift D, or D at a temperature, which few rows tell more by. Each step takes the gradients of S and P, solves
with F + lambda I for both, F the Gauss-Newton matrix of P at the start, and goes where the quadratic model has S reach
its goal, or as far as the drift that the path allows lets it, with the least P (`step.py`). How much more P bends than
the model says is measured at every attempt. A step is taken only if J falls and the *measured* D is within what the
path allows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..checkpoint.session import LiveModel, read_params, write_params
from ..config import Progress, no_progress
from ..curvature.diagonal import Diagonal, diagonal_fisher
from ..curvature.engines import ENGINES, EngineInputs
from ..curvature.lbfgs import Pairs
from ..curvature.operator import CurvatureOperator
from ..errors import NumericalError
from ..losses import Loss, gradient, gradient_beside, values
from ..params import Params, axpy, dot, scale, zeros
from .attribution import Attribution, Point
from .settings import Settings
from .step import Model, safety_weight, tail_fall

FASTEST = 8.0
"""The scale of the quadratic model changes by this factor an attempt at most: one measurement may be an accident."""

ROUNDING = 1e-5
"""Of S: a fall of J by less may be one of rounding, and is none."""

GIVEN_BACK = 0.1
"""Of the fall of S so far: what a step that wins drift back may lose of it."""


@dataclass(frozen=True)
class Problem:
    """What is minimised.

    Attributes:
        live: The model; its adapter is moved in place.
        safety: Terms of S.
        drift: D = KL(tuned || model) on retain rows: what the budget bounds and reports state.
        penalty: P, what steps keep low in its place, over the same batches; D itself where none is given.
    """

    live: LiveModel
    safety: tuple[Loss, ...]
    drift: Loss
    penalty: Loss | None = None

    @property
    def kept_low(self) -> Loss:
        """P."""
        return self.penalty or self.drift


@dataclass(frozen=True)
class Step:
    """One attempt, as the report shows it; `objective` is J, `damping` lambda, `curvature_scale` the s of `Model`."""

    step: int
    objective: float
    drift: float
    damping: float
    curvature_scale: float
    accepted: bool
    predicted_decrease: float
    decrease: float
    relative_residual: float | None


@dataclass
class Cost:
    """Work done: a gradient pass is one forward and backward over all fit rows.

    The pass that scores rows for a Fisher matrix runs over the retain rows alone, and is counted as a whole pass.
    Passes that only account for a finished change by module (`account_passes`) are no part of the method.
    """

    gradient_passes: int = 0
    score_passes: int = 0
    curvature_products: int = 0
    forward_passes: int = 0
    account_passes: int = 0


@dataclass(frozen=True)
class Outcome:
    """Where minimisation ended: the model holds `point.params`."""

    point: Point
    start: Point
    steps: tuple[Step, ...]
    stopped_because: str
    cost: Cost
    attribution: Attribution


@dataclass
class _State:
    """What one attempt hands to the next.

    Attributes:
        goal: What S is to come to.
        damping: lambda.
        scale: `Model.scale`.
        back: `Model.back`.
        reach: Share of the gap to the goal that a step aims at.
        exchange: D / P as measured last.
        steps: All attempts so far.
        cost: What they took.
        diagonal: Kept for engines that need one.
        pairs: Kept for `lbfgs`.
    """

    goal: float
    damping: float = 0.0
    scale: float = 1.0
    back: float = 1.0
    reach: float = 1.0
    exchange: float = 1.0
    steps: list[Step] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    diagonal: Diagonal | None = None
    pairs: Pairs = field(default_factory=deque)


def evaluate(problem: Problem, params: Params, cost: Cost) -> Point:
    """Move to `params` and take values and gradients of S and D there: one gradient pass."""
    write_params(problem.live, params)
    numbers, total = [], zeros(params)
    for loss in problem.safety:
        value, part = gradient(problem.live, loss)
        numbers.append(value)
        total = axpy(1.0, part, total)
    penalty, (drift,), penalty_gradient = gradient_beside(problem.live, problem.kept_low, [problem.drift])
    cost.gradient_passes += 1
    return Point(params, tuple(numbers), drift, penalty, total, penalty_gradient)


def _values(problem: Problem, params: Params, cost: Cost) -> tuple[tuple[float, ...], float, float]:
    """Return S by term, D and P."""
    write_params(problem.live, params)
    cost.forward_passes += 1
    drift, penalty = values(problem.live.model, [problem.drift, problem.kept_low])
    return tuple(loss.value(problem.live.model) for loss in problem.safety), drift, penalty


def is_restored(safety: Sequence[float], start: Sequence[float], losses: Sequence[Loss], near: float, *,
                aim: float = 1.0) -> bool:
    """Return whether no more than `near` of the gap between the start and the base's value is left in any term of S.

    Args:
        safety: Terms of S, nats per token.
        start: The same at the start.
        losses: What they are terms of, each with the base's value.
        near: Fraction of the gap.
        aim: Share of the base's value that takes its place.

    Returns:
        True where all terms are so near, or were lower from the start.
    """
    targets = (aim * (loss.target or 0.0) for loss in losses)
    return all(value <= target + near * max(0.0, first - target)
               for value, first, target in zip(safety, start, targets, strict=True))


def minimise(problem: Problem, settings: Settings, *, progress: Progress = no_progress,
             stage: str = "restoring") -> Outcome:
    """Run steps until S is where they aim, J has converged, the budget is spent, no step helps, or `max_steps`.

    Args:
        problem: The losses and the model, at the parameters to start from.
        settings: Engine, budget and limits.
        progress: Called after every step.
        stage: Name of the stage in progress.

    Returns:
        The outcome; the model is left at its parameters.

    Raises:
        NumericalError: A loss or gradient is not finite at accepted parameters.
    """
    state = _State(goal=settings.aim * sum(loss.target or 0.0 for loss in problem.safety))
    start = point = feasible = evaluate(problem, read_params(problem.live), state.cost)
    attribution, operator, why, end = Attribution({}, {}), None, "max_steps", start.params
    blind = not all(t.any() for t in start.params.values())  # where B = 0, F knows nothing of A
    for number in range(1, settings.max_steps + 1):
        progress(stage, number - 1, settings.max_steps)
        aim = settings.aim if number > 1 else 1.0  # what is restored already is left alone
        if point is feasible and is_restored(point.safety, start.safety, problem.safety, settings.near, aim=aim):
            break
        if operator is None or ENGINES[settings.engine].fresh or (blind and number == 2):
            operator = None  # frees a kept graph before the next is made
            operator = _operator(problem, settings, state, again=blind and number == 2)
            state.damping = state.damping or _damping(operator, settings, point, sum(point.safety) - state.goal)
        target, following = _search(problem, settings, state, operator, start, point, number)
        if target is None:
            why = "drift_budget_spent" if point.drift > 0.95 * settings.max_drift else "no_step_helps"
            break
        last = number == settings.max_steps or _passes_left(settings, state) == 1
        if following is None and last and state.steps[-1].drift > settings.max_drift:
            end = target
            break  # it is pulled back at once: a gradient there would serve nothing
        following = following or evaluate(problem, target, state.cost)
        settled = point.drift <= settings.max_drift  # else the step had drift to win back
        attribution = attribution.extended(point, following)
        point, end = following, following.params
        if point.drift <= settings.max_drift and (feasible is start or sum(point.safety) <= sum(feasible.safety)):
            feasible = point
        if not _passes_left(settings, state):
            break
        if settled and point is feasible and state.steps[-1].decrease < settings.least_decrease * sum(start.safety):
            why = "converged"
            break
    if end is not feasible.params:
        best = _pulled_back(problem, settings, state, feasible, end)
        why = why if best is feasible else "drift_budget_spent"
        attribution, point = attribution.extended(point, best), best
    if is_restored(point.safety, start.safety, problem.safety, settings.near):
        why = "restored"
    write_params(problem.live, point.params)
    progress(stage, settings.max_steps, settings.max_steps)
    return Outcome(point, start, tuple(state.steps), why, state.cost, attribution)


def _operator(problem: Problem, settings: Settings, state: _State, *, again: bool) -> CurvatureOperator:
    """Make the engine's operator at the model's present parameters, counting its passes; `again`: as at the start."""
    engine = ENGINES[settings.engine]
    losses = (problem.kept_low,)
    if again:
        state.diagonal, state.damping, state.scale = None, 0.0, 1.0
    if engine.needs_diagonal and state.diagonal is None:
        state.diagonal = diagonal_fisher(problem.live, losses, seed=settings.seed)
    if again or not state.steps:
        state.cost.gradient_passes += engine.score_passes
        state.cost.score_passes += engine.score_passes
    return engine.make(EngineInputs(problem.live, losses, settings.seed, settings.low_memory, settings.max_products,
                                    state.diagonal, state.pairs))


def _damping(operator: CurvatureOperator, settings: Settings, point: Point, gap: float) -> float:
    """lambda: a fraction of the mean diagonal; with no curvature, as if a step to the goal spent what is allowed."""
    if operator.mean_diagonal > 0:
        return settings.damping * operator.mean_diagonal
    slope = dot(point.safety_gradient, point.safety_gradient)
    # A saturated model has a gradient of exactly 0: no step helps, whatever its damping.
    return 2 * settings.allowed(1) * slope / max(gap, 1e-12)**2 or 1.0


def _passes_left(settings: Settings, state: _State) -> int:
    """Return how many gradient passes a run may still take: one a step, the first gradient, the scores (or one)."""
    return settings.max_steps + 1 + max(1, state.cost.score_passes) - state.cost.gradient_passes


def _search(problem: Problem, settings: Settings, state: _State, operator: CurvatureOperator, start: Point,
            point: Point, number: int) -> tuple[Params | None, Point | None]:
    """Try steps from one pair of gradients until one is acceptable.

    After a step that was accepted at once the next one most likely is, too, so its gradient is taken with its values:
    that saves a forward pass, and costs a backward pass where it is rejected after all.

    Returns:
        Parameters of the step, None where none is acceptable; and the gradients there where they were taken.
    """
    safer, held = (operator.solve(v, state.damping) for v in (point.safety_gradient, point.penalty_gradient))
    state.cost.curvature_products += safer.products + held.products
    products = {"pp": dot(point.penalty_gradient, held.x), "sp": dot(point.safety_gradient, held.x),
                "ss": dot(point.safety_gradient, safer.x)}
    here, allowed, mu = sum(point.safety), settings.allowed(number), settings.drift_weight
    # Without a slope of S a step within what is allowed could only follow the rounding of P.
    for attempt in range(settings.tries if products["ss"] > 0 or point.drift > allowed else 0):
        if point.penalty > 0:  # P is never below 0, so neither is the least that the model sees
            state.scale = max(state.scale, products["pp"] / (2 * point.penalty))
        back = state.back if point.drift > min(settings.idle_drift, 0.1 * settings.max_drift) else 0.0
        model = Model(**products, scale=state.scale, back=back)
        nu = min(1 / mu, _weight(settings, state, model, point, allowed))
        delta = scale(-1 / model.scale, axpy(nu, safer.x, scale(model.back, held.x)))
        at_once = sum(step.step == number - 1 for step in state.steps) == 1
        hopeful = attempt == 0 and at_once and _passes_left(settings, state) > 1
        target = axpy(1.0, delta, point.params)
        safety, drift, penalty, there = _tried(problem, target, state.cost, with_gradient=hopeful)
        after, rise = sum(safety), penalty - point.penalty
        decrease = here - after - mu * rise
        predicted = -model.safety_change(nu) - mu * model.penalty_change(nu)
        accepted = _wins_back(start, point, after, drift) if point.drift > allowed else (
            decrease > ROUNDING * here and drift <= allowed)
        state.steps.append(Step(number, after + mu * penalty, drift, state.damping, model.scale, accepted, predicted,
                                decrease, safer.relative_residual))
        _learn(state, model.measured_scale(nu, rise), accepted=accepted, lowered=after < here,
               won_back=drift < point.drift)
        if accepted:
            state.exchange = drift / penalty if drift > 0 and penalty > 0 else state.exchange
            return target, there
    write_params(problem.live, point.params)
    return None, None


def _weight(settings: Settings, state: _State, model: Model, point: Point, allowed: float) -> float:
    """Return nu of a step to the goal, by the slope of S or, where that is further, by its tail within less drift."""
    here, spent = sum(point.safety), max(0.0, point.penalty)
    nu = safety_weight(model, gap=state.reach * max(0.0, here - state.goal), room=allowed / state.exchange - spent)
    if here >= settings.tail:
        return nu
    room = min(settings.tail_drift, 0.5 * settings.max_drift) / state.exchange - spent
    return max(nu, safety_weight(model, gap=state.reach * tail_fall(here, state.goal, settings.furthest), room=room))


def _wins_back(start: Point, point: Point, safety: float, drift: float) -> bool:
    """Tell whether a step wins drift back and keeps most of the fall of S so far."""
    here = sum(point.safety)
    return drift < point.drift and safety <= here + GIVEN_BACK * max(0.0, sum(start.safety) - here)


def _learn(state: _State, measured: float, *, accepted: bool, lowered: bool, won_back: bool) -> None:
    """Follow how much P was measured to bend; after a rejection do less: of what S rose by, and go less far."""
    least = 1 / FASTEST if accepted else 1.0 if won_back and not lowered else 2.0
    state.scale *= min(FASTEST, max(least, measured / state.scale))
    if accepted:
        state.reach, state.back = min(1.0, 2 * state.reach), min(1.0, 2 * state.back)
    elif won_back and not lowered:
        state.back *= 0.25
    elif not lowered:
        state.reach *= 0.5


def _tried(problem: Problem, params: Params, cost: Cost, *,
           with_gradient: bool) -> tuple[tuple[float, ...], float, float, Point | None]:
    """Return S by term, D and P at `params`, with the gradients where they are asked for and finite."""
    if not with_gradient:
        return *_values(problem, params, cost), None
    try:
        there = evaluate(problem, params, cost)
    except NumericalError:  # a step too far is rejected, not an end of the run
        cost.gradient_passes += 1
        return (math.inf,), math.inf, math.inf, None
    return there.safety, there.drift, there.penalty, there


def _pulled_back(problem: Problem, settings: Settings, state: _State, inside: Point, outside: Params) -> Point:
    """Return the last point within the budget on the way from `inside` to `outside` where S is less, or `inside`."""
    way = axpy(-1.0, inside.params, outside)
    low, high, safety = 0.0, 1.0, math.inf
    for _ in range(8):
        middle = (low + high) / 2
        values_there, drift, _ = _values(problem, axpy(middle, way, inside.params), state.cost)
        if drift <= settings.max_drift:
            low, safety = middle, sum(values_there)
        else:
            high = middle
    return evaluate(problem, axpy(low, way, inside.params), state.cost) if safety < sum(inside.safety) else inside
