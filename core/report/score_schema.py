"""The document of `score` as a JSON Schema (2020-12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .schema import (
    CHECKPOINT,
    COUNT,
    DATA_SET,
    HASH,
    NUMBER,
    SCALAR,
    SHARE,
    TEXT,
    Json,
    closed,
    mapping,
    rows,
    schema_faults,
)

SCHEMA_VERSION = "1.0"
COMPLETE = ("inputs", "settings", "seed", "environment", "safety", "modules", "layers", "kinds", "rows", "run")
"""Keys that a finished run has besides those of every document."""

LINE: Json = {"line": COUNT, "reason": TEXT}
SUM = closed({"name": TEXT, "safety_gain_nats_per_token": NUMBER, "task_cost_nats_per_token": NUMBER})
MODULE = closed({"module": TEXT, "layer": {"type": ["integer", "null"]}, "kind": TEXT,
                 "safety_gain_nats_per_token": NUMBER, "task_cost_nats_per_token": NUMBER, "update_share": SHARE,
                 "gradient_share": SHARE, "inside_share": NUMBER, "inside_share_random": SHARE},
                optional={"layer_reason": TEXT})
ROW = closed({"rank": COUNT, "line": COUNT, "id": TEXT, "influence_nats_per_token": NUMBER,
              "loss_nats_per_token": NUMBER, "answer_tokens": COUNT, "text": TEXT},
             optional={"token_influences_nats_per_token": rows({"type": "number"}), "tokens": rows(TEXT)})
ROWS = closed({
    "file": TEXT, "sha256": HASH, "read": COUNT, "scored": COUNT, "answer_tokens": COUNT, "way": TEXT, "at": NUMBER,
    "query": closed({"damping": NUMBER, "relative_residual": NUMBER, "products": COUNT},
                    optional={"damping_reason": TEXT, "relative_residual_reason": TEXT}),
    "derivative": closed({"by": {"enum": ["difference", "forward mode"]}, "length": NUMBER, "relative_error": NUMBER},
                         optional={"length_reason": TEXT}),
    "tuned_loss_nats_per_token": NUMBER, "base_loss_nats_per_token": NUMBER, "threshold_nats_per_token": NUMBER,
    "removed": COUNT, "most_harmful": rows(ROW), "most_helpful": rows(ROW), "not_used": rows(closed(LINE)),
    "truncated_lines": rows(COUNT)},
    optional={"tuned_loss_nats_per_token_reason": TEXT, "base_loss_nats_per_token_reason": TEXT})

PROPERTIES: Json = {
    "schema_version": {"const": SCHEMA_VERSION},
    "command": {"const": "score"},
    "status": {"enum": ["ok", "error"]},
    "exit_code": {"enum": [0, 1, 2, 5, 130]},
    "error": closed({"what": TEXT, "hint": TEXT}),
    "inputs": closed({"base": CHECKPOINT, "tuned": CHECKPOINT, "data": mapping(DATA_SET)}),
    "settings": {"type": "object"},
    "seed": {"type": "integer"},
    "environment": mapping(SCALAR),
    "safety": closed({"objective": TEXT, "tuned_nats_per_token": NUMBER, "base_nats_per_token": NUMBER,
                      "inside_share": NUMBER, "inside_share_random": NUMBER, "leading_eigenvectors": COUNT},
                     optional={"base_nats_per_token_reason": TEXT}),
    "modules": rows(MODULE),
    "layers": rows(SUM),
    "kinds": rows(SUM),
    "rows": {"anyOf": [ROWS, {"type": "null"}]},
    "rows_reason": TEXT,
    "warnings": rows(closed({"code": {"type": "string", "pattern": "^W_[A-Z0-9_]+$"}, "message": TEXT})),
    "run": {"type": "object"},
}

SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Document of saferestore score",
    **closed(PROPERTIES),
    "required": ["schema_version", "command", "status", "exit_code", "warnings"],
    "if": {"properties": {"status": {"const": "ok"}}},
    "then": {"required": list(COMPLETE)},
    "else": {"required": ["error"]},
}


def validate(found: Mapping[str, Any]) -> None:
    """Refuse a document that breaks its contract: a defect of the program, not of its user.

    Args:
        found: The document.

    Raises:
        ValueError: The schema is broken, a number is not finite, or a null has no reason beside it.
    """
    if faults := schema_faults(found, SCHEMA):
        raise ValueError("the document breaks its schema: " + "; ".join(faults[:5]))
