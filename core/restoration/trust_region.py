"""Damped second-order steps on J = S + mu P under a drift budget, strength chosen by measured drift alone.

P is the drift D, or D at a temperature, which few rows tell more by. Each step solves delta = -(F + lambda I)^-1 grad J
with F the Gauss-Newton matrix of P, is cut to a trust region and to the drift that the quadratic model predicts, and
is taken only if J falls and the *measured* D on the fit rows stays within the budget. lambda follows the ratio of
measured to predicted decrease (Levenberg-Marquardt; Nocedal and Wright 2006, chapter 4).
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
from ..curvature.lbfgs import Pairs, two_loop
from ..curvature.operator import CurvatureOperator, Solution
from ..errors import NumericalError
from ..losses import Loss, gradient, gradient_beside, values
from ..params import Params, axpy, dot, scale, zeros
from .attribution import Attribution, Point
from .step import step_length

UNSPENT = 0.7
"""Of the budget: below it the drift's weight is halved, so that the last steps buy safety with what is left."""

LEAST_WEIGHT = 0.25
"""Of the weight at the start: with less, benign prompts were refused that no fit row stands for."""

MOST_SLACK = 40.0
"""Of the budget, however small it is."""

MEMORY = 10
"""Secant pairs kept: two adapter vectors each."""


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
class Settings:
    """How it is minimised.

    Attributes:
        engine: Name of a curvature engine.
        max_drift: Budget for D on the fit rows, nats per token, obeyed by the outcome.
        max_steps: Accepted steps at most.
        drift_weight: mu at the start; doubled while drift stays above what the path allows, halved (to a quarter at
            least) while 30% of the budget or more is unspent.
        path_slack: How many times the budget D may be on the way; what is allowed shrinks to the budget itself over
            the first 70% of the steps. Held to the budget from the start, steps creep along its boundary.
        path_drift: D that the way may come to where that is more, up to `MOST_SLACK` times the budget: the way out and
            back is as long for a small budget as for a large one.
        damping: Initial lambda as a fraction of the mean diagonal of F.
        tries: Step lengths tried from one gradient before giving up.
        max_products: Products a solve may take.
        near: A term of S counts as restored within this fraction of the base's value.
        least_decrease: A step that lowers J by less than this fraction of S at the start is the last one.
        secants: Whether the engine's inverse is corrected by the changes of the gradient along the path (L-BFGS with
            the damped engine as its first guess), which cost nothing.
        seed: Of sampled labels.
        low_memory: See `EngineInputs`.
    """

    engine: str = "fisher"
    max_drift: float = 0.01
    max_steps: int = 10
    drift_weight: float = 0.1
    path_slack: float = 4.0
    path_drift: float = 0.04
    damping: float = 1.0
    tries: int = 8
    max_products: int = 4
    near: float = 0.05
    least_decrease: float = 0.0001
    secants: bool = True
    seed: int = 0
    low_memory: bool = False

    @property
    def slack(self) -> float:
        """How many times the budget D may be at first."""
        return max(self.path_slack, min(self.path_drift / self.max_drift, MOST_SLACK))

    def allowed(self, number: int) -> float:
        """Return the drift that step `number` (from 1) may reach, nats per token."""
        share = max(0.0, 1.0 - number / max(1.0, 0.7 * self.max_steps))
        return self.max_drift * self.slack ** share


@dataclass(frozen=True)
class Step:
    """One attempt, as the report shows it; `damping` is lambda."""

    step: int
    objective: float
    drift: float
    damping: float
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
    """What one attempt hands to the next; `exchange` is D / P where it was measured last, `radius` is one of D."""

    damping: float
    radius: float
    weight: float
    exchange: float = 1.0
    steps: list[Step] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    diagonal: Diagonal | None = None
    pairs: Pairs = field(default_factory=Pairs)
    secants: Pairs = field(default_factory=lambda: deque(maxlen=MEMORY))


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


def is_restored(safety: Sequence[float], start: Sequence[float], losses: Sequence[Loss], near: float) -> bool:
    """Tell whether each term of S is within `near` of the base's value, relative to it (to the start where it is 0)."""
    return all(value <= target + near * (target or first)
               for value, first, target in zip(safety, start, (loss.target or 0.0 for loss in losses), strict=True))


