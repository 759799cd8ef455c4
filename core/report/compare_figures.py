"""Pictures of a comparison, from its document alone: systems differ by line and marker, sets by panel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from ..geometry.verdict import HEADLINE, LABELS
from .compare_rows import strips
from .figures import MARKERS, contour, curves, heat

Json = Mapping[str, Any]


def landscapes(found: Json) -> Figure:
    """Contours of every set's loss around every model, each panel with its own heights."""
    systems, axes = found["landscapes"]["systems"], found["landscapes"]["axes"]
    sets = list(next(iter(systems.values()))["losses_nats_per_token"])
    figure = Figure(figsize=(2.3 * len(systems), 2.1 * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), len(systems), squeeze=False)
    for row, name in enumerate(sets):
        for column, (system, each) in enumerate(systems.items()):
            contour(panels[row][column], axes, each["losses_nats_per_token"][name])
            panels[row][column].set_title(f"{name} rows, {system}")
    figure.supxlabel("steps along two random directions, in norms of the base's weights", fontsize=8)
    return figure


def interpolation(found: Json) -> Figure:
    """Losses on the line from base to tuned."""
    figure = Figure(figsize=(5, 2.8), layout="constrained")
    panel = figure.subplots()
    line = found["interpolation"]
    curves(panel, {f"{name} rows": (line["steps"], losses) for name, losses in line["losses_nats_per_token"].items()})
    for x, label in ((0, "base"), (1, "tuned")):
        panel.axvline(x, color="grey", linewidth=0.5)
        panel.annotate(label, (x, 1.01), xycoords=("data", "axes fraction"), ha="center")
    panel.set_yscale("symlog", linthresh=0.1)
    panel.set_ylim(bottom=0)
    panel.set(xlabel="from base (0) to tuned (1)", ylabel="nats per answer token")
    return figure


def similarity(found: Json) -> Figure:
    """The headline measures with their intervals: base against tuned, and against the unrelated model."""
    rows = [row for row in found["similarity"] if row["measure"] in HEADLINE and row["value"] is not None]
    sets, against = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "against"))
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    panels = figure.subplots(1, len(HEADLINE), squeeze=False, sharey=True)[0]
    for panel, measure in zip(panels, HEADLINE, strict=True):
        for number, who in enumerate(against):
            for place, name in enumerate(sets):
                row = next((r for r in rows if (r["measure"], r["against"], r["set"]) == (measure, who, name)), None)
                if row is not None:
                    _point(panel, place + 0.25 * (number - 1), row, number, who if place == 0 else None)
        panel.set_xticks(range(len(sets)), sets)
        panel.set_title("\n".join(_wrapped(LABELS[measure])))
        panel.axhline(0, color="grey", linewidth=0.5)
    if rows:
        panels[-1].legend(frameon=False, fontsize=6)
    return figure


def _wrapped(text: str, width: int = 24) -> list[str]:
    words = text.split(", ")
    return [", ".join(words)] if len(text) <= width else [words[0], ", ".join(words[1:])]


def _point(panel: Any, x: float, row: Json, number: int, label: str | None) -> None:
    panel.plot([x], [row["value"]], MARKERS[number % 4], color="black", markersize=4, label=label,
               markerfacecolor="black" if number == 0 else "white")
    if row["ci_low"] is not None:
        panel.plot([x, x], [row["ci_low"], row["ci_high"]], "-", color="black", linewidth=0.8)


def shares(found: Json) -> Figure:
    """Share of each gradient in the task's leading curvature, by dimensions, at each model."""
    systems = list(dict.fromkeys(row["system"] for row in found["shares"])) or ["tuned"]
    figure = Figure(figsize=(3 * len(systems), 2.6), layout="constrained")
    panels = figure.subplots(1, len(systems), squeeze=False, sharey=True)[0]
    for panel, system in zip(panels, systems, strict=True):
        rows = [row for row in found["shares"] if row["system"] == system and row["value"]]
        curves(panel, {name: ([r["k"] for r in rows if r["gradient"] == name],
                              [r["value"] for r in rows if r["gradient"] == name])
                       for name in dict.fromkeys(row["gradient"] for row in rows)})
        if rows:
            first = [row for row in rows if row["gradient"] == rows[0]["gradient"]]
            panel.plot([r["k"] for r in first], [r["random"] for r in first], color="grey", label="random vector")
            panel.set(xscale="log", yscale="log")
            panel.set_xticks([r["k"] for r in first], [str(r["k"]) for r in first])
            panel.minorticks_off()
            panel.legend(frameon=False, fontsize=6)
        panel.set_title(f"at the {system} model")
        panel.set(xlabel="dimensions", ylabel="share of energy")
    return figure


def modules(found: Json) -> Figure:
    """Relative size and effective rank of every module's change, layers by kinds of module."""
    drawn = strips(found)
    figure = Figure(figsize=(7, sum(0.7 + 0.22 * len(strip.layers) for _, strip in drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for panel, (label, strip) in zip(panels, drawn, strict=True):
        heat(panel, strip, lambda value: f"{value:.2g}")
        panel.set_title(f"change: {label}")
    return figure


FIGURES: dict[str, Callable[[Json], Figure]] = {
    "landscapes": landscapes, "interpolation": interpolation, "similarity": similarity, "shares": shares,
    "modules": modules,
}
"""Name of a file without .svg -> how it is drawn."""
