"""The document of `probe` as a JSON Schema (2020-12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint.runtimes import ACCEPTS, CHANGES, REFUSES
from ..curvature.hessian import WAYS
from .schema import CHECKPOINT, COUNT, HASH, NUMBER, SCALAR, TEXT, Json, closed, mapping, rows, schema_faults

SCHEMA_VERSION = "1.0"
COMPLETE = ("inputs", "settings", "seed", "environment", "checkpoint", "adapter", "runtimes", "losses", "surface",
            "curvature", "run")
"""Keys that a finished run has besides those of every document."""


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


INTERVAL: Json = {"value": NUMBER, "ci_low": NUMBER, "ci_high": NUMBER}
NESTED: Json = {"type": "array", "items": {"type": ["array", "number", "null"]}}
PAIRS: Json = rows(closed({"value": NUMBER, "error_at_most": NUMBER}))
MATRIX: Json = closed({
    "set": TEXT, "matrix": {"enum": ["hessian", "gauss_newton"]}, "products": COUNT, "lanczos_products": COUNT,
    "largest": PAIRS, "smallest": PAIRS, "sharpness": NUMBER,
    "trace": closed({"value": NUMBER, "bound_95": NUMBER, "products": COUNT}), "negative_mass": closed(INTERVAL),
    "modules": mapping(NUMBER),
    "density": closed({"eigenvalues": rows(NUMBER), "density": rows(NUMBER),
                       "half_width_95": _or_null(rows(NUMBER)), "exact_eigenvalues": COUNT, "probes": COUNT,
                       "products": COUNT, "mean_eigenvalue": closed(INTERVAL),
                       "mean_square_eigenvalue": closed(INTERVAL)}, optional={"half_width_95_reason": TEXT})})
DATA: Json = closed({"name": TEXT, "role": TEXT, "sha256": HASH, "rows": COUNT, "rejected_rows": COUNT,
                     "answers": mapping(COUNT)})


PROPERTIES: Json = {
    "schema_version": {"const": SCHEMA_VERSION},
    "command": {"const": "probe"},
    "status": {"enum": ["ok", "error"]},
    "exit_code": {"enum": [0, 1, 2, 5, 130]},
    "error": closed({"what": TEXT, "hint": TEXT}),
    "inputs": closed({"model": CHECKPOINT, "data": mapping(DATA)}, optional={"base": CHECKPOINT}),
    "settings": {"type": "object"},
    "seed": {"type": "integer"},
    "environment": mapping(SCALAR),
    "checkpoint": _or_null(closed({
        "architecture": TEXT, "model_type": TEXT, "parameters": COUNT, "layers": COUNT, "hidden_size": COUNT,
        "vocab_size": COUNT, "context_tokens": {"type": ["integer", "null"]}, "dtypes": mapping(COUNT),
        "chat_template": {"type": "boolean"}})),
    "checkpoint_reason": TEXT,
    "adapter": _or_null(closed({"form": TEXT, "rank": COUNT, "alpha": NUMBER, "parameters": COUNT,
                                "modules": mapping(COUNT), "fault": {"type": ["string", "null"]}})),
    "runtimes": rows(closed({"runtime": TEXT, "verdict": {"enum": [ACCEPTS, REFUSES, CHANGES]}, "why": TEXT})),
    "losses": rows(closed({"set": TEXT, "loss_nats_per_token": NUMBER, "ci_low": NUMBER, "ci_high": NUMBER,
                           "n": COUNT})),
    "surface": _or_null(closed({"axes": rows(rows(NUMBER)), "direction_seeds": rows(COUNT),
                                "losses_nats_per_token": mapping(NESTED), "gaps": mapping(COUNT)})),
    "surface_reason": TEXT,
    "curvature": _or_null(closed({
        "coordinates": {"enum": ["adapter", "subspace"]}, "dimension": COUNT, "way": {"enum": list(WAYS)},
        "way_reason": TEXT, "check_distance": NUMBER, "attention": TEXT, "coordinates_dtype": TEXT,
        "matrices": rows(MATRIX)})),
    "curvature_reason": TEXT,
    "warnings": rows(closed({"code": {"type": "string", "pattern": "^W_[A-Z0-9_]+$"}, "message": TEXT})),
    "run": {"type": "object"},
}

SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Document of saferestore probe",
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
