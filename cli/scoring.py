"""One score from settings to what is printed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ..core.config import ScoreConfig, to_yaml
from ..core.errors import UsageError
from ..core.report.staging import check_out
from ..core.report.write import report_text
from . import render, render_score
from .running import View


@dataclass(frozen=True)
class Run:
    """What a run writes, and whether it goes on with an earlier one."""

    out: Path | None
    clean: Path | None
    resume: bool
    restart: bool


def execute(config: ScoreConfig, run: Run, view: View, *, print_config: bool) -> int:
    """Score, or print the settings, and return the exit code."""
    if print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    if run.out is None and (run.resume or run.restart):
        raise UsageError("no folder with an interrupted run - --out", hint="add -o OUT as in that run")
    if run.out is not None:
        check_out(run.out, force=config.force)
    with render.progress_bars(enabled=view.progress) as progress:
        progress("load libraries", 0, 1)
        from ..core import pipeline

        progress("load libraries", 1, 1)
        found = pipeline.score(config, run.out, clean=run.clean, resume=run.resume, restart=run.restart,
                               progress=progress)
    if view.json:
        sys.stdout.write(report_text(found))
    else:
        render_score.print_score(found, run.out, run.clean, brief=view.quiet)
    if not view.quiet:
        render.print_warnings(found)
    return found["exit_code"]
