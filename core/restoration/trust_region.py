"""Damped second-order steps on J = S + mu D under a drift budget, strength chosen by measured drift alone.

Each step solves delta = -(F + lambda I)^-1 grad J, is cut to a trust region and to the drift that the quadratic model
predicts, and is taken only if J falls and the *measured* drift on the fit rows stays within the budget. lambda follows
the ratio of measured to predicted decrease (Levenberg-Marquardt; Nocedal and Wright 2006, chapter 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..checkpoint.session import LiveModel, read_params, write_params
from ..config import Progress, no_progress
from ..curvature.diagonal import Diagonal, diagonal_fisher
from ..curvature.engines import ENGINES, EngineInputs
from ..curvature.lbfgs import Pairs
from ..curvature.operator import CurvatureOperator
from ..losses import Loss, gradient
from ..params import Params, axpy, dot, scale, zeros


@dataclass(frozen=True)
class Problem:
    """What is minimised.

    Attributes:
        live: The model; its adapter is moved in place.
        safety: Terms of S.
        drift: D = KL(tuned || model) on retain rows.
    """

    live: LiveModel
    safety: tuple[Loss, ...]
    drift: Loss


@dataclass(frozen=True)
class Settings:
    """How it is minimised.

    Attributes:
        engine: Name of a curvature engine.
        max_drift: Budget for D on the fit rows, nats per token.
        max_steps: Gradient evaluations at most.
        drift_weight: mu.
        damping: Initial lambda as a fraction of the mean diagonal of F.
        tries: Step lengths tried from one gradient before giving up.
        max_products: Products a solve may take.
        near: A term of S counts as restored within this fraction of the base's value.
        curve_both: Whether F is the Gauss-Newton matrix of S + mu D instead of D alone.
        seed: Of sampled labels.
        low_memory: See `EngineInputs`.
    """

    engine: str = "fisher"
    max_drift: float = 0.01
    max_steps: int = 10
    drift_weight: float = 1.0
    damping: float = 1.0
    tries: int = 8
    max_products: int = 8
    near: float = 0.05
    curve_both: bool = False
    seed: int = 0
    low_memory: bool = False


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
    """

    gradient_passes: int = 0
    score_passes: int = 0
    curvature_products: int = 0
    forward_passes: int = 0


@dataclass(frozen=True)
class Point:
    """Values and gradients at accepted parameters; `safety` has a value a term."""

    params: Params
    safety: tuple[float, ...]
    drift: float
    safety_gradient: Params
    drift_gradient: Params


@dataclass(frozen=True)
class Attribution:
    """First-order account of the path: parameter name -> fall of S and rise of D that its own change explains.

    Trapezoidal sums of gradient times change along the accepted steps (integrated gradients along the path taken),
    so that over all parameters they add up to the measured changes but for the trapezoid's error.
    """

    gain: dict[str, float]
    cost: dict[str, float]


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
    """What one attempt hands to the next."""

    damping: float
    radius: float
    steps: list[Step] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    diagonal: Diagonal | None = None
    pairs: Pairs = field(default_factory=Pairs)


def evaluate(problem: Problem, params: Params, cost: Cost) -> Point:
    """Move to `params` and take values and gradients of S and D there: one gradient pass."""
    write_params(problem.live, params)
    values, total = [], zeros(params)
    for loss in problem.safety:
        value, part = gradient(problem.live, loss)
        values.append(value)
        total = axpy(1.0, part, total)
    drift, drift_gradient = gradient(problem.live, problem.drift)
    cost.gradient_passes += 1
    return Point(params, tuple(values), drift, total, drift_gradient)


def _values(problem: Problem, params: Params, cost: Cost) -> tuple[tuple[float, ...], float]:
    write_params(problem.live, params)
    cost.forward_passes += 1
    return tuple(loss.value(problem.live.model) for loss in problem.safety), problem.drift.value(problem.live.model)


def is_restored(safety: Sequence[float], start: Sequence[float], losses: Sequence[Loss], near: float) -> bool:
    """Tell whether each term of S is within `near` of the base's value, relative to it (to the start where it is 0)."""
    return all(value <= target + near * (target or first)
               for value, first, target in zip(safety, start, (loss.target or 0.0 for loss in losses), strict=True))


