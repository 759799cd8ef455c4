"""The picture of `geometry.py`: similarity beside its controls, and shares of gradients, a column a family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from geometry_tables import COLUMNS, NAMES, Json, Mean, alike, kinds, over_seeds, share, sizes
from saferestore.core.geometry.verdict import HEADLINE

mpl.use("svg")
from matplotlib import pyplot

MARKS = {"harmful rows": ("o", "black"), "task rows": ("s", "white"), "benign rows": ("^", "white"),
         "shuffled": ("x", "grey"), "another base": ("D", "lightgrey"), "itself": ("|", "black")}
LINES = {("safety", "base"): ("--", "o", "white"), ("safety", "tuned"): ("-", "o", "black"),
         ("task", "base"): ("--", "s", "white"), ("task", "tuned"): ("-", "s", "grey"),
         ("random", "tuned"): (":", "", "black")}


def draw(cells: Sequence[Json], picture: Path) -> None:
    """Draw it; the same cells give the same bytes."""
    mpl.rcParams["svg.hashsalt"] = "saferestore"
    families = kinds(cells, "family")
    figure, panels = pyplot.subplots(2, max(len(families), 1), figsize=(10, 7), squeeze=False, sharey="row",
                                     layout="constrained")
    for column, ((family,), own) in enumerate(families):
        similarity(panels[0][column], family, own)
        gradients(panels[1][column], family, own)
    labels(panels)
    for panel, place in ((panels[0][0], "outside upper center"), (panels[1][0], "outside lower center")):
        figure.legend(*panel.get_legend_handles_labels(), loc=place, ncols=6, fontsize=7)
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def labels(panels: Any) -> None:
    """What the first column says for all."""
    above, below = panels[0][0], panels[1][0]
    above.set_yticks(range(len(HEADLINE)), [NAMES[name] for name in HEADLINE])
    above.invert_yaxis()
    below.set_ylabel("share of the gradient in them")
    below.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")


def similarity(panel: Any, family: str, cells: Sequence[Json]) -> None:
    """Every headline measure: a mark a column of the tables, with its interval."""
    for row, column in enumerate(COLUMNS):
        points = [(over_seeds(cells, alike(column, name)), place + 0.12 * (row - 2.5))
                  for place, name in enumerate(HEADLINE)]
        marks(panel, column, [(found, y) for found, y in points if found is not None])
    panel.set_xlim(-0.55, 1.15)
    panel.axvline(0, color="lightgrey", linewidth=0.7, zorder=0)
    panel.set_title(f"{family}: is the tuned model like its base?", fontsize=10)
    panel.set_xlabel("0 unrelated ... 1 the same")


def marks(panel: Any, column: str, points: Sequence[tuple[Mean, float]]) -> None:
    """The marks of one column of the tables; none where it was not measured."""
    marker, fill = MARKS[column]
    if points:
        panel.errorbar([found.value for found, _ in points], [y for _, y in points], fmt=marker, color="black",
                       xerr=[found.half or 0 for found, _ in points], markerfacecolor=fill, markersize=6,
                       elinewidth=0.7, label=legend(column))


def legend(column: str) -> str:
    """A column in words."""
    if column == "itself":
        return "base with itself"
    return f"tuned, {column}" if column.endswith(" rows") else f"control: {column}"


def gradients(panel: Any, family: str, cells: Sequence[Json]) -> None:
    """Shares of the safety and task gradients in the task's leading directions, by their number."""
    for (gradient, system), (line, marker, fill) in LINES.items():
        found = [(k, over_seeds(cells, share(system, gradient, k))) for k in sizes(cells)]
        known = [(k, 100 * mean.value) for k, mean in found if mean is not None]
        label = "a random direction" if gradient == "random" else f"{gradient} gradient, at {system}"
        panel.plot([k for k, _ in known], [y for _, y in known], line, marker=marker, color="black",
                   markerfacecolor=fill, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(sizes(cells), [str(k) for k in sizes(cells)])
    panel.minorticks_off()
    panel.set_title(f"{family}: does safety lie where the task is sensitive?", fontsize=10)
    panel.set_xlabel("number of the task's most sensitive directions")
