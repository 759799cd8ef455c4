"""The report of a restoration as one plain document, from what the stages returned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint.pair import CheckpointFacts, CheckpointPair
from ..checkpoint.safetensors_files import sha256
from ..config import AnyConfig, EvalConfig, RestoreConfig
from ..data.selection import Selection, Source
from ..errors import SaferestoreError
from ..evaluation.systems import measurement
from ..evaluation.verdict import Comparison, Mean
from ..restoration.methods.inputs import Applied
from ..restoration.methods.table import METHODS
from ..restoration.modules import Distances, ModuleShare
from ..restoration.trust_region import Outcome, Step
from .schema import SCHEMA_VERSION
from .share import environment, shareable_settings

Json = dict[str, Any]

NO_TASK = "no --task rows"
REASONS = {
    "task_accuracy": NO_TASK, "task_loss_nats_per_token": NO_TASK, "untouched_accuracy": "no --untouched rows",
    "harmful_loss_nats_per_token": "no held-out harmful answer", "over_refusal_rate": "no benign rows",
}


def checkpoint_facts(facts: CheckpointFacts) -> Json:
    """Return what the report says of one checkpoint, with a reason for each hash that is null."""
    found = dataclasses.asdict(facts)
    missing = {f"{key}_reason": "it has none of its own" for key in ("tokenizer_sha256", "chat_template_sha256")
               if found[key] is None}
    return {**found, **missing}


def inputs(pair: CheckpointPair, rows: Selection) -> Json:
    """Return the `inputs` object: both checkpoints and every set."""
    tuned = {**checkpoint_facts(pair.tuned_facts), "kind": pair.kind}
    return {"base": checkpoint_facts(pair.base_facts), "tuned": tuned,
            "data": {source.name: _source(source) for source in rows.sources}}


def _source(source: Source) -> Json:
    return {"name": ", ".join(source.files), "sha256": source.sha256, "fit_rows": source.fit_rows,
            "held_out_rows": source.held_out_rows, "rejected_rows": source.rejected_rows,
            "left_out_rows": source.left_out_rows}


def settings(config: AnyConfig) -> Json:
    """Return the settings without absolute paths, sorted by name."""
    plain = dataclasses.asdict(shareable_settings(config))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in sorted(plain.items())}


NOT_DECIDING = ("force", "offline", "redact", "gate", "gate_mode", "baseline", "max_errors")
"""Settings of an evaluation that change nothing in its answers: a run may be gone on with under others."""


def deciding(config: EvalConfig, inputs: Json) -> Json:
    """Return what decides the answers of a run: a journal under anything else is not gone on with."""
    kept = {key: value for key, value in settings(config).items() if key not in NOT_DECIDING}
    return {"settings": kept, "inputs": inputs}


def answered_by(pair: CheckpointPair, config: RestoreConfig) -> Json:
    """Return what decides how base and tuned model answer a prompt: weights, how an adapter is applied, arithmetic."""
    adapted = pair.tuned_dir / "adapter_config.json"
    return {"weights_sha256": [dict(facts.weights_sha256) for facts in (pair.base_facts, pair.tuned_facts)],
            "adapter_config_sha256": sha256(adapted) if adapted.is_file() else None,
            "settings": {name: getattr(config, name) for name in ("dtype", "load_in")}}


def drift(mean: Mean | None, fit: float, budget: float, where: Distances, kind: str) -> Json:
    """Return the `drift` object; `task_kl_nats_per_token` is KL(tuned || restored) on held-out retain rows."""
    found: Json = {
        "task_kl_nats_per_token": mean.value if mean else None,
        "ci_low_nats_per_token": mean.ci_low if mean else None,
        "ci_high_nats_per_token": mean.ci_high if mean else None,
        "fit_kl_nats_per_token": fit, "budget_nats_per_token": budget,
        "relative_update_norm": where.relative_update, "distance_to_base_fraction": where.to_base_fraction,
    }
    why = "the change from the base is not a low-rank adapter here" if kind == "full" else "the adapter changes nothing"
    weights = ("relative_update_norm", "distance_to_base_fraction")
    return {**found, **{f"{key}_reason": why if key in weights else "too few held-out retain rows"
                        for key, value in found.items() if value is None}}


def restored_fraction(tuned: float | None, restored: float | None, base: float | None) -> Json:
    """Return rho = (restored - tuned) / (base - tuned) of held-out harmful losses, null where base <= tuned."""
    if tuned is None or restored is None or base is None:
        return {"restored_fraction": None, "restored_fraction_reason": REASONS["harmful_loss_nats_per_token"]}
    if base <= tuned:
        return {"restored_fraction": None, "restored_fraction_reason": "the base's harmful loss is not above tuned's"}
    return {"restored_fraction": (restored - tuned) / (base - tuned)}


def modules(shares: Sequence[ModuleShare]) -> list[Json]:
    """Return the `modules` array, the one that moved most first."""
    return [{"module": row.module, "safety_gain_nats_per_token": row.safety_gain,
             "task_cost_nats_per_token": row.task_cost, "update_share": row.update_share} for row in shares]


def steps(path: Sequence[Step]) -> list[Json]:
    """Return the `steps` array: every attempt, accepted or not; values that are not finite are null."""
    return [_step(step) for step in path]


def _step(step: Step) -> Json:
    plain = dataclasses.asdict(step)
    plain["lambda"] = plain.pop("damping")
    finite = {key: value if value is not None and math.isfinite(value) else None for key, value in plain.items()}
    why = {"relative_residual": "no iteration: nothing was solved, or exactly", "lambda": "no damping",
           "curvature_scale": "no quadratic model",
           "predicted_decrease": "no finite prediction", "decrease": "not measured or not finite",
           "objective": "not measured or not finite"}
    return {**finite, **{f"{key}_reason": why.get(key, "not finite") for key in finite if finite[key] is None}}


def cost(outcome: Outcome, *, rows: int, tokens: int, generated: int, drift_rows: int, drift_tokens: int) -> Json:
    """Return the `cost` object: a gradient pass runs over all fit rows, a score pass over the retain rows alone."""
    spent = outcome.cost
    full = spent.gradient_passes - spent.score_passes
    return {"gradient_passes": spent.gradient_passes, "curvature_products": spent.curvature_products,
            "examples_differentiated": full * rows + (spent.score_passes + spent.curvature_products) * drift_rows,
            "tokens_differentiated": full * tokens + (spent.score_passes + spent.curvature_products) * drift_tokens,
            "generated_tokens": generated, "forward_passes": spent.forward_passes, "score_passes": spent.score_passes,
            "account_passes": spent.account_passes}


def method(name: str, applied: Applied | None) -> Json:
    """Return the `method` object: which method made the change, and for a published one how far it was taken.

    Args:
        name: Of the method; ours are named by objective and engine.
        applied: What a published method came to; None for ours.
    """
    if applied is None:
        return {"name": name}
    row = METHODS[name]
    return {"name": name, "about": row.about, "source": row.source, "differs": row.differs, "knob": row.knob.name,
            "strength": applied.strength, "searched": applied.note, "truncation_loss": applied.lost}


def relearning(found: list[Json], why: str | None) -> Json:
    """Return the `relearning` array, with `relearning_reason` where it is empty."""
    return {"relearning": found} if why is None else {"relearning": found, "relearning_reason": why}


def comparisons(found: Mapping[str, Comparison]) -> Json:
    """Return the `comparisons` object: paired harm with exact McNemar."""
    return {name: dataclasses.asdict(comparison) for name, comparison in found.items()}


def frame(config: RestoreConfig, verdict: str, exit_code: int) -> Json:
    """Return the keys that open every report."""
    return {"schema_version": SCHEMA_VERSION, "command": "restore", "status": "ok", "exit_code": exit_code,
            "verdict": verdict, "settings": settings(config), "seed": config.seed, "environment": environment()}


def refusal(config: RestoreConfig, error: SaferestoreError) -> Json:
    """Return the report of a run that stopped at a number that is not finite."""
    return {**frame(config, "refused", error.exit_code), "status": "error", "warnings": [],
            "error": {"what": error.what, "hint": error.hint}}


def measured(answers: Mapping[str, Any], losses: Mapping[str, float | None]) -> Json:
    """Return one system's rates and losses with the reason for every null."""
    return measurement(answers, losses, REASONS)
