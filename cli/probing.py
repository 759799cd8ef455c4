"""One probe from settings to what is printed."""

from __future__ import annotations

import sys
from pathlib import Path

from ..core.config import ProbeConfig, to_yaml
from ..core.report.staging import check_out
from ..core.report.write import report_text
from . import render, render_probe
from .running import View


def execute(config: ProbeConfig, out: Path | None, plots: Path | None, view: View, *, print_config: bool) -> int:
    """Probe, or print the settings, and return the exit code."""
    if print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    for folder in (out, plots):
        if folder is not None:
            check_out(folder, force=config.force)
    with render.progress_bars(enabled=view.progress) as progress:
        progress("load libraries", 0, 1)
        from ..core import pipeline

        progress("load libraries", 1, 1)
        found = pipeline.probe(config, out, plots=plots, progress=progress)
    if view.json:
        sys.stdout.write(report_text(found))
    else:
        render_probe.print_probe(found, out, brief=view.quiet)
    if not view.quiet:
        render.print_warnings(found)
    return found["exit_code"]
