"""How far a method goes: as far as the drift budget allows, or as far as the user says; the same outcome as our own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from ...checkpoint.session import write_params
from ...errors import NumericalError
from ...params import Params, is_finite
from ..attribution import Attribution
from ..controls import strength_at_drift
from ..trust_region import Cost, Outcome, Step, evaluate
from .inputs import Applied, Edit, Edited, Inputs, Knob
from .train import Path, Recipe, trained, within_budget
from .weights import start_of

Make = Callable[[Inputs], Edit]
Run = Callable[[Inputs, Knob, float | None], Applied]


def by_edit(make: Make) -> Run:
    """Return a method that edits once: its knob is searched for the value that spends the drift budget."""

    def run(inputs: Inputs, knob: Knob, stated: float | None) -> Applied:
        live, start, tried = inputs.problem.live, start_of(inputs), list[Step]()
        edit = make(inputs)

        def drift_at(share: float) -> float:
            params = edit(knob.at(share)).params
            drift = _drift(inputs, params)
            tried.append(_step(len(tried) + 1, math.nan, drift, taken=False))
            inputs.progress("values tried", len(tried), 13)
            return drift

        share = None if stated is not None else strength_at_drift(drift_at, inputs.max_drift, largest=1.0)
        value = knob.at(share) if share is not None else stated
        assert value is not None
        found = edit(value) if share != 0 else Edited(start)  # even its weakest value may drift too far
        if not is_finite(found.params):
            raise NumericalError(f"parameters are not finite at {knob.name} = {value:g}",
                                 hint="give another --strength")
        why = "strength_as_given" if stated is not None else "knob_at_its_end" if share == 1 else "drift_budget_spent"
        write_params(live, start)
        outcome = _outcome(inputs, start, found.params, why, tried)
        return Applied(outcome, value, found.lost, f"{len(tried)} values of {knob.name} tried by their drift"
                       if tried else f"{knob.name} as given")

    return run


def by_training(recipe: Recipe) -> Run:
    """Return a method that trains: the best point within the budget over a few rates, or the end at a stated rate."""

    def run(inputs: Inputs, knob: Knob, stated: float | None) -> Applied:
        live, start = inputs.problem.live, start_of(inputs)
        runs = []
        for rate in (stated,) if stated is not None else knob.tried:
            write_params(live, start)
            path = trained(inputs, recipe, rate)
            point = path.points[-1] if stated is not None else within_budget(inputs, path)
            runs.append((point.own, rate, point, path))
        # Equal ends, such as the start itself, go to the smallest rate.
        _, rate, point, path = min(runs, key=lambda each: each[:2])
        write_params(live, start)
        spent = any(one.drift > inputs.max_drift for one in path.points)
        why = "strength_as_given" if stated is not None else "drift_budget_spent" if spent else "max_steps"
        outcome = _outcome(inputs, start, point.params, why, _steps(path, inputs.max_drift))
        tried = f", best of {len(runs)} values of {knob.name}" if len(runs) > 1 else ""
        return Applied(outcome, rate, 0.0, f"{path.passes} gradient passes{tried}")

    return run


def _steps(path: Path, budget: float) -> list[Step]:
    return [_step(number, point.own, point.drift, taken=point.drift <= budget)
            for number, point in enumerate(path.points) if number]


def _step(number: int, objective: float, drift: float, *, taken: bool) -> Step:
    """Return a row of the report's path; such methods have no damping and predict nothing."""
    return Step(number, objective, drift, math.nan, math.nan, taken, math.nan, math.nan, None)


def _drift(inputs: Inputs, params: Params) -> float:
    write_params(inputs.problem.live, params)
    inputs.cost.forward_passes += 1
    return inputs.problem.drift.value(inputs.problem.live.model)


def _outcome(inputs: Inputs, start: Params, end: Params, why: str, steps: list[Step]) -> Outcome:
    """Return the outcome at `end`, where the model is left, with the account of the change by parameter.

    The account takes S, D and their gradients at both ends: two passes, counted apart because they are no part of the
    method.
    """
    account, exact = Cost(), replace(inputs.problem, penalty=None)
    first, last = evaluate(exact, start, account), evaluate(exact, end, account)
    inputs.cost.account_passes += account.gradient_passes
    if all(torch.equal(start[name], end[name]) for name in start):
        steps, why = [replace(step, accepted=False) for step in steps], "no_change"
    elif not any(step.accepted for step in steps):
        steps = [*steps, _step(len(steps) + 1, sum(last.safety), last.drift, taken=True)]
    return Outcome(last, first, tuple(steps), why, inputs.cost, Attribution({}, {}).extended(first, last))
