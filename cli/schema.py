"""`saferestore schema`: the JSON Schema of the report."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema (2020-12) of saferestore.json."""
    from ..core.report.schema import SCHEMA

    typer.echo(json.dumps(SCHEMA, indent=2))
