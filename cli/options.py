"""What options have in common: settings from a file, and settings gathered for the calculation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer

from ..core.config import AnyConfig, CompareConfig, EvalConfig, ProbeConfig, RestoreConfig, ScoreConfig, read_yaml

Settings = TypeVar("Settings", bound=AnyConfig)


def read_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of `restore` from `--config FILE`; flags and the environment stand above them."""
    return _read(context, path, RestoreConfig)


def read_eval_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of `eval` from `--config FILE`."""
    return _read(context, path, EvalConfig)


def read_compare_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of `compare` from `--config FILE`."""
    return _read(context, path, CompareConfig)


def read_probe_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of `probe` from `--config FILE`."""
    return _read(context, path, ProbeConfig)


def read_score_defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of `score` from `--config FILE`."""
    return _read(context, path, ScoreConfig)


def settings(given: Mapping[str, Any], kind: type[Settings]) -> Settings:
    """Return the settings among a command's parameters; raises UsageError where one is out of range."""
    values: dict[str, Any] = {field.name: tuple(value) if isinstance(value := given[field.name], list) else value
                              for field in dataclasses.fields(kind)}
    return kind(**values)


def _read(context: typer.Context, path: Path | None, kind: type[AnyConfig]) -> Path | None:
    if path is not None:
        fields = {field.name: field for field in dataclasses.fields(kind)}
        context.default_map = {name: _as_given(value, fields[name].default)
                               for name, value in read_yaml(path, fields).items()}
    return path


def _as_given(value: object, default: object) -> object:
    """Let one file stand for a list of one."""
    return [value] if isinstance(value, str) and isinstance(default, tuple) else value