def minimise(problem: Problem, settings: Settings, *, progress: Progress = no_progress,
             stage: str = "restoring") -> Outcome:
    """Run steps until S is restored, the budget is spent, no step helps, or `max_steps`.

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
    state = _State(damping=0.0, radius=settings.max_drift)
    start = point = evaluate(problem, read_params(problem.live), state.cost)
    gain, cost, operator, why = {}, {}, None, "max_steps"
    for number in range(1, settings.max_steps + 1):
        progress(stage, number - 1, settings.max_steps)
        if is_restored(point.safety, start.safety, problem.safety, settings.near):
            why = "restored"
            break
        if operator is None or ENGINES[settings.engine].fresh:
            operator = _operator(problem, settings, state)
            state.damping = state.damping or _first_damping(operator, settings, point)
        target = _search(problem, settings, state, operator, point, number)
        if target is None:
            spent = settings.max_drift - point.drift < 0.05 * settings.max_drift
            why = "drift_budget_spent" if spent else "no_step_helps"
            break
        following = evaluate(problem, target, state.cost)
        _attribute(gain, cost, point, following)
        point = following
    write_params(problem.live, point.params)
    progress(stage, settings.max_steps, settings.max_steps)
    return Outcome(point, start, tuple(state.steps), why, state.cost, Attribution(gain, cost))


def _operator(problem: Problem, settings: Settings, state: _State) -> CurvatureOperator:
    """Make the engine's operator at the model's present parameters, counting its passes."""
    engine = ENGINES[settings.engine]
    weighted = replace(problem.drift, token_weight=problem.drift.token_weight * settings.drift_weight)
    losses = (weighted, *(problem.safety if settings.curve_both else ()))
    if engine.needs_diagonal and state.diagonal is None:
        state.diagonal = diagonal_fisher(problem.live, losses, seed=settings.seed)
    inputs = EngineInputs(problem.live, losses, settings.seed, settings.low_memory, settings.max_products,
                          state.diagonal, state.pairs)
    if not state.steps:
        state.cost.gradient_passes += engine.score_passes
        state.cost.score_passes += engine.score_passes
    return engine.make(inputs)


def _first_damping(operator: CurvatureOperator, settings: Settings, point: Point) -> float:
    """lambda_0: a fraction of the mean diagonal; with no curvature, what halves S by the linear model."""
    if operator.mean_diagonal > 0:
        return settings.damping * operator.mean_diagonal
    return 2 * dot(point.safety_gradient, point.safety_gradient) / max(sum(point.safety), 1e-12)


def _search(problem: Problem, settings: Settings, state: _State, operator: CurvatureOperator, point: Point,
            number: int) -> Params | None:
    """Try damped steps from one gradient until one is acceptable; None where none is."""
    full = axpy(settings.drift_weight, point.drift_gradient, point.safety_gradient)
    before = sum(point.safety) + settings.drift_weight * point.drift
    for _ in range(settings.tries):
        solution = operator.solve(full, state.damping)
        state.cost.curvature_products += solution.products
        delta = scale(-1.0, solution.x)
        slope, bend = dot(point.drift_gradient, delta), dot(solution.x, solution.image)
        length = step_length(bend + state.damping * dot(delta, delta), bend, slope, point.drift, state.radius,
                             math.inf if settings.curve_both else settings.max_drift)
        delta, bend = scale(length, delta), length * length * bend
        predicted = -(dot(full, delta) + 0.5 * bend)
        safety, drift = _values(problem, axpy(1.0, delta, point.params), state.cost)
        after = sum(safety) + settings.drift_weight * drift
        fits = drift <= max(settings.max_drift, point.drift)
        accepted = math.isfinite(after) and after < before and fits
        state.steps.append(Step(number, after, drift, state.damping, accepted, predicted, before - after,
                                solution.relative_residual))
        _adapt(state, accepted=accepted, ratio=(before - after) / predicted if predicted > 0 else 0.0)
        if accepted:
            return axpy(1.0, delta, point.params)
    write_params(problem.live, point.params)
    return None


def step_length(metric: float, bend: float, slope: float, drift: float, radius: float, budget: float) -> float:
    """Return the largest t in (0, 1] that keeps t d inside the trust region and the predicted drift in the budget.

    Args:
        metric: d'(F + lambda I)d.
        bend: d'F d.
        slope: grad D'd.
        drift: D now.
        radius: tau: 1/2 t^2 metric <= tau.
        budget: Bound for D + t slope + 1/2 t^2 bend; ignored where D is over it already.
    """
    length = min(1.0, math.sqrt(2 * radius / metric)) if metric > 0 else 1.0
    room = budget - drift
    if room <= 0 or drift + length * slope + 0.5 * length * length * bend <= budget:
        return length
    root = (-slope + math.sqrt(slope * slope + 2 * bend * room)) / bend if bend > 0 else room / slope
    return min(length, root)


def _adapt(state: _State, *, accepted: bool, ratio: float) -> None:
    """Levenberg-Marquardt: more damping and a smaller region where the model was wrong, less where it was right."""
    if not accepted or ratio < 0.25:
        state.damping *= 4.0
        state.radius *= 0.25 if not accepted else 1.0
    elif ratio > 0.75:
        state.damping /= 3.0
        state.radius *= 2.0


def _attribute(gain: dict[str, float], cost: dict[str, float], here: Point, there: Point) -> None:
    """Add one accepted step's trapezoidal share of the change of S and D by parameter."""
    for name in here.params:
        change = (there.params[name] - here.params[name]).double()
        mean_s = 0.5 * (here.safety_gradient[name] + there.safety_gradient[name]).double()
        mean_d = 0.5 * (here.drift_gradient[name] + there.drift_gradient[name]).double()
        gain[name] = gain.get(name, 0.0) - float((mean_s * change).sum())
        cost[name] = cost.get(name, 0.0) + float((mean_d * change).sum())
