"""The document of `score` from what was measured, and the lines of `scores.jsonl`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.pair import CheckpointPair
from ..config import ScoreConfig
from ..data.chat import ChatFormat
from ..data.selection import Selection
from ..evaluation.scoring import ScoredModules, ScoredRows
from ..evaluation.training_rows import TrainingRows
from ..influence.clean import threshold
from ..influence.modules import LEADING, ModuleInfluence, sums_by
from . import assemble
from .samples_file import masked
from .score_schema import SCHEMA_VERSION
from .share import environment, shareable_settings

Json = dict[str, Any]
Warnings = Sequence[tuple[str, str]]
EXCERPT = 160
"""Characters of a row's answer shown."""
NOT_LEARNT = 0.9
"""A file on which the tuned model's loss is above this part of the base's is hardly the one it was trained on."""


@dataclass(frozen=True)
class RankedRows:
    """Every scored row, the most harmful first, and where a clean file cuts.

    Attributes:
        order: Numbers of the records.
        threshold: Rows above it are removed, nats per token.
        removed: Their numbers, the most harmful first.
    """

    order: tuple[int, ...]
    threshold: float
    removed: tuple[int, ...]


def rank(scored: ScoredRows, rule: str) -> RankedRows:
    """Order rows by influence and apply the rule of removal."""
    order = tuple(sorted(scored.influences, key=lambda row: (-scored.influences[row], row)))
    cut = threshold(scored.influences, rule)
    return RankedRows(order, cut, tuple(row for row in order if scored.influences[row] > cut))


def score_lines(training: TrainingRows, scored: ScoredRows, ranked: RankedRows, chat: ChatFormat,
                redact: str) -> list[Json]:
    """Return every scored row as `scores.jsonl` has it, the most harmful first."""
    return [_line(place, row, training, scored, chat, redact) for place, row in enumerate(ranked.order, start=1)]


def _line(place: int, row: int, training: TrainingRows, scored: ScoredRows, chat: ChatFormat, redact: str) -> Json:
    record, entry = training.result.records[row], scored.entries[row]
    text = (record.answer or "")[:EXCERPT]
    found = {"rank": place, "line": training.line(row), "id": record.id,
             "influence_nats_per_token": scored.influences[row],
             "loss_nats_per_token": entry["loss"] / entry["tokens"], "answer_tokens": entry["tokens"],
             "text": text if redact == "none" else masked(record.answer or "")}
    if "token_derivatives" in entry:
        found["token_influences_nats_per_token"] = [-d / training.answer_tokens for d in entry["token_derivatives"]]
        if redact == "none":
            answer = next(each.answer for each in training.rows if each.index == row)
            found["tokens"] = [str(chat.tokenizer.decode([token])) for token in answer]
    return found


def score_document(config: ScoreConfig, pair: CheckpointPair, selection: Selection, modules: ScoredModules,
                   rows: Json | None, warnings: Warnings) -> Json:
    """Return the document, all but `run`.

    Args:
        config: The settings.
        pair: Both checkpoints.
        selection: Rows that S and the drift are made of.
        modules: What modules carry.
        rows: From `row_summary`; None without a training file.
        warnings: (code, message) pairs.
    """
    settings = {key: list(value) if isinstance(value, tuple) else value
                for key, value in sorted(dataclasses.asdict(shareable_settings(config)).items())}
    return {
        "schema_version": SCHEMA_VERSION, "command": "score", "status": "ok", "exit_code": 0,
        "inputs": assemble.inputs(pair, selection), "settings": settings, "seed": config.seed,
        "environment": environment(),
        "safety": _safety(config, modules),
        "modules": [_module(each, modules.update_shares) for each in modules.modules],
        "layers": _sums(modules, lambda each: each.layer), "kinds": _sums(modules, lambda each: each.kind),
        "rows": rows, **({"rows_reason": "no --train file"} if rows is None else {}),
        "warnings": [{"code": code, "message": message} for code, message in warnings],
    }


