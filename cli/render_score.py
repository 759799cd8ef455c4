"""A score in the terminal, at most 80 columns wide."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from ..core.report import rows
from ..core.report.score_files import SHADES, heat_strip
from .render import console_of, shortened, table_of, text_of, wrapping_table

BLOCKS = " ·░░▒▒▓▓█"
"""A character a shade of the heat strip."""


def print_score(found: dict[str, Any], out: Path | None, clean: Path | None, *, brief: bool = False) -> None:
    """Print the tables on stdout; only the first line if `brief`."""
    console = console_of(sys.stdout)
    console.print(text_of(_title(found)), soft_wrap=True)
    if brief:
        return
    for part in _parts(found):
        console.print(part)
    for what, path in (("written to", out), ("clean training file", clean)):
        if path is not None:
            console.print(text_of(f" {what}: {path}"))


def _title(found: dict[str, Any]) -> str:
    part = found["rows"]
    if part is None:
        return f"{len(found['modules'])} modules scored; add --train FILE to score training rows"
    return (f"{part['removed']} of {part['scored']} rows cost safety above "
            f"{rows.number_text(part['threshold_nats_per_token'])} nats per token")


def _parts(found: dict[str, Any]) -> Iterator[RenderableType]:
    if found["rows"] is not None:
        yield ""
        yield _rows(found["rows"]["most_harmful"])
        yield Text(f" influence: predicted rise of S by the row, nats per token, from gradients at\n"
                   f" {rows.percent(found['rows']['at'])}% of the way from the base to the tuned model", style="dim")
    yield ""
    shown, left = found["modules"][:found["settings"]["top"]], found["modules"][found["settings"]["top"]:]
    yield _modules(shown)
    if left:
        yield Text(f" {len(left)} more modules, of less gain, are left out", style="dim")
    yield text_of(_inside(found["safety"]), "dim")
    yield ""
    yield _kinds(found)
    yield ""
    yield from _heat(found)


def _rows(found: list[dict[str, Any]]) -> RenderableType:
    table = wrapping_table(["line", "influence", "loss", "tokens", "answer"], column=-1)
    for row in found:
        table.add_row(str(row["line"]), rows.number_text(row["influence_nats_per_token"]),
                      rows.number_text(row["loss_nats_per_token"]), str(row["answer_tokens"]),
                      text_of(" ".join(row["text"].split())[:44]))
    return table


def _modules(found: list[dict[str, Any]]) -> RenderableType:
    table = table_of(["module", "safety gain", "task cost", "update"])
    for module in found:
        table.add_row(text_of(shortened(module["module"], 40)),
                      rows.number_text(module["safety_gain_nats_per_token"]),
                      rows.number_text(module["task_cost_nats_per_token"]), f"{rows.percent(module['update_share'])}%")
    return table


def _inside(safety: dict[str, Any]) -> str:
    inside = safety["inside_share"]
    return (f" of the safety gradient {rows.percent(inside)}% inside the task's {safety['leading_eigenvectors']} "
            f"leading directions,\n {rows.percent(1 - inside)}% outside; "
            f"of a random direction {rows.percent(safety['inside_share_random'])}% inside")


def _kinds(found: dict[str, Any]) -> RenderableType:
    table = table_of(["kind", "safety gain", "task cost"])
    for kind in found["kinds"]:
        table.add_row(text_of(kind["name"]), rows.number_text(kind["safety_gain_nats_per_token"]),
                      rows.number_text(kind["task_cost_nats_per_token"]))
    return table


def _heat(found: dict[str, Any]) -> Iterator[Text]:
    columns, layers = heat_strip(found)
    whole = {row["name"]: rows.number_text(row["safety_gain_nats_per_token"]) for row in found["layers"]}
    yield Text(" safety gain by layer and module, darker is more", style="bold")
    yield text_of(" layer " + " ".join(name[:6].ljust(6) for name in columns)[:62] + " all")
    for layer, cells in layers:
        blocks = " ".join(BLOCKS[step * (len(BLOCKS) - 1) // (SHADES - 1)] * 6 for _, step in cells)
        yield text_of(f" {layer:>5} {blocks[:62]} {whole[layer]}")
