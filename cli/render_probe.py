"""A probe in the terminal, at most 80 columns wide."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from ..core.report import rows
from ..core.report.heat import heat_strip
from ..core.report.probe_figures import NAMES
from ..core.report.probe_files import percent_interval
from .render import console_of, table_of, text_of, wrapping_table
from .render_compare import heat_lines, sparkline

COLOURS = {"accepts": "green", "refuses": "red", "changes": "yellow"}
Json = dict[str, Any]


def print_probe(found: Json, out: Path | None, *, brief: bool = False) -> None:
    """Print what a checkpoint is and what was measured on stdout; only the first line if `brief`."""
    console = console_of(sys.stdout)
    console.print(text_of(title(found), "bold"), soft_wrap=True)
    if brief:
        return
    for part in (_sizes(found), _servers(found), _losses(found), _lines(found), _curvature(found)):
        for line in part:
            console.print(line)
    if out is not None:
        console.print(text_of(f" written to {out}", "dim"))


def title(found: Json) -> str:
    """Return the first line: what the checkpoint is."""
    adapter, checkpoint = found["adapter"], found["checkpoint"]
    of = checkpoint["architecture"] if checkpoint is not None else "a base that is not here"
    on = f"{adapter['form']} rank {adapter['rank']} on " if adapter is not None else ""
    return f"{found['inputs']['model']['ref']}: {on}{of}"


def _sizes(found: Json) -> Iterator[RenderableType]:
    adapter, checkpoint = found["adapter"], found["checkpoint"]
    if checkpoint is not None:
        yield text_of(f" {checkpoint['parameters']:,} parameters in {checkpoint['layers']} layers, "
                      f"{'a' if checkpoint['chat_template'] else 'no'} chat template")
    if adapter is not None:
        yield text_of(f" adapter: {adapter['parameters']:,} parameters in {sum(adapter['modules'].values())} modules, "
                      f"alpha {adapter['alpha']:g}")


def _servers(found: Json) -> Iterator[RenderableType]:
    if not found["runtimes"]:
        return
    table = table_of(["server", "verdict", ""])
    for row in found["runtimes"]:
        table.add_row(row["runtime"], text_of(row["verdict"], COLOURS[row["verdict"]]), text_of(row["why"]))
    yield ""
    yield table


def _losses(found: Json) -> Iterator[RenderableType]:
    if not found["losses"]:
        yield text_of(f" not measured: {found['surface_reason']}")
        return
    table = wrapping_table(["loss of", "nats per token", "95% interval", "rows", "answers"], column=-1)
    for row in found["losses"]:
        answers = found["inputs"]["data"][row["set"]]["answers"]
        low, high = (rows.number_text(row[key]) for key in ("ci_low", "ci_high"))
        table.add_row(text_of(row["set"][:20]), rows.number_text(row["loss_nats_per_token"]), f"{low} to {high}",
                      str(row["n"]), text_of(", ".join(name for name, count in answers.items() if count)))
    yield ""
    yield table


def _lines(found: Json) -> Iterator[RenderableType]:
    surface = found["surface"]
    if surface is None:
        return
    yield ""
    yield text_of(f" loss along two directions, {surface['axes'][0][0]:g} to {surface['axes'][0][-1]:g} norms of the "
                  "weights", "bold")
    for name, heights in surface["losses_nats_per_token"].items():
        middle = len(heights) // 2
        first, second = [row[len(row) // 2] for row in heights], heights[middle]
        gaps = surface["gaps"][name]
        yield text_of(f" {name[:12]:<13}{sparkline(first)}  {sparkline(second)}" + (f"  {gaps} gaps" if gaps else ""))


def _curvature(found: Json) -> Iterator[RenderableType]:
    curvature = found["curvature"]
    if curvature is None:
        return
    yield ""
    yield _ends(curvature["matrices"])
    yield _traces(curvature["matrices"])
    yield _densities(curvature["matrices"])
    yield Text(f" by {curvature['dimension']:,} coordinates of the {curvature['coordinates']}; Hessian products: "
               f"{curvature['way']}", style="dim")
    for row in curvature["matrices"]:
        yield ""
        yield from heat_lines(f"leading curvature of {_name(row)} by layer and module", heat_strip(row["modules"]))


def _name(row: Json) -> str:
    return f"{row['set'][:9]} {NAMES[row['matrix']]}"


def _ends(matrices: list[Json]) -> RenderableType:
    table = table_of(["curvature", "largest", "smallest", "products"])
    for row in matrices:
        ends = (_error(row[key][0]["value"], row[key][0]["error_at_most"]) if row[key] else "-"
                for key in ("largest", "smallest"))
        table.add_row(text_of(_name(row)), *ends, str(row["products"]))
    return table


def _traces(matrices: list[Json]) -> RenderableType:
    table = table_of(["trace", "sum of eigenvalues"])
    for row in matrices:
        table.add_row(text_of(_name(row)), _error(row["trace"]["value"], row["trace"]["bound_95"]))
    return table


def _densities(matrices: list[Json]) -> RenderableType:
    table = table_of(["density", "mean eigenvalue", "negative mass"])
    for row in matrices:
        table.add_row(text_of(_name(row)), _interval(row["density"]["mean_eigenvalue"]),
                      percent_interval(row["negative_mass"]))
    return table


def _interval(row: Json) -> str:
    """A number with its interval, two digits each: three would not fit beside the others."""
    ends = "" if row["ci_low"] is None else f" ({row['ci_low']:.2g} to {row['ci_high']:.2g})"
    return f"{row['value']:.2g}{ends}"


def _error(value: float, error: float) -> str:
    return f"{value:.3g} ± {float(f'{error:.1g}'):g}"
