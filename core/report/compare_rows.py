"""What terminal and page show of a comparison, in one wording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..geometry.verdict import HEADLINE, LABELS
from .heat import Strip, heat_strip
from .rows import number_text

Json = Mapping[str, Any]


def systems(found: Json) -> list[str]:
    """Return the models in the order of the columns."""
    return list(dict.fromkeys(row["system"] for row in found["losses"]))


def losses(found: Json) -> Iterator[tuple[str, list[str], int]]:
    """Yield (set, a text a model, rows)."""
    for name in dict.fromkeys(row["set"] for row in found["losses"]):
        own = [row for row in found["losses"] if row["set"] == name]
        yield name, [spread_text(row["loss_nats_per_token"], row) for row in own], own[0]["n"]


def against(found: Json) -> list[str]:
    """Return what the base is compared with."""
    return list(dict.fromkeys(row["against"] for row in found["similarity"]))


def similarity(found: Json, *, every: bool = True) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (set, measure in words, a text for each that the base is compared with); the headline if not `every`."""
    cells = {(row["set"], row["measure"], row["against"]): spread_text(row["value"], row)
             for row in found["similarity"]}
    names = against(found)
    for name in dict.fromkeys(row["set"] for row in found["similarity"]):
        for measure in LABELS if every else HEADLINE:
            yield name, LABELS[measure], [cells.get((name, measure, who), "") for who in names]


def modules(found: Json, count: int | None = None) -> list[tuple[str, str, str]]:
    """Return (tensor, relative size, effective rank), those that changed most first."""
    changed = [row for row in found["modules"] if row["norm"] > 0]
    order = sorted(changed, key=lambda row: (-(row["relative_norm"] or 0), row["tensor"]))
    return [(row["tensor"], number_text(row["relative_norm"], 2),
             f"{number_text(row['effective_rank'], 2)} of {row['rank_limit']}") for row in order[:count]]


def strips(found: Json) -> list[tuple[str, Strip]]:
    """Return (what, heat strip) of the matrices that could change: relative size, and effective rank of the change."""
    matrices = [row for row in found["modules"] if len(row["shape"]) == 2 and row["relative_norm"] is not None]
    return [(label, heat_strip({row["tensor"]: row[key] or 0.0 for row in matrices}))
            for key, label in (("relative_norm", "relative size"), ("effective_rank", "effective rank"))]


def shares(found: Json, system: str = "tuned") -> Iterator[tuple[str, int, str, str]]:
    """Yield (gradient, dimensions, its share, that of a random vector) for the largest space that all have."""
    rows = [row for row in found["shares"] if row["system"] == system]
    top = min((max(r["k"] for r in rows if r["gradient"] == name) for name in {r["gradient"] for r in rows}),
              default=0)
    for row in rows:
        if row["k"] == top:
            yield row["gradient"], top, spread_text(row["value"], row), number_text(row["random"], 2)


def spread_text(value: float | None, row: Json) -> str:
    """Return a number with its interval, `0.46 (0.03 to 0.77)`, or `-`."""
    if value is None:
        return "-"
    low, high = row.get("ci_low"), row.get("ci_high")
    if low is None or high is None:
        return number_text(value)
    digits = 2 if max(abs(value), abs(low), abs(high)) >= 0.1 else 4
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
