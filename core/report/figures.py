"""Pictures as SVG text: the same picture gives the same bytes, readable in black and white and without style sheets.

Lines differ by dashes and markers, heights by labelled contours over greys. Styles are attributes of their own, so that
a page whose policy strips style sheets still shows them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .heat import SHADES, Strip

Json = Mapping[str, Any]
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
STYLE: Any = {"svg.hashsalt": "saferestore", "svg.fonttype": "path", "font.size": 8, "axes.titlesize": 8,
              "axes.spines.top": False, "axes.spines.right": False}
_STYLED = re.compile(r' style="([^"]*)"')
_ID = re.compile(r'\bid="|href="#|url\(#')


def draw(figures: Mapping[str, Callable[[Json], Figure]], found: Json) -> dict[str, str]:
    """Return pictures of a document as SVG text.

    Args:
        figures: Name -> what draws it from the document.
        found: The document.

    Returns:
        Name -> an `<svg>` element that may stand in a page.
    """
    drawn = {}
    for name, make in figures.items():
        with rc_context(STYLE):
            stream = io.StringIO()
            FigureCanvasSVG(make(found)).print_svg(stream, metadata={"Date": None, "Creator": None})
        drawn[name] = _plain(stream.getvalue(), name)
    return drawn


def _plain(svg: str, name: str) -> str:
    """Drop what stands before the picture, turn styles into the attributes they stand for, name it and all its ids."""
    body = re.sub(r"<style[^>]*>.*?</style>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    lines = _STYLED.sub(lambda match: "".join(_attributes(match[1])), body)
    own = _ID.sub(rf"\g<0>{name}-", lines)  # several stand in one page, and matplotlib gives all the same ids
    # Without its style sheet matplotlib's lines would have square corners and no joins: these are its two rules.
    rules = 'stroke-linejoin="round" stroke-linecap="butt"'
    return own.replace("<svg ", f'<svg role="img" aria-label="{name}" {rules} ', 1)


def _attributes(style: str) -> list[str]:
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    return [f' {key.strip()}="{value.strip()}"' for key, value in pairs]


def contour(panel: Any, axes: Sequence[Sequence[float]], heights: Sequence[Sequence[float | None]]) -> None:
    """Draw labelled contours; a small x marks a gap, a cross the checkpoint's own weights.

    Args:
        panel: matplotlib's axes.
        axes: Steps along both directions.
        heights: A row a step along the first one; None at gaps.
    """
    z = np.ma.masked_invalid(np.array(heights, dtype=float))
    if min(z.shape) > 1 and z.count() and float(np.ptp(z.compressed())) > 0:
        lines = panel.contour(axes[1], axes[0], z, levels=7, colors="black", linewidths=0.7)
        panel.contourf(axes[1], axes[0], z, levels=7, cmap="Greys", alpha=0.5)
        panel.clabel(lines, fontsize=6, fmt="%.3g")
    for i, j in zip(*np.nonzero(np.ma.getmaskarray(z)), strict=True):
        panel.plot(axes[1][j], axes[0][i], "x", color="black", markersize=3)
    panel.plot(0, 0, "+", color="black", markersize=7)


def curves(panel: Any, series: Mapping[str, tuple[Sequence[float], Sequence[float | None]]], *,
           every: int = 1) -> None:
    """Draw lines that differ by dashes and markers, with a legend; gaps stay open.

    Args:
        panel: matplotlib's axes.
        series: Label -> (x, y).
        every: A marker at every so many points.
    """
    for number, (label, (x, y)) in enumerate(series.items()):
        panel.plot(x, np.array(y, dtype=float), LINES[number % 4], color="black", marker=MARKERS[number % 4],
                   markersize=3, markevery=every, linewidth=1, label=label)
    if series:
        panel.legend(frameon=False, fontsize=6)


def band(panel: Any, x: Sequence[float], y: Sequence[float], half: Sequence[float], number: int) -> None:
    """Draw the interval of the curve of this number; two bands differ by their grey and their edge.

    Args:
        panel: matplotlib's axes.
        x: Places.
        y: Middles.
        half: Half widths; the lower edge is never below 0.
        number: Of the curve.
    """
    low, high = np.clip(np.subtract(y, half), 0, None), np.add(y, half)
    panel.fill_between(x, low, high, color="black", alpha=0.12, linewidth=0)
    panel.plot(x, high, LINES[number % 4], color="grey", linewidth=0.4)


def heat(panel: Any, strip: Strip, text: Callable[[float], str]) -> None:
    """Draw a heat strip as a table of greys with a number in every cell, a dash where there is no module.

    Args:
        panel: matplotlib's axes.
        strip: The table.
        text: How a number is written.
    """
    shades = np.array([[strip.shade(value) for value in cells] for _, cells in strip.layers], dtype=float)
    panel.pcolormesh(shades, cmap="Greys", vmin=0, vmax=SHADES - 1, edgecolors="white", linewidth=0.5)
    for row, (_, cells) in enumerate(strip.layers):
        for column, value in enumerate(cells):
            panel.text(column + 0.5, row + 0.5, "-" if value is None else text(value), ha="center", va="center",
                       fontsize=6, color="white" if shades[row, column] > SHADES / 2 else "black")
    panel.set_xticks([i + 0.5 for i in range(len(strip.columns))], strip.columns, fontsize=6)
    panel.set_yticks([i + 0.5 for i in range(len(strip.layers))], [layer for layer, _ in strip.layers])
    panel.tick_params(length=0)
    panel.invert_yaxis()
    panel.set_ylabel("layer")
