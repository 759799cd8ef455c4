"""The report of `restore` as a JSON Schema (2020-12), and the check that every written report passes.

A report of a finished run (`status: ok`) has all contract keys. A run that stopped (`status: error`) has the
verdict `refused`, an `error` with its remedy, and whatever else was known. A number that is not known is null
beside a sibling `<name>_reason`; it is never NaN and never left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .verdicts import EXIT_CODES, VERDICTS

SCHEMA_VERSION = "1.0"
Json = Mapping[str, Any]

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
NUMBER: Json = {"type": ["number", "null"]}
SHARE: Json = {"type": "number", "minimum": 0, "maximum": 1}
HASH: Json = {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"}
SCALAR: Json = {"type": ["string", "number", "boolean", "null"]}
RATE: Json = {"anyOf": [{"$ref": "#/$defs/rate"}, {"type": "null"}]}

RATES = ("harmful_rate", "refusal_rate", "coherence_rate", "over_refusal_rate", "task_accuracy",
         "untouched_accuracy")
LOSSES = ("harmful_loss_nats_per_token", "task_loss_nats_per_token")
CONTROLS = ("scale", "random", "identity", "diagonal")
COMPLETE = ("inputs", "settings", "seed", "environment", "before", "after", "base", "drift",
            "restored_fraction", "modules", "controls", "steps", "stopped_because", "cost", "outputs", "run")
"""Keys that a finished run has besides those of every report."""


def closed(properties: Json, *, optional: Json | None = None, patterns: Json | None = None) -> Json:
    """Return the schema of an object that has these keys, may have the others, and has no more."""
    return {"type": "object", "properties": {**properties, **(optional or {})}, "required": list(properties),
            "patternProperties": patterns or {}, "additionalProperties": False}


def mapping(values: Json, *, keys: tuple[str, ...] = ()) -> Json:
    """Return the schema of an object whose keys are free, but for `keys`, and whose values are alike."""
    return {"type": "object", "additionalProperties": values, "required": list(keys)}


def rows(item: Json) -> Json:
    """Return the schema of an array of `item`."""
    return {"type": "array", "items": item}


MEASURED: Json = {"_rate$": RATE, "_accuracy$": RATE, "_nats_per_token$": NUMBER, "_reason$": TEXT}
"""Further rates and losses may stand beside the contract's, named by their unit."""

JUDGED: Json = {"value": SHARE, "n": {"type": "integer", "minimum": 1}, "ci_low": SHARE, "ci_high": SHARE,
                "judge": TEXT}
UNREADABLE: Json = {"errors": COUNT}
RATE_OBJECT = closed({**JUDGED, "others": rows(closed(JUDGED, optional=UNREADABLE))}, optional=UNREADABLE)
MEASUREMENT = closed({**dict.fromkeys(LOSSES, NUMBER), **dict.fromkeys(RATES, RATE)}, patterns=MEASURED)
NUMBERS: Json = {"_reason$": TEXT, ".": {"type": ["number", "boolean", "string", "null"]}}

CHECKPOINT: Json = {
    "type": "object",
    "properties": {"ref": TEXT, "kind": TEXT, "weights_sha256": mapping(HASH), "tokenizer_sha256": HASH,
                   "chat_template_sha256": HASH},
    "required": ["ref", "weights_sha256"], "additionalProperties": SCALAR}
DATA_SET: Json = {
    "type": "object",
    "properties": {"name": TEXT, "sha256": HASH, "fit_rows": COUNT, "held_out_rows": COUNT},
    "required": ["name", "sha256", "fit_rows", "held_out_rows"], "additionalProperties": SCALAR}
COMPARISON = closed({"n": COUNT, "p_value": SHARE, "only_first": COUNT, "only_second": COUNT},
                    optional={"groups_first": COUNT, "groups_second": COUNT})

