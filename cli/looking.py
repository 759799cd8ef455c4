"""One probe or comparison from settings to what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.config import CompareConfig, ProbeConfig
from ..core.report.staging import check_folders
from .running import View, finished, print_settings


def execute(config: ProbeConfig | CompareConfig, out: Path | None, plots: Path | None, view: View, *,
            print_config: bool) -> int:
    """Measure, or print the settings, and return the exit code."""
    if print_config:
        return print_settings(config)
    check_folders((out, plots), force=config.force, reads=config.reads)
    show = _print_probe if isinstance(config, ProbeConfig) else _print_comparison

    def measured(pipeline: Any, **more: Any) -> dict[str, Any]:
        command = pipeline.probe if isinstance(config, ProbeConfig) else pipeline.compare
        return command(config, out, plots=plots, **more)

    return finished(measured, view, lambda found: show(found, out, brief=view.quiet))


def _print_probe(found: dict[str, Any], out: Path | None, *, brief: bool) -> None:
    from . import render_probe

    render_probe.print_probe(found, out, brief=brief)


def _print_comparison(found: dict[str, Any], out: Path | None, *, brief: bool) -> None:
    from . import render_compare

    render_compare.print_comparison(found, out, brief=brief)
