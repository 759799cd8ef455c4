"""The files of a probe: its document, a page that needs nothing else, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from . import rows
from .figures import draw
from .probe_figures import NAMES, figures_of
from .write import report_text

DOCUMENT = "report.json"


def write_probe(folder: Path, found: Mapping[str, Any]) -> None:
    """Write `report.json`, `report.html` and a file a picture; all but the first are the same on a second run.

    Args:
        folder: The staged folder.
        found: A valid document.
    """
    figures = draw(figures_of(found), found)
    files = {DOCUMENT: report_text(found), "report.html": page(found, figures),
             **{f"{name}.svg": f"{svg}\n" for name, svg in figures.items()}}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def write_pictures(folder: Path, found: Mapping[str, Any]) -> None:
    """Write the pictures of a valid document, a file each."""
    for name, svg in draw(figures_of(found), found).items():
        (folder / f"{name}.svg").write_text(f"{svg}\n", encoding="utf-8", newline="\n")


def page(found: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """Return the document as one HTML page without scripts, every text escaped.

    Args:
        found: A valid document; `run` is not shown.
        figures: Its pictures.
    """
    text = resources.files("saferestore.core.report").joinpath("probe.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
                                     undefined=jinja2.StrictUndefined,
                                     finalize=lambda value: rows.plain(value) if type(value) is str else value)
    return environment.from_string(text).render(found=found, figures=figures, rows=rows, names=NAMES,
                                                interval=interval, shares=percent_interval)


def interval(row: Mapping[str, Any], key: str = "value") -> str:
    """Return `value (low to high)`, without brackets where there is no interval."""
    ends = "" if row["ci_low"] is None else f" ({row['ci_low']:.3g} to {row['ci_high']:.3g})"
    return f"{row[key]:.3g}{ends}"


def percent_interval(row: Mapping[str, Any]) -> str:
    """Return a share in percent with its interval, which ends where a share does."""
    if row["ci_low"] is None:
        return f"{rows.percent(row['value'])}%"
    low, high = (rows.percent(min(1.0, max(0.0, row[key]))) for key in ("ci_low", "ci_high"))
    return f"{rows.percent(row['value'])}% ({low} to {high})"
