"""One run of the pipeline from settings to what is printed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import RestoreConfig, to_yaml
from ..core.errors import UsageError
from ..core.report.staging import check_out
from ..core.report.write import report_text
from . import render
from .errors import Failure, show


@dataclass(frozen=True)
class View:
    """What the user wants to see."""

    json: bool
    progress: bool
    quiet: bool


def execute(config: RestoreConfig, out: Path | None, view: View, *, dry_run: bool, print_config: bool) -> int:
    """Run, plan or print, whichever was asked for, and return the exit code."""
    if print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    if out is not None:
        check_out(out, force=config.force)
    if dry_run:
        return _plan(config, view)
    if out is None:
        raise UsageError("no folder to write - --out", hint="add -o OUT, or --dry-run to see the plan")
    return _restore(config, out, view)


def _plan(config: RestoreConfig, view: View) -> int:
    from ..core import pipeline

    plan = pipeline.plan(config)
    sys.stdout.write(report_text(plan)) if view.json else render.print_plan(plan)
    return 0


def _restore(config: RestoreConfig, out: Path, view: View) -> int:
    with render.progress_bars(enabled=view.progress) as progress:
        progress("load libraries", 0, 1)
        from ..core import pipeline

        progress("load libraries", 1, 1)
        report = pipeline.restore(config, out, progress=progress)
    return _show(report, out, view)


def _show(report: dict[str, Any], out: Path, view: View) -> int:
    if report["status"] != "ok":
        return _show_refusal(report, view)
    if view.json:
        sys.stdout.write(report_text(report))
    else:
        render.print_report(report, out, brief=view.quiet)
    if not view.quiet:
        render.print_warnings(report)
    return report["exit_code"]


def _show_refusal(report: dict[str, Any], view: View) -> int:
    if view.json:
        sys.stdout.write(report_text(report))
    return show(Failure(**report["error"], exit_code=report["exit_code"]), ())
