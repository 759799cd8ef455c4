"""The null controls of every restoration, each at the drift that the restoration spent (method, section 7)."""

from __future__ import annotations

from typing import Any

from ..checkpoint.session import Session, write_params
from ..config import RestoreConfig
from ..data.selection import Selection
from ..errors import MismatchError, NumericalError, SaferestoreError
from ..losses import kl_divergence
from ..params import axpy
from ..restoration.controls import along, random_direction, strength_at_drift
from ..restoration.settings import Settings
from ..restoration.trust_region import Outcome, minimise
from .preparation import Prepared
from .systems import Examiner, measurement

Json = dict[str, Any]
LEAST_DRIFT = 1e-6
"""A restoration that did not move leaves nothing to match."""


def run_controls(session: Session, prepared: Prepared, outcome: Outcome, examiner: Examiner, rows: Selection,
                 config: RestoreConfig) -> list[Json]:
    """Measure each control on held-out rows.

    `scale` moves the tuned model toward the base, `random` goes along a Gaussian direction, `identity` is the same
    objective with plain gradients (`diagonal` where identity is the engine itself) under the same budget, cut back
    where it spent more. All start at the tuned model and spend at most the fit drift of the restoration.

    Args:
        session: The checkpoints; the adapter holds the restored parameters, as it does on return.
        prepared: The problem and what is held out.
        outcome: The restoration.
        examiner: How models are asked.
        rows: Held-out rows.
        config: The run's settings.

    Returns:
        The report's `controls` array.
    """
    live, drift, spent = prepared.problem.live, prepared.problem.drift, max(outcome.point.drift, LEAST_DRIFT)
    found = []

    def measure(name: str, note: str) -> None:
        sets = {part: rows.held_out[part] for part in ("harmful", "task")}
        answers = examiner.ask_sets(live.model, sets, f"control {name}")
        held = prepared.held_out.drift
        rates = measurement(answers, {}, {"task_accuracy": "no --task rows"})
        kl = kl_divergence(name, held, prepared.held_out.tuned_log_p).value(live.model) if held else None
        row = {"name": name, "task_kl_nats_per_token": kl, "note": note,
               "fit_kl_nats_per_token": drift.value(live.model)}
        if kl is None:
            row["task_kl_nats_per_token_reason"] = "no held-out retain rows"
        row |= {key: rates[key] for key in ("harmful_rate", "task_accuracy")}
        if rates["task_accuracy"] is None:
            row["task_accuracy_reason"] = rates["task_accuracy_reason"]
        found.append(row | {"refusal_rate": rates["refusal_rate"], "coherence_rate": rates["coherence_rate"]})

    def blended(alpha: float) -> float:
        with session.blend(alpha):
            return drift.value(live.model)

    write_params(live, outcome.start.params)
    try:
        session.check_blend()
    except MismatchError as error:
        found.append(_failed("scale", error))
    else:
        alpha = strength_at_drift(blended, spent, largest=1.0)
        with session.blend(alpha):
            measure("scale", f"{alpha:.3f} of the way to the base")

    path = along(outcome.start.params, random_direction(outcome.start.params, config.seed))

    def moved(strength: float) -> float:
        write_params(live, path(strength))
        return drift.value(live.model)

    strength = strength_at_drift(moved, spent, largest=1.0)
    write_params(live, path(strength))
    measure("random", f"{strength:.4f} of the adapter's norm")

    write_params(live, outcome.start.params)
    plain = "diagonal" if config.engine == "identity" else "identity"
    settings = Settings(engine=plain, max_drift=config.max_drift, max_steps=config.max_steps, seed=config.seed,
                        low_memory=config.low_memory)
    try:
        result = minimise(prepared.problem, settings, progress=examiner.progress, stage=f"control {plain}")
        path = along(outcome.start.params, axpy(-1.0, outcome.start.params, result.point.params))
        strength = strength_at_drift(moved, spent, largest=1.0)
        write_params(live, path(strength))
        measure(plain, f"{result.cost.gradient_passes} gradient passes, {strength:.3f} of the way")
    except NumericalError as error:  # a control that breaks takes nothing from what was restored and measured
        found.append(_failed(plain, error))
    write_params(live, outcome.point.params)
    return found


def _failed(name: str, error: SaferestoreError) -> Json:
    """Return the row of a control that came to no numbers."""
    keys = ("task_kl_nats_per_token", "harmful_rate", "task_accuracy")
    return {"name": name, "note": error.what, **dict.fromkeys(keys), **{f"{key}_reason": error.what for key in keys}}
