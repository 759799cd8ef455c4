"""What options have in common: settings from a file, and settings gathered for the calculation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ..core.config import RestoreConfig, read_yaml

FIELDS = {field.name: field for field in dataclasses.fields(RestoreConfig)}


def read_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of a command from `--config FILE`; flags and the environment stand above them."""
    if path is not None:
        context.default_map = {name: _as_given(name, value) for name, value in read_yaml(path, FIELDS).items()}
    return path


def settings(given: Mapping[str, Any]) -> RestoreConfig:
    """Return the settings among a command's parameters; raises UsageError where one is out of range."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value := given[name], list) else value
                              for name in FIELDS}
    return RestoreConfig(**values)


def _as_given(name: str, value: object) -> object:
    """Let one file stand for a list of one."""
    return [value] if isinstance(value, str) and FIELDS[name].default == () else value
