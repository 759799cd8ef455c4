"""`saferestore schema [COMMAND]`: the JSON Schema of what a command writes."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Annotated

import typer

from ..core.config import nearest
from ..core.errors import UsageError

SCHEMAS = {"restore": "schema", "eval": "results_schema", "compare": "compare_schema", "probe": "probe_schema",
           "score": "score_schema", "calibrate": "calibration_schema"}
"""Command, or `eval --calibrate`, to the module of core.report that has its SCHEMA."""


def schema(command: Annotated[str, typer.Argument(help=f"One of: {', '.join(SCHEMAS)}.")] = "restore") -> None:
    """Print the JSON Schema (2020-12) of the document that a command writes and prints with --json."""
    if command not in SCHEMAS:
        raise UsageError(f"no schema of this - {command}", hint=nearest(command, SCHEMAS))
    typer.echo(json.dumps(import_module(f"...core.report.{SCHEMAS[command]}", __name__).SCHEMA, indent=2))