PROPERTIES: Json = {
    "schema_version": {"const": SCHEMA_VERSION},
    "command": {"const": "restore"},
    "status": {"enum": ["ok", "error"]},
    "exit_code": {"enum": sorted(EXIT_CODES)},
    "verdict": {"enum": sorted(VERDICTS)},
    "error": closed({"what": TEXT, "hint": TEXT}),
    "inputs": closed({"base": CHECKPOINT,
                      "tuned": {**CHECKPOINT, "required": ["ref", "kind", "weights_sha256"]},
                      "data": {**mapping(DATA_SET), "required": ["harmful"]}}),
    "settings": {"type": "object"},
    "seed": {"type": "integer"},
    "environment": mapping(SCALAR),
    "before": {"$ref": "#/$defs/measurement"},
    "after": {"$ref": "#/$defs/measurement"},
    "base": {"$ref": "#/$defs/measurement"},
    "rows": mapping(COUNT),
    "gate": closed({"verdict": TEXT, "mode": TEXT, "rules": rows({"type": "object"})}),
    "comparisons": mapping(COMPARISON),
    "drift": closed({"task_kl_nats_per_token": NUMBER, "budget_nats_per_token": NUMBER,
                     "relative_update_norm": NUMBER, "distance_to_base_fraction": NUMBER}, patterns=NUMBERS),
    "restored_fraction": NUMBER,
    "restored_fraction_reason": TEXT,
    "modules": rows(closed({"module": TEXT, "safety_gain_nats_per_token": NUMBER,
                            "task_cost_nats_per_token": NUMBER, "update_share": NUMBER}, patterns=NUMBERS)),
    "controls": rows(closed({"name": {"enum": list(CONTROLS)}, "task_kl_nats_per_token": NUMBER,
                             "harmful_rate": RATE, "task_accuracy": RATE},
                            optional={"note": TEXT}, patterns=MEASURED)),
    "controls_reason": TEXT,
    "relearning": rows(closed({"system": {"enum": ["base", "restored"]}, "rows": COUNT, "probes": COUNT,
                               "steps": {"type": ["integer", "null"], "minimum": 0}, "harmful": rows(COUNT)},
                              optional={"steps_reason": TEXT})),
    "relearning_reason": TEXT,
    "steps": rows(closed({"step": COUNT, "objective": NUMBER, "drift": NUMBER, "lambda": NUMBER,
                          "accepted": {"type": "boolean"}}, patterns=NUMBERS)),
    "stopped_because": TEXT,
    "method": closed({"name": TEXT}, optional={
        **dict.fromkeys(("about", "source", "differs", "knob", "searched"), TEXT), "strength": {"type": "number"},
        "truncation_loss": SHARE}),
    "cost": closed(dict.fromkeys(("gradient_passes", "curvature_products", "examples_differentiated",
                                  "tokens_differentiated", "generated_tokens"), COUNT), patterns=NUMBERS),
    "outputs": {"type": "object", "properties": {"roundtrip_max_abs_error": NUMBER,
                                                 "roundtrip_max_abs_error_reason": TEXT},
                "required": ["roundtrip_max_abs_error"],
                "additionalProperties": closed({"sha256": HASH, "bytes": COUNT})},
    "warnings": rows(closed({"code": {"type": "string", "pattern": "^W_[A-Z0-9_]+$"}, "message": TEXT})),
    "run": {"type": "object",
            "properties": {"started_utc": TEXT, "seconds": mapping(NUMBER),
                           "peak_memory_bytes": {"type": ["integer", "null"], "minimum": 0}},
            "required": ["started_utc", "seconds", "peak_memory_bytes"]},
}

SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of saferestore restore",
    **closed(PROPERTIES),
    "required": ["schema_version", "command", "status", "exit_code", "verdict", "warnings"],
    "if": {"properties": {"status": {"const": "ok"}}},
    "then": {"required": list(COMPLETE),
             "properties": {"verdict": {"enum": ["restored", "partial", "unchanged"]}}},
    "else": {"required": ["error"], "properties": {"verdict": {"const": "refused"}}},
    "$defs": {"rate": RATE_OBJECT, "measurement": MEASUREMENT},
}


def validate(report: Mapping[str, Any]) -> None:
    """Refuse a report that breaks its contract: a defect of the program, not of its user.

    Args:
        report: What is to be written; plain JSON values.

    Raises:
        ValueError: The schema is broken, a number is not finite, or a null has no `<name>_reason` beside it.
    """
    faults = schema_faults(report, SCHEMA)
    if faults:
        raise ValueError("the report breaks its schema: " + "; ".join(faults[:5]))


def schema_faults(report: Mapping[str, Any], schema: Json) -> list[str]:
    """Return where a report breaks a schema, has a number that is not finite, or a null without its reason."""
    import jsonschema  # `saferestore schema` prints without it

    errors = jsonschema.Draft202012Validator(schema).iter_errors(report)
    return [*(f"{e.json_path}: {e.message[:200]}" for e in errors), *faulty_numbers(report, "$")]


def faulty_numbers(value: object, where: str) -> Iterator[str]:
    """Name every number that is not finite and every unexplained null in what was measured."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {value} is no JSON number"
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is None and _is_measured(key) and f"{key}_reason" not in value:
                yield f"{where}.{key}: null without `{key}_reason`"
            yield from faulty_numbers(inner, f"{where}.{key}")
    if isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from faulty_numbers(inner, f"{where}[{index}]")


def _is_measured(key: str) -> bool:
    return key.endswith(("_rate", "_accuracy", "_nats_per_token", "_fraction", "_norm", "_error"))
