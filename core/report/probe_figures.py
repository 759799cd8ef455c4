"""Pictures of a probe: surfaces, lines through them, spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from .figures import MARKERS, band, contour, curves, heat
from .heat import heat_strip

Json = Mapping[str, Any]
NAMES = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton"}
"""Matrix -> what it is called."""


def surfaces(found: Json) -> Figure:
    """Contours of every set's loss around the checkpoint, each panel with its own heights."""
    surface = found["surface"]
    figure = Figure(figsize=(2.6 * len(surface["losses_nats_per_token"]), 2.4), layout="constrained")
    panels = figure.subplots(1, len(surface["losses_nats_per_token"]), squeeze=False)[0]
    for panel, (name, heights) in zip(panels, surface["losses_nats_per_token"].items(), strict=True):
        contour(panel, surface["axes"], heights)
        panel.set_title(f"{name} rows")
    figure.supxlabel("steps along two random directions, in norms of the weights", fontsize=8)
    return figure


def lines(found: Json) -> Figure:
    """The losses along each of the two directions."""
    surface = found["surface"]
    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    panels = figure.subplots(1, 2, squeeze=False, sharey=True)[0]
    for number, panel in enumerate(panels):
        losses = surface["losses_nats_per_token"].items()
        curves(panel, {f"{name} rows": (surface["axes"][number], line(heights, number)) for name, heights in losses},
               every=2)
        panel.set(xlabel=f"direction {number + 1}, in norms of the weights")
        panel.axvline(0, color="grey", linewidth=0.5)
    panels[0].set_ylabel("nats per answer token")
    return figure


def line(heights: list[list[float | None]], number: int) -> list[float | None]:
    """Return the line of a plane through its middle along direction 0 or 1."""
    return list(heights[len(heights) // 2]) if number else [row[len(row) // 2] for row in heights]


def spectra(found: Json) -> Figure:
    """The density of each matrix's eigenvalues with its interval, on a symmetric-logarithmic axis, its ends marked."""
    matrices = found["curvature"]["matrices"]
    sets = list(dict.fromkeys(row["set"] for row in matrices))
    figure = Figure(figsize=(6.4, 2.1 * len(sets)), layout="constrained")
    for panel, name in zip(figure.subplots(len(sets), 1, squeeze=False)[:, 0], sets, strict=True):
        own = [row for row in matrices if row["set"] == name]
        curves(panel, {NAMES[row["matrix"]]: (row["density"]["eigenvalues"], row["density"]["density"]) for row in own},
               every=20)
        for number, row in enumerate(own):
            if row["density"]["half_width_95"] is not None:
                line = row["density"]
                band(panel, line["eigenvalues"], line["density"], line["half_width_95"], number)
            ends = [pair["value"] for pair in (*row["largest"], *row["smallest"])]
            panel.plot(ends, [3e-6] * len(ends), MARKERS[number % 4], color="black", markersize=3, fillstyle="none")
        unit = max(abs(pair["value"]) for row in own for pair in row["largest"]) * 1e-4 or 1.0
        panel.set_xscale("symlog", linthresh=unit)
        panel.set_yscale("log")
        panel.set_ylim(1e-6, 10)
        panel.tick_params(labelsize=6)
        panel.set(title=f"{name} rows", xlabel="eigenvalue", ylabel="density")
    return figure


def modules(found: Json) -> Figure:
    """Where in the model the leading curvature of each matrix lies, in percent."""
    strips = [(row, heat_strip(row["modules"])) for row in found["curvature"]["matrices"]]
    figure = Figure(figsize=(6.4, sum(0.7 + 0.22 * len(strip.layers) for _, strip in strips)), layout="constrained")
    panels = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for panel, (row, strip) in zip(panels, strips, strict=True):
        heat(panel, strip, lambda share: f"{100 * share:.2g}")
        panel.set_title(f"{row['set']} rows, {NAMES[row['matrix']]}: share of the curvature at the ends, percent")
    return figure


def figures_of(found: Json) -> dict[str, Callable[[Json], Figure]]:
    """Return what can be drawn of a document, by the names of the files."""
    known = {}
    if found["surface"] is not None:
        known |= {"surfaces": surfaces, "lines": lines}
    if found["curvature"] is not None:
        known |= {"spectra": spectra, "modules": modules}
    return known
