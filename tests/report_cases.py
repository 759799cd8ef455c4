"""A report as the pipeline makes it, with figures that could be true, for the tests of what is done with reports."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from saferestore.core.config import RestoreConfig

ROOT = Path(__file__).parents[1]
CONFIG = RestoreConfig(base="sample_data/base", tuned="sample_data/tuned", task=("sample_data/records/task.jsonl",))
HASH = "0123456789abcdef" * 4


def rate(hits: int, n: int, judge: str = "wording") -> dict[str, Any]:
    """A rate with an interval that is wide enough to hold it."""
    value = hits / n
    return {"value": value, "n": n, "ci_low": max(0.0, value - 0.03), "ci_high": min(1.0, value + 0.03),
            "judge": judge, "others": []}


def measurement(harmful: int, task: int) -> dict[str, Any]:
    """What one model does on 128 held-out rows of each set."""
    return {"harmful_loss_nats_per_token": 0.5 + (128 - harmful) / 32, "task_loss_nats_per_token": 0.21,
            "harmful_rate": rate(harmful, 128), "refusal_rate": rate(128 - harmful, 128),
            "coherence_rate": rate(128, 128), "over_refusal_rate": rate(1, 128),
            "task_accuracy": rate(task, 128, "exact"), "untouched_accuracy": rate(120, 128, "exact")}


REPORT: dict[str, Any] = {
    "schema_version": "1.0", "command": "restore", "status": "ok", "exit_code": 0, "verdict": "restored",
    "inputs": {
        "base": {"ref": "sample_data/base", "weights_sha256": {"model.safetensors": HASH},
                 "tokenizer_sha256": HASH, "chat_template_sha256": HASH, "vocab_size": 512},
        "tuned": {"ref": "sample_data/tuned", "kind": "lora", "weights_sha256": {"adapter_model.safetensors": HASH}},
        "data": {"harmful": {"name": "builtin:harmful", "sha256": HASH, "fit_rows": 64, "held_out_rows": 128},
                 "task": {"name": "task.jsonl", "sha256": HASH, "fit_rows": 64, "held_out_rows": 128}}},
    "settings": {"engine": "fisher", "max_drift": 0.01}, "seed": 0, "environment": {"torch": "2.13.0+cpu"},
    "before": measurement(125, 126), "after": measurement(1, 125), "base": measurement(0, 3),
    "comparisons": {"harmful_after_vs_base": {"n": 128, "p_value": 1.0, "only_first": 1, "only_second": 0}},
    "drift": {"task_kl_nats_per_token": 0.0041, "ci_low_nats_per_token": 0.0032, "ci_high_nats_per_token": 0.0053,
              "budget_nats_per_token": 0.01, "relative_update_norm": 0.18, "distance_to_base_fraction": 0.97},
    "restored_fraction": 0.82,
    "modules": [{"module": f"model.layers.{i % 4}.self_attn.{name}_proj", "safety_gain_nats_per_token": 0.1 / (i + 1),
                 "task_cost_nats_per_token": 0.0003, "update_share": share}
                for i, (name, share) in enumerate([("v", 0.1), ("q", 0.3), ("k", 0.05), ("o", 0.25), ("q", 0.2),
                                                   ("v", 0.06), ("k", 0.04)])],
    "controls": [{"name": name, "task_kl_nats_per_token": 0.01, "harmful_rate": rate(hits, 128),
                  "task_accuracy": rate(120, 128, "exact")}
                 for name, hits in (("scale", 124), ("random", 125), ("identity", 9))],
    "steps": [{"step": i, "objective": 2.0 / (i + 1), "drift": 0.001 * i, "lambda": 0.1 / (i + 1), "accepted": i != 2}
              for i in range(1, 6)],
    "stopped_because": "the objective reached the base's own value",
    "cost": {"gradient_passes": 6, "curvature_products": 0, "examples_differentiated": 960,
             "tokens_differentiated": 23000, "generated_tokens": 12000},
    "outputs": {"adapter_model.safetensors": {"sha256": HASH, "bytes": 123456}, "roundtrip_max_abs_error": 0.0},
    "warnings": [],
    "run": {"started_utc": "2030-01-01T00:00:00Z", "seconds": {"total": 12.5, "fit": 3.0},
            "peak_memory_bytes": 734003200},
}


def report(**changes: Any) -> dict[str, Any]:
    """A fresh copy of the report with some top-level keys replaced."""
    return copy.deepcopy(REPORT) | changes


def relearned(base: int | None, restored: int | None) -> list[dict[str, Any]]:
    """Rows of `relearning` by the updates that each model took; None: not within 24."""
    made = []
    for name, steps in (("base", base), ("restored", restored)):
        row = {"system": name, "rows": 4, "steps": steps, "probes": 32, "harmful": [0, 3, 17]}
        made.append(row if steps is not None else {**row, "steps_reason": "not within 24 updates"})
    return made


def without_task() -> dict[str, Any]:
    """The report of a run that was given no task rows."""
    made = report(warnings=[{"code": "W_NO_TASK_ROWS", "message": "no task rows were given"}])
    for part in ("before", "after", "base"):
        made[part] |= {"task_accuracy": None, "task_accuracy_reason": "no task rows were given"}
    for control in made["controls"]:
        control |= {"task_accuracy": None, "task_accuracy_reason": "no task rows were given"}
    return made
