"""One evaluation from settings to what is printed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import EvalConfig
from ..core.errors import UsageError
from ..core.report.staging import check_out
from . import render, render_eval
from .running import View, check_earlier, print_document, print_plan, print_settings, run


@dataclass(frozen=True)
class Run:
    """What a run writes, and whether it goes on with an earlier one."""

    out: Path | None
    new_baseline: Path | None
    resume: bool
    restart: bool
    calibrate: tuple[str, ...]


def execute(config: EvalConfig, asked: Run, view: View, *, dry_run: bool, print_config: bool) -> int:
    """Evaluate, calibrate, plan or print, whichever was asked for, and return the exit code."""
    if print_config:
        return print_settings(config)
    if asked.calibrate and (asked.out or asked.new_baseline):
        raise UsageError(f"--calibrate writes no files - {'--out' if asked.out else '--write-baseline'}",
                         hint="leave it out; --calibrate ... --json > FILE keeps the table")
    check_earlier(asked.out, resume=asked.resume, restart=asked.restart)
    if asked.out is not None:
        check_out(asked.out, force=config.force, reads=config.reads)
    if asked.calibrate:
        return _calibrate(config, asked, view)
    if not (config.model or config.generations):
        raise UsageError("nothing to evaluate - MODEL", hint="give a MODEL, or --generations FILE")
    return _plan(config, view) if dry_run else _evaluate(config, asked, view)


def _plan(config: EvalConfig, view: View) -> int:
    from ..core import pipeline

    return print_plan(pipeline.plan_evaluation(config), view)


def _calibrate(config: EvalConfig, asked: Run, view: View) -> int:
    found = run(lambda pipeline, **more: pipeline.calibrate(config, asked.calibrate, **more), view)
    print_document(found, view, render_eval.print_calibration)
    if not view.quiet:
        render_eval.print_rejected(found)
    return 0


def _evaluate(config: EvalConfig, asked: Run, view: View) -> int:
    def evaluated(pipeline: Any, **more: Any) -> dict[str, Any]:
        return pipeline.evaluate(config, asked.out, new_baseline=asked.new_baseline, resume=asked.resume,
                                 restart=asked.restart, **more)

    def shown(found: dict[str, Any]) -> None:
        render_eval.print_results(found, asked.out, brief=view.quiet)

    found = run(evaluated, view)
    print_document(found, view, shown)
    if not view.quiet:
        render.print_warnings(found)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from ..core.report.step_summary import annotation_lines

        sys.stderr.writelines(f"{line}\n" for line in annotation_lines(found))
    return found["exit_code"]
