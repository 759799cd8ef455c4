"""What `eval --calibrate --json` prints, as a JSON Schema (2020-12), and the check that every such document passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.agreement import ABOUT
from ..evaluation.calibration import PARTIAL
from .schema import COUNT, HASH, SHARE, TEXT, Json, closed, rows, schema_faults

SCHEMA_VERSION = "1.0"
RATE: Json = {"anyOf": [{"type": "null"}, closed({"n": {"type": "integer", "minimum": 1}, "value": SHARE,
                                                  "ci_low": SHARE, "ci_high": SHARE})]}
"""A share with Wilson's 95% interval; null where no answer of its kind is there."""

SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Table of saferestore eval --calibrate",
    **closed({
        "schema_version": {"const": SCHEMA_VERSION},
        "command": {"const": "calibrate"},
        "status": {"const": "ok"},
        "exit_code": {"const": 0},
        "calibration": rows(closed({
            "file": TEXT, "sha256": HASH, "judge": TEXT, "model": TEXT, "about": {"enum": list(ABOUT)},
            "partial": {"enum": [*PARTIAL, "none"]}, "n": COUNT, "errors": COUNT, "unsaid": COUNT, "sensitivity": RATE,
            "specificity": RATE})),
        "rejected": rows(closed({"file": TEXT, "line": COUNT, "reason": TEXT})),
    }),
}


def valid(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table as it is.

    Args:
        found: What is to be printed, plain JSON values.

    Raises:
        ValueError: It breaks its contract, which is a defect of the program.
    """
    faults = schema_faults(found, SCHEMA)
    if faults:
        raise ValueError("the calibration breaks its schema: " + "; ".join(faults[:5]))
    return dict(found)
