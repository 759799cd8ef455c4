"""One run of the pipeline from settings to what is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import RestoreConfig, to_yaml
from ..core.errors import UsageError
from ..core.report.staging import check_out
from ..core.report.write import report_text
from . import render
from .errors import Failure, show, write_document


@dataclass(frozen=True)
class View:
    """What the user wants to see."""

    json: bool
    progress: bool
    quiet: bool


@dataclass(frozen=True)
class Run:
    """Where a restoration writes, and whether it goes on with an earlier one."""

    out: Path | None
    resume: bool
    restart: bool


def check_earlier(out: Path | None, *, resume: bool, restart: bool) -> None:
    """Refuse to go on with an interrupted run, or to drop it, where none can lie, and both; raises UsageError."""
    if resume and restart:
        raise UsageError("to go on and to begin again - --resume --restart", hint="give one of them")
    if out is None and (resume or restart):
        raise UsageError("no folder with an interrupted run - --out", hint="add -o OUT as in that run")


def print_settings(config: Any) -> int:
    """Print the settings as YAML, which --config reads, and return 0."""
    write_document(to_yaml(config))
    return 0


def run(command: Callable[..., dict[str, Any]], view: View) -> dict[str, Any]:
    """Run a command under its progress bars, the first of which is for the libraries.

    Args:
        command: Takes the module `pipeline`, and `progress`.
        view: What the user wants to see.

    Returns:
        The document.
    """
    with render.progress_bars(enabled=view.progress) as progress:
        progress("load libraries", 0, 1)
        from ..core import pipeline

        progress("load libraries", 1, 1)
        return command(pipeline, progress=progress)


def finished(command: Callable[..., dict[str, Any]], view: View, show: Callable[[dict[str, Any]], None]) -> int:
    """Run a command, print its document as JSON or by `show`, then its warnings, and return its exit code."""
    found = run(command, view)
    print_document(found, view, show)
    if not view.quiet:
        render.print_warnings(found)
    return found["exit_code"]


def print_document(found: dict[str, Any], view: View, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a document as JSON, or by `show`."""
    if view.json:
        write_document(report_text(found))
    else:
        show(found)


def print_plan(plan: dict[str, Any], view: View) -> int:
    """Print what `--dry-run` found, then its warnings, and return 0."""
    print_document(plan, view, render.print_plan)
    if not view.quiet:
        render.print_warnings(plan)
    return 0


def execute(config: RestoreConfig, run: Run, view: View, *, dry_run: bool, print_config: bool) -> int:
    """Run, plan or print, whichever was asked for, and return the exit code."""
    if print_config:
        return print_settings(config)
    check_earlier(run.out, resume=run.resume, restart=run.restart)
    if run.out is not None:
        check_out(run.out, force=config.force, reads=config.reads)
    if dry_run:
        from ..core import pipeline

        return print_plan(pipeline.plan(config), view)
    if run.out is None:
        raise UsageError("no folder to write - --out", hint="add -o OUT, or --dry-run to see the plan")
    return _restore(config, run.out, view, {"resume": run.resume, "restart": run.restart})


def _restore(config: RestoreConfig, out: Path, view: View, earlier: dict[str, bool]) -> int:
    report = run(lambda pipeline, **more: pipeline.restore(config, out, **earlier, **more), view)
    if report["status"] != "ok":
        return _show_refusal(report, view)
    print_document(report, view, lambda found: render.print_report(found, out, brief=view.quiet))
    if not view.quiet:
        render.print_warnings(report)
    return report["exit_code"]


def _show_refusal(report: dict[str, Any], view: View) -> int:
    if view.json:
        write_document(report_text(report))
    return show(Failure(**report["error"], exit_code=report["exit_code"]), None)
