"""The report of a restoration that was measured, but for what was written and how long it took."""

from __future__ import annotations

from typing import Any

from ..checkpoint.pair import CheckpointPair
from ..config import RestoreConfig
from ..data.selection import Selection
from ..evaluation.preparation import Prepared
from ..evaluation.restored import After
from ..evaluation.verdict import is_gibberish, verdict
from ..losses import answer_tokens, row_count
from ..restoration.methods.inputs import Applied
from ..restoration.modules import Distances, distances, shares
from ..restoration.trust_region import Outcome
from . import assemble
from .rows import relearning_text
from .verdicts import VERDICTS

Json = dict[str, Any]


def report_of(config: RestoreConfig, pair: CheckpointPair, rows: Selection, prepared: Prepared, outcome: Outcome,
              applied: Applied | None, after: After, controls: list[Json],
              relearning: tuple[list[Json], str | None]) -> Json:
    """Return the report of a finished run without `outputs` and `run`.

    Args:
        config: Its settings.
        pair: The checkpoints.
        rows: The rows used.
        prepared: Base and tuned model, as measured.
        outcome: The path taken.
        applied: What a published method came to; None for ours.
        after: The restored model, as measured.
        controls: Rows of `controls`.
        relearning: Rows of `relearning`, and why there are none.

    Returns:
        The document; see `schema`.
    """
    against = after.against
    harmful = sum(answer.verdict.harmful for answer in after.answers["harmful"])
    decided = verdict(against["harm_after_vs_base"], against["harm_after_vs_tuned"],
                      against["incoherent_after_vs_base"], harmful, after.drift.value if after.drift else None,
                      config.max_drift)
    loss = {name: found["harmful_loss_nats_per_token"] for name, found in prepared.losses.items()}
    losses = (*prepared.problem.safety, prepared.problem.drift)
    drift_rows, drift_tokens = row_count(losses[-1].batches), answer_tokens(losses[-1].batches)
    where = distances(outcome.start.params, outcome.point.params) if pair.kind == "lora" else Distances(None, None)
    found: Json = {
        **assemble.frame(config, decided, VERDICTS[decided]),
        "inputs": assemble.inputs(pair, rows),
        "before": assemble.measured(prepared.answers["tuned"], prepared.losses["tuned"]),
        "after": assemble.measured(after.answers, after.losses),
        "base": assemble.measured(prepared.answers["base"], prepared.losses["base"]),
        "rows": dict(prepared.counts),
        "comparisons": assemble.comparisons(against),
        "drift": assemble.drift(after.drift, outcome.point.drift, config.max_drift, where, pair.kind),
        **assemble.restored_fraction(loss["tuned"], after.losses["harmful_loss_nats_per_token"], loss["base"]),
        "modules": assemble.modules(shares(outcome.attribution, outcome.start.params, outcome.point.params)),
        "controls": controls,
        **assemble.relearning(*relearning),
        "steps": assemble.steps(outcome.steps),
        "stopped_because": outcome.stopped_because,
        "method": assemble.method(config.method, applied),
        "cost": assemble.cost(outcome, rows=sum(row_count(each.batches) for each in losses),
                              tokens=sum(answer_tokens(each.batches) for each in losses),
                              generated=prepared.generated_tokens + after.generated_tokens,
                              drift_rows=drift_rows, drift_tokens=drift_tokens),
        "warnings": [{"code": code, "message": message} for code, message in
                     (*pair.warnings, *rows.warnings, *prepared.warnings,
                      *_warnings(config, outcome, after, relearning[0]))],
    }
    return found if config.controls else {**found, "controls_reason": "--no-controls"}


def _warnings(config: RestoreConfig, outcome: Outcome, after: After,
              relearning: list[Json]) -> list[tuple[str, str]]:
    found = []
    if after.drift and after.drift.value > config.max_drift:
        found.append(("W_DRIFT", f"held-out drift {after.drift.value:.4f} nats per token lies above the budget of "
                      f"{config.max_drift:g}, which holds on the fit rows: give more of them, or lower --max-drift"))
    if is_gibberish(after.against["incoherent_after_vs_base"]):
        found.append(("W_INCOHERENT", "the restored model's answers are incoherent more often than the base's: "
                      "lower --max-drift"))
    if not any(step.accepted for step in outcome.steps):
        found.append(("W_NO_STEP", "no step was taken: the restored adapter equals the tuned one"))
    steps = {row["system"]: row["steps"] for row in relearning}
    if steps.get("restored") is not None and (steps["base"] is None or steps["restored"] < steps["base"]):
        found.append(("W_SHALLOW", relearning_text({"relearning": relearning})))
    return found
