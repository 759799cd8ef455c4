"""The files of a comparison: its document, a page that needs nothing else, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ..geometry.verdict import WORDS
from . import compare_rows
from .compare_figures import FIGURES
from .figures import draw
from .rows import plain
from .write import report_text

DOCUMENT = "report.json"


def write_comparison(folder: Path, found: Mapping[str, Any]) -> None:
    """Write `report.json`, `report.html` and a file a picture; all but the first are the same on a second run.

    Args:
        folder: The staged folder.
        found: A valid document.
    """
    figures = draw(FIGURES, found)
    files = {DOCUMENT: report_text(found), "report.html": page(found, figures),
             **{f"{name}.svg": f"{svg}\n" for name, svg in figures.items()}}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def write_pictures(folder: Path, found: Mapping[str, Any]) -> None:
    """Write the pictures of a valid document, a file each."""
    for name, svg in draw(FIGURES, found).items():
        (folder / f"{name}.svg").write_text(f"{svg}\n", encoding="utf-8", newline="\n")


def page(found: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """Return the document as one HTML page without scripts, every text escaped.

    Args:
        found: A valid document; `run` is not shown.
        figures: Its pictures, from `figures.draw`.
    """
    text = resources.files("saferestore.core.report").joinpath("compare.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
                                     undefined=jinja2.StrictUndefined,
                                     finalize=lambda value: plain(value) if type(value) is str else value)
    return environment.from_string(text).render(
        found=found, figures=figures, words=WORDS[found["verdict"]], systems=compare_rows.systems(found),
        losses=list(compare_rows.losses(found)), against=compare_rows.against(found),
        similarity=list(compare_rows.similarity(found)), modules=compare_rows.modules(found))
