"""One score from settings to what is printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import ScoreConfig
from ..core.report.staging import check_out
from . import render_score
from .running import View, check_earlier, finished, print_settings


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
        return print_settings(config)
    check_earlier(run.out, resume=run.resume, restart=run.restart)
    if run.out is not None:
        check_out(run.out, force=config.force, reads=config.reads)

    def scored(pipeline: Any, **more: Any) -> dict[str, Any]:
        return pipeline.score(config, run.out, clean=run.clean, resume=run.resume, restart=run.restart, **more)

    return finished(scored, view, lambda found: render_score.print_score(found, run.out, run.clean, brief=view.quiet))