def minimise(problem: Problem, settings: Settings, *, progress: Progress = no_progress,
             stage: str = "restoring") -> Outcome:
    """Run steps until S is restored, J has converged, the budget is spent, no step helps, or `max_steps`.

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
    state = _State(damping=0.0, radius=settings.slack * settings.max_drift, weight=settings.drift_weight)
    start = point = feasible = evaluate(problem, read_params(problem.live), state.cost)
    attribution, operator, why, end = Attribution({}, {}), None, "max_steps", start.params
    for number in range(1, settings.max_steps + 1):
        progress(stage, number - 1, settings.max_steps)
        if point is feasible and is_restored(point.safety, start.safety, problem.safety, settings.near):
            break
        if operator is None or ENGINES[settings.engine].fresh:
            operator = None  # frees a kept graph before the next is made
            operator = _operator(problem, settings, state)
            state.damping = state.damping or _first_damping(operator, settings, point)
        target, following = _search(problem, settings, state, operator, point, number)
        if target is None:
            why = "drift_budget_spent" if point.drift > 0.95 * settings.max_drift else "no_step_helps"
            break
        end = target
        last = number == settings.max_steps or _passes_left(settings, state) == 1
        if following is None and last and state.steps[-1].drift > settings.max_drift:
            break  # it is pulled back at once: a gradient there would serve nothing
        following = following or evaluate(problem, target, state.cost)
        _learn(state, settings, point, following)
        attribution = attribution.extended(point, following)
        point = following
        feasible = point if point.drift <= settings.max_drift else feasible
        state.weight = _reweighted(state.weight, point.drift, settings, number)
        if not _passes_left(settings, state):
            break
        if point is feasible and state.steps[-1].decrease < settings.least_decrease * sum(start.safety):
            why = "converged"
            break
    if end is not feasible.params:
        why = "drift_budget_spent"
        inside = _pull_back(problem, settings, state, feasible, end)
        attribution, point = attribution.extended(point, inside), inside
    if is_restored(point.safety, start.safety, problem.safety, settings.near):
        why = "restored"
    write_params(problem.live, point.params)
    progress(stage, settings.max_steps, settings.max_steps)
    return Outcome(point, start, tuple(state.steps), why, state.cost, attribution)


def _reweighted(weight: float, drift: float, settings: Settings, number: int) -> float:
    """The weight of P after a step: twice where drift is over what the next may have, half where it is unspent."""
    if drift > settings.allowed(number + 1):
        return 2.0 * weight
    return max(0.5 * weight, LEAST_WEIGHT * settings.drift_weight) if drift < UNSPENT * settings.max_drift else weight


def _operator(problem: Problem, settings: Settings, state: _State) -> CurvatureOperator:
    """Make the engine's operator at the model's present parameters, counting its passes."""
    engine = ENGINES[settings.engine]
    losses = (problem.kept_low,)
    if engine.needs_diagonal and state.diagonal is None:
        state.diagonal = diagonal_fisher(problem.live, losses, seed=settings.seed)
    if not state.steps:
        state.cost.gradient_passes += engine.score_passes
        state.cost.score_passes += engine.score_passes
    return engine.make(EngineInputs(problem.live, losses, settings.seed, settings.low_memory, settings.max_products,
                                    state.diagonal, state.pairs))


def _first_damping(operator: CurvatureOperator, settings: Settings, point: Point) -> float:
    """lambda_0: a multiple of the mean diagonal; with no curvature, what halves S by the linear model."""
    if operator.mean_diagonal > 0:
        return settings.damping * operator.mean_diagonal
    # A saturated model has a gradient of exactly 0: no step helps, whatever its damping.
    return 2 * dot(point.safety_gradient, point.safety_gradient) / max(sum(point.safety), 1e-12) or 1.0


def _passes_left(settings: Settings, state: _State) -> int:
    """Return how many gradient passes a run may still take: one a step, the first gradient, the scores."""
    return settings.max_steps + 2 - state.cost.gradient_passes


def _search(problem: Problem, settings: Settings, state: _State, operator: CurvatureOperator, point: Point,
            number: int) -> tuple[Params | None, Point | None]:
    """Try damped steps from one gradient until one is acceptable.

    After a step that was accepted at once the next one most likely is, too, so its gradient is taken with its values:
    that saves a forward pass, and costs a backward pass where it is rejected after all.

    Returns:
        Parameters of the step, None where none is acceptable; and the gradients there where they were taken.
    """
    for attempt in range(settings.tries):
        slope_of_j = axpy(state.weight, point.penalty_gradient, point.safety_gradient)
        before = sum(point.safety) + state.weight * point.penalty
        solution = _solve(operator, slope_of_j, state)
        state.cost.curvature_products += solution.products
        delta, bend = scale(-1.0, solution.x), dot(solution.x, solution.image)
        length = step_length(metric=bend + state.damping * dot(delta, delta), bend=bend,
                             slope=dot(point.penalty_gradient, delta), drift=point.penalty,
                             radius=state.radius / state.exchange, budget=settings.allowed(number) / state.exchange)
        delta, bend = scale(length, delta), length * length * bend
        predicted = -(dot(slope_of_j, delta) + 0.5 * bend)
        at_once = sum(step.step == number - 1 for step in state.steps) == 1
        hopeful = attempt == 0 and at_once and _passes_left(settings, state) > 1
        safety, drift, penalty, there = _tried(problem, axpy(1.0, delta, point.params), state.cost,
                                               with_gradient=hopeful)
        after = sum(safety) + state.weight * penalty
        if 0 < drift < math.inf and 0 < penalty < math.inf:
            state.exchange = drift / penalty
        accepted = math.isfinite(after) and after < before and drift <= max(settings.allowed(number), point.drift)
        state.steps.append(Step(number, after, drift, state.damping, accepted, predicted, before - after,
                                solution.relative_residual))
        _adapt(state, accepted=accepted, ratio=(before - after) / predicted if predicted > 0 else 0.0)
        if accepted:
            return axpy(1.0, delta, point.params), there
        # More damping alone never brings drift back that the path no longer allows; more weight on it does.
        state.weight *= 4.0 if point.drift > settings.allowed(number) else 1.0
    write_params(problem.live, point.params)
    return None, None


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


def _solve(operator: CurvatureOperator, v: Params, state: _State) -> Solution:
    """(F + lambda I)^-1 v, corrected by the secant pairs (s, y + lambda s) of the path where there are any."""
    if not state.secants:
        return operator.solve(v, state.damping)
    inner: list[Solution] = []

    def first(q: Params) -> Params:
        inner.append(operator.solve(q, state.damping))
        return inner[-1].x

    x = two_loop(v, [(s, axpy(state.damping, s, y)) for s, y in state.secants], first)
    image = {name: v[name] - state.damping * x[name] for name in v}
    return Solution(x, image, inner[0].relative_residual, inner[0].products, "secants")


def _learn(state: _State, settings: Settings, here: Point, there: Point) -> None:
    """Keep the pair (step, change of grad J) where J curves upward along it."""
    if not settings.secants:
        return
    step = axpy(-1.0, here.params, there.params)
    change = axpy(state.weight, axpy(-1.0, here.penalty_gradient, there.penalty_gradient),
                  axpy(-1.0, here.safety_gradient, there.safety_gradient))
    if dot(step, change) > 0:
        state.secants.append((step, change))


def _pull_back(problem: Problem, settings: Settings, state: _State, inside: Point, outside: Params) -> Point:
    """Return the point on the segment between two that is nearest to `outside` and within the budget."""
    way = axpy(-1.0, inside.params, outside)
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        _, drift, _ = _values(problem, axpy(middle, way, inside.params), state.cost)
        low, high = (middle, high) if drift <= settings.max_drift else (low, middle)
    return evaluate(problem, axpy(low, way, inside.params), state.cost)


def _adapt(state: _State, *, accepted: bool, ratio: float) -> None:
    """Levenberg-Marquardt: more damping and a smaller region where the model was wrong, less where it was right."""
    if not accepted or ratio < 0.25:
        state.damping *= 4.0
        state.radius *= 0.25 if not accepted else 1.0
    elif ratio > 0.75:
        state.damping /= 3.0
        state.radius *= 2.0
