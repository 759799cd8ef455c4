"""A comparison in the terminal, at most 80 columns wide."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from ..core.report import compare_rows, rows
from ..core.report.heat import SHADES, Strip
from .render import console_of, shortened, table_of, text_of

BARS = "▁▂▃▄▅▆▇█"
BLOCKS = " ·░░▒▒▓▓█"
"""A character a step of grey."""


def print_comparison(found: dict[str, Any], out: Path | None, *, brief: bool = False) -> None:
    """Print the verdict and the tables on stdout; only the first line if `brief`."""
    console = console_of(sys.stdout)
    console.print(text_of(found["sentences"][0]), soft_wrap=True)
    if not brief:
        for part in _parts(found, out):
            console.print(part)


def _parts(found: dict[str, Any], out: Path | None) -> Iterator[RenderableType]:
    for sentence in found["sentences"][1:]:
        yield text_of(fill(sentence, 79, initial_indent=" - ", subsequent_indent="   "))
    yield ""
    yield _losses(found)
    yield ""
    yield _similarity(found)
    yield Text(" 95% intervals; losses of rows: ranks, length partialled out", style="dim")
    yield ""
    yield from _line(found)
    yield ""
    yield _shares(found)
    yield ""
    yield _modules(found)
    for label, strip in compare_rows.strips(found)[:1]:
        yield ""
        yield from heat_lines(f"{label} of the change by layer and module", strip)
    if out is not None:
        yield text_of(f" written to {out}")


def _losses(found: dict[str, Any]) -> RenderableType:
    table = table_of(["nats per token", *compare_rows.systems(found), "rows"])
    for name, cells, n in compare_rows.losses(found):
        table.add_row(name, *(cell.partition(" ")[0] for cell in cells), str(n))
    return table


def _similarity(found: dict[str, Any]) -> RenderableType:
    table, group = table_of(["alike to the base", *compare_rows.against(found)[:2]]), None
    for name, label, cells in compare_rows.similarity(found, every=False):
        if name != group:
            table.add_row(text_of(f"{name} rows", "bold"))
        group, measure = name, f" {label.partition(',')[0]}"
        table.add_row(*(Text(cell, no_wrap=True) for cell in (measure, *cells[:2])))
    return table


def _line(found: dict[str, Any]) -> Iterator[Text]:
    line = found["interpolation"]
    yield Text(f" loss from base to tuned, steps {line['steps'][0]:g} to {line['steps'][-1]:g}", style="bold")
    for name, losses in line["losses_nats_per_token"].items():
        yield text_of(f" {name:<9}{sparkline(losses)}  {_ends(losses)}")


def _ends(losses: list[float | None]) -> str:
    return f"{rows.number_text(losses[0])} to {rows.number_text(losses[-1])}"


def sparkline(values: list[float | None]) -> str:
    """Return a bar a value between the least and the largest, a blank where there is none."""
    known = [value for value in values if value is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
    return "".join(" " if value is None else BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


def _shares(found: dict[str, Any]) -> RenderableType:
    table = table_of(["gradient at tuned", "dims", "in the task's curvature", "random vector"])
    for gradient, k, share, random in compare_rows.shares(found):
        table.add_row(gradient, str(k), share, random)
    return table


def _modules(found: dict[str, Any]) -> RenderableType:
    table = table_of(["changed most", "relative size", "effective rank"])
    for name, size, rank in compare_rows.modules(found, 5):
        table.add_row(text_of(shortened(name, 46)), size, rank)
    return table


def heat_lines(title: str, strip: Strip) -> Iterator[Text]:
    """Yield a heat strip as blocks, darker for more, in at most 80 columns; what does not fit is left out."""
    yield text_of(f" {title}, darker is more", "bold")
    yield text_of((" layer " + " ".join(name[:6].ljust(6) for name in strip.columns))[:80].rstrip())
    for layer, cells in strip.layers:
        blocks = " ".join(BLOCKS[strip.shade(value) * (len(BLOCKS) - 1) // (SHADES - 1)] * 6 for value in cells)
        yield text_of(f" {layer:>5} {blocks}"[:80].rstrip())
