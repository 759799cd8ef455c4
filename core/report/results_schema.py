"""The results of `eval` as a JSON Schema (2020-12), and the check that every written results file passes.

A finished run (`status: ok`) has all keys of the contract; one that stopped (`status: error`) has an `error` with its
remedy. A number that is not known is null with a `reason` in the same row. The file carries how every prompt
counted (`verdicts`), so that a later run can take it for its baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..evaluation.gate.decide import MODES, VERDICT_CODES
from ..evaluation.gate.metrics import is_rate
from ..evaluation.gate.rules import SEVERITIES, THRESHOLDS
from ..evaluation.samples import ROLES
from .schema import CHECKPOINT, COUNT, HASH, NUMBER, SCALAR, SHARE, TEXT, Json, closed, mapping, rows, schema_faults
from .verdicts import EXIT_CODES

SCHEMA_VERSION = "1.0"
COMPLETE = ("inputs", "settings", "seed", "environment", "metrics", "comparisons", "agreement", "verdicts", "run")
"""Keys that a finished run has besides those of every results file."""

ROLE: Json = {"enum": list(ROLES)}
POSITIVE: Json = {"type": "integer", "minimum": 1}
PLACE: Json = {"set": TEXT, "role": ROLE, "attack": TEXT, "metric": TEXT, "judge": TEXT}
METRIC: Json = {
    **closed({"system": TEXT, **PLACE, "value": NUMBER, "n": COUNT, "ci_low": NUMBER, "ci_high": NUMBER,
              "errors": COUNT},
             optional={"k": POSITIVE, "reason": TEXT, "design_effect": {"type": "number", "minimum": 1}}),
    "if": {"properties": {"value": {"type": "null"}}}, "then": {"required": ["reason"]}}
OUTCOME = closed({"rule": TEXT, "severity": {"enum": list(SEVERITIES)}, "metric": TEXT, "system": TEXT, "set": TEXT,
                  "judge": TEXT, "attack": TEXT, "verdict": {"enum": ["pass", "fail", "inconclusive"]},
                  "kind": {"enum": list(THRESHOLDS)}, "threshold": {"type": "number"}, "value": NUMBER,
                  "bound": NUMBER, "n": COUNT, "errors": COUNT,
                  "more_samples": {"type": ["integer", "null"], "minimum": 1}, "text": TEXT})
SET: Json = {"type": "object", "properties": {"name": TEXT, "role": ROLE, "sha256": HASH, "rows": COUNT,
                                              "rejected": COUNT},
             "required": ["name", "role", "sha256", "rows", "rejected"], "additionalProperties": SCALAR}
COMPARISON = closed({"first": TEXT, "second": TEXT, **PLACE, "n": POSITIVE, "only_first": COUNT,
                     "only_second": COUNT, "p_value": SHARE},
                    optional={"groups_first": COUNT, "groups_second": COUNT})
VERDICT = closed({"system": TEXT, **PLACE, "hits": mapping({"enum": [0, 1, None]})},
                 optional={"groups": mapping(COUNT)})

PROPERTIES: Json = {
    "schema_version": {"const": SCHEMA_VERSION},
    "command": {"const": "eval"},
    "status": {"enum": ["ok", "error"]},
    "exit_code": {"enum": sorted(EXIT_CODES)},
    "error": closed({"what": TEXT, "hint": TEXT}),
    "gate": closed({"verdict": {"enum": sorted(VERDICT_CODES)}, "mode": {"enum": list(MODES)},
                    "rules": rows(OUTCOME)}),
    "inputs": closed({"systems": mapping(CHECKPOINT), "sets": rows(SET), "judges": mapping(mapping(SCALAR))},
                     optional={"attacks": mapping(mapping(SCALAR))}),
    "settings": {"type": "object"},
    "seed": {"type": "integer"},
    "environment": mapping(SCALAR),
    "metrics": rows(METRIC),
    "comparisons": rows(COMPARISON),
    "agreement": rows({"type": "object", "additionalProperties": SCALAR}),
    "verdicts": rows(VERDICT),
    "warnings": rows(closed({"code": {"type": "string", "pattern": "^W_[A-Z0-9_]+$"}, "message": TEXT})),
    "rejected": rows(closed({"file": TEXT, "line": COUNT, "reason": TEXT})),
    "run": {"type": "object"},
}

SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Results of saferestore eval",
    **closed(PROPERTIES),
    "required": ["schema_version", "command", "status", "exit_code", "gate", "warnings"],
    "if": {"properties": {"status": {"const": "ok"}}},
    "then": {"required": list(COMPLETE), "properties": {"exit_code": {"enum": [0, 3, 4]}}},
    "else": {"required": ["error"], "properties": {"exit_code": {"not": {"enum": [0]}}}},
}


def validate(results: Mapping[str, Any]) -> None:
    """Refuse results that break their contract: a defect of the program, or a file that is no results file.

    Args:
        results: What is to be written, or was read; plain JSON values.

    Raises:
        ValueError: The schema is broken, a number is not finite, or a rate disagrees with how its prompts counted.
    """
    faults = schema_faults(results, SCHEMA) or list(_disagreements(results))
    if faults:
        raise ValueError("the results break their schema: " + "; ".join(faults[:5]))


def _disagreements(results: Mapping[str, Any]) -> Iterator[str]:
    """Every rate is told by its verdicts, so that no baseline can say two things."""
    keys = ("system", *PLACE)
    hits = {tuple(each[key] for key in keys): each["hits"].values() for each in results.get("verdicts", ())}
    for index, row in enumerate(results.get("metrics", ())):
        told = hits.get(tuple(row[key] for key in keys))
        if told is None or not is_rate(row["metric"]):
            continue
        known = [hit for hit in told if hit is not None]
        value = sum(known) / len(known) if known else None
        if (row["n"], row["errors"], row["value"]) != (len(known), len(told) - len(known), value):
            yield f"$.metrics[{index}]: {row['metric']} {row['value']} is not what its verdicts say"
