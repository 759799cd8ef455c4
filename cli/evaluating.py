"""One evaluation from settings to what is printed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import EvalConfig, to_yaml
from ..core.errors import UsageError
from ..core.report.staging import check_out
from . import render, render_eval
from .running import View


@dataclass(frozen=True)
class Run:
    """What a run writes, and whether it goes on with an earlier one."""

    out: Path | None
    new_baseline: Path | None
    resume: bool
    restart: bool
    calibrate: tuple[str, ...]


def execute(config: EvalConfig, run: Run, view: View, *, dry_run: bool, print_config: bool) -> int:
    """Evaluate, calibrate, plan or print, whichever was asked for, and return the exit code."""
    if print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    if run.out is None and (run.resume or run.restart):
        raise UsageError("no folder with an interrupted run - --out", hint="add -o OUT as in that run")
    if run.out is not None:
        check_out(run.out, force=config.force)
    if run.calibrate:
        return _calibrate(config, run, view)
    if not (config.model or config.generations):
        raise UsageError("nothing to evaluate - MODEL", hint="give a MODEL, or --generations FILE")
    return _plan(config, view) if dry_run else _evaluate(config, run, view)


def _plan(config: EvalConfig, view: View) -> int:
    from ..core import pipeline

    _print(pipeline.plan_evaluation(config), view, render.print_plan)
    return 0


def _calibrate(config: EvalConfig, run: Run, view: View) -> int:
    with render.progress_bars(enabled=view.progress) as progress:
        from ..core import pipeline

        found = pipeline.calibrate(config, run.calibrate, progress=progress)
    _print(found, view, render_eval.print_calibration)
    return 0


def _evaluate(config: EvalConfig, run: Run, view: View) -> int:
    with render.progress_bars(enabled=view.progress) as progress:
        progress("load libraries", 0, 1)
        from ..core import pipeline

        progress("load libraries", 1, 1)
        found = pipeline.evaluate(config, run.out, new_baseline=run.new_baseline, resume=run.resume,
                                  restart=run.restart, progress=progress)
    _print(found, view, lambda results: render_eval.print_results(results, run.out, brief=view.quiet))
    if not view.quiet:
        render.print_warnings(found)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from ..core.report.step_summary import annotation_lines

        sys.stderr.writelines(f"{line}\n" for line in annotation_lines(found))
    return found["exit_code"]


def _print(found: dict[str, Any], view: View, show: Any) -> None:
    from ..core.report.write import report_text

    sys.stdout.write(report_text(found)) if view.json else show(found)