def _safety(config: ScoreConfig, modules: ScoredModules) -> Json:
    why = {"base_nats_per_token_reason": "not measured for this objective"} if modules.target is None else {}
    return {"objective": config.objective, "tuned_nats_per_token": modules.safety,
            "base_nats_per_token": modules.target, **why, "inside_share": modules.inside,
            "inside_share_random": modules.inside_random, "leading_eigenvectors": LEADING}


def _module(each: ModuleInfluence, update_shares: Mapping[str, float]) -> Json:
    why = {"layer_reason": "no number in its name"} if each.layer is None else {}
    return {"module": each.module, "layer": each.layer, **why, "kind": each.kind,
            "safety_gain_nats_per_token": each.safety_gain, "task_cost_nats_per_token": each.task_cost,
            "update_share": min(1.0, update_shares[each.module]), "gradient_share": min(1.0, each.gradient_share),
            "inside_share": each.inside_share, "inside_share_random": each.inside_share_random}


def _sums(modules: ScoredModules, key: Any) -> list[Json]:
    return [{"name": name, "safety_gain_nats_per_token": gain, "task_cost_nats_per_token": cost}
            for name, (gain, cost) in sums_by(modules.modules, key).items()]


def row_summary(config: ScoreConfig, training: TrainingRows, scored: ScoredRows, ranked: RankedRows,
                lines: Sequence[Json]) -> Json:
    """Return the document's `rows` object; only the first and last `config.top` lines are in it."""
    result, query, how = training.result, scored.query, scored.derivative
    bad = [(training.line(row), "the loss is not finite") for row, entry in sorted(scored.entries.items())
           if entry["derivative"] is None]
    why = {"damping_reason": "one a parameter", "relative_residual_reason": "this way inverts its own F exactly"}
    solved = {"damping": query.damping, "relative_residual": query.relative_residual, "products": query.products}
    return {
        "file": result.name, "sha256": result.sha256, "read": len(result.records) + len(result.rejected),
        "scored": len(ranked.order), "answer_tokens": training.answer_tokens, "way": config.way, "at": scored.point.at,
        "query": {**solved, **{key: text for key, text in why.items() if solved[key.removesuffix("_reason")] is None}},
        "derivative": {"by": "forward mode" if how.length is None else "difference", "length": how.length,
                       "relative_error": how.relative_error,
                       **({"length_reason": "forward mode has none"} if how.length is None else {})},
        **_learnt(scored), "threshold_nats_per_token": ranked.threshold, "removed": len(ranked.removed),
        "most_harmful": list(lines[:config.top]), "most_helpful": list(reversed(lines[-config.top:])),
        "not_used": [{"line": line, "reason": reason} for line, reason in sorted([*training.not_used, *bad])],
        "truncated_lines": list(training.truncated),
    }


def _learnt(scored: ScoredRows) -> Json:
    """Return the losses of both models on some rows, with the reason for a null."""
    found: Json = {"tuned_loss_nats_per_token": scored.tuned_loss, "base_loss_nats_per_token": scored.base_loss}
    return {**found, **{f"{key}_reason": "not finite" for key, value in found.items() if value is None}}


def row_warnings(training: TrainingRows, scored: ScoredRows, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the user should know of the training file."""
    found = []
    if summary["not_used"]:
        first = summary["not_used"][0]
        found.append(("W_ROWS_NOT_USED", f"{training.result.name}: {len(summary['not_used'])} rows not used, the first "
                      f"in line {first['line']}: {first['reason']}"))
    if training.truncated:
        found.append(("W_ROWS_TRUNCATED", f"{training.result.name}: {len(training.truncated)} rows exceed the context "
                      f"and are cut, the first in line {training.truncated[0]}"))
    point = scored.point
    if not point.has_rise:
        found.append(("W_SAFETY_NOT_LOST", f"S is {point.tuned:.3g} at the tuned model and {point.base:.3g} at the "
                      f"base: no loss of safety for rows to explain; they are scored at {point.at:g}"))
    tuned, base = scored.tuned_loss, scored.base_loss
    if tuned is not None and base is not None and tuned > NOT_LEARNT * base:
        found.append(("W_NOT_LEARNT", f"{training.result.name}: the tuned model's loss {tuned:.3g} is hardly below "
                      f"the base's {base:.3g}: another file, or another --chat-template?"))
    return found
