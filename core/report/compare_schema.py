"""The document of `compare` as a JSON Schema (2020-12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..geometry.verdict import LABELS, OUTCOMES
from .schema import CHECKPOINT, COUNT, NUMBER, SCALAR, TEXT, Json, closed, mapping, rows, schema_faults

SCHEMA_VERSION = "1.0"
COMPLETE = ("verdict", "sentences", "findings", "inputs", "settings", "seed", "environment", "rows", "losses",
            "modules", "interpolation", "landscapes", "changes", "similarity", "spectra", "shares", "run")
"""Keys that a finished run has besides those of every document."""

MEASURE: Json = {"enum": list(LABELS)}
NUMBERS: Json = {"type": "array", "items": {"type": ["array", "number", "null"]}}
SURFACES: Json = {"losses_nats_per_token": mapping(NUMBERS), "gaps": mapping(COUNT)}
INTERVAL: Json = {"value": NUMBER, "ci_low": NUMBER, "ci_high": NUMBER, "n": COUNT, "gaps": COUNT}

PROPERTIES: Json = {
    "schema_version": {"const": SCHEMA_VERSION},
    "command": {"const": "compare"},
    "status": {"enum": ["ok", "error"]},
    "exit_code": {"enum": [0, 1, 2, 5, 130]},
    "error": closed({"what": TEXT, "hint": TEXT}),
    "verdict": {"enum": list(OUTCOMES)},
    "sentences": rows(TEXT),
    "findings": rows(closed({"measure": MEASURE, "outcome": {"enum": list(OUTCOMES)}, "threshold": NUMBER,
                             "above_control": NUMBER, "ci_low": NUMBER, "ci_high": NUMBER},
                            optional={"reason": TEXT})),
    "inputs": closed({"base": CHECKPOINT, "tuned": CHECKPOINT,
                      "data": mapping(closed({"name": TEXT, "sha256": rows(TEXT), "rows": COUNT,
                                              "rejected_rows": COUNT}))}),
    "settings": {"type": "object"},
    "seed": {"type": "integer"},
    "environment": mapping(SCALAR),
    "rows": mapping(COUNT),
    "losses": rows(closed({"system": TEXT, "set": TEXT, "loss_nats_per_token": NUMBER, "ci_low": NUMBER,
                           "ci_high": NUMBER, "n": COUNT}, optional={"loss_nats_per_token_reason": TEXT})),
    "modules": rows(closed({"tensor": TEXT, "shape": rows(COUNT), "norm": NUMBER, "relative_norm": NUMBER,
                            "effective_rank": NUMBER, "rank_limit": COUNT},
                           optional={"relative_norm_reason": TEXT, "effective_rank_reason": TEXT})),
    "interpolation": closed({"steps": rows(NUMBER), **SURFACES}),
    "landscapes": closed({"axes": rows(rows(NUMBER)), "systems": mapping(closed(SURFACES))}),
    "changes": closed({"step": NUMBER, "systems": mapping(closed(SURFACES))}),
    "similarity": rows(closed({"against": TEXT, "set": TEXT, "measure": MEASURE, **INTERVAL},
                              optional={"reason": TEXT})),
    "spectra": rows(closed({"system": TEXT, "set": TEXT, "eigenvalues": rows(NUMBER), "trace": NUMBER,
                            "dimension": COUNT})),
    "shares": rows(closed({"system": TEXT, "gradient": TEXT, "k": COUNT, **INTERVAL, "random": NUMBER},
                          optional={"reason": TEXT})),
    "warnings": rows(closed({"code": {"type": "string", "pattern": "^W_[A-Z0-9_]+$"}, "message": TEXT})),
    "run": {"type": "object"},
}

SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Document of saferestore compare",
    **closed(PROPERTIES),
    "required": ["schema_version", "command", "status", "exit_code", "warnings"],
    "if": {"properties": {"status": {"const": "ok"}}},
    "then": {"required": list(COMPLETE), "properties": {"exit_code": {"const": 0}}},
    "else": {"required": ["error"], "properties": {"exit_code": {"not": {"const": 0}}}},
}


def validate(found: Mapping[str, Any]) -> None:
    """Refuse a document that breaks its contract: a defect of the program.

    Args:
        found: What is to be written or printed.

    Raises:
        ValueError: The schema is broken, a number is not finite, or a null has no reason.
    """
    faults = schema_faults(found, SCHEMA)
    if faults:
        raise ValueError("the document breaks its schema: " + "; ".join(faults[:5]))
