"""Which rows a clean training file leaves out, and its text without them, everything else byte for byte."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np


def threshold(influences: Mapping[int, float], rule: str) -> float:
    """Return the influence above which rows are removed; never below 0, so that only harmful rows are.

    Args:
        influences: Row -> I(z)/N, nats per token.
        rule: `auto`: where the positive influences fall into two groups (Otsu 1979); a whole number: so many rows; a
            number below 1: the threshold itself, nats per token (checked by `ScoreConfig`).
    """
    if rule == "auto":
        return otsu([value for value in influences.values() if value > 0])
    if not rule.isdigit():
        return float(rule)
    ranked = sorted((value for value in influences.values() if value > 0), reverse=True)
    return ranked[int(rule)] if int(rule) < len(ranked) else 0.0


def otsu(values: Sequence[float]) -> float:
    """Return the split of numbers into two groups that leaves the least variance within them (Otsu 1979).

    The largest number of the lower group is returned; 0 where there are not two different numbers.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return 0.0
    below = np.arange(1, len(ordered))
    lower = np.cumsum(ordered)[:-1] / below
    upper = (ordered.sum() - np.cumsum(ordered)[:-1]) / (len(ordered) - below)
    between = below * (len(ordered) - below) * (upper - lower) ** 2
    return float(ordered[int(np.argmax(between))])


def without(text: str, name: str, starts: Sequence[int], removed: Sequence[tuple[int, int]]) -> str:
    """Return a file's text without some rows.

    Args:
        text: The whole file.
        name: What it is called; a `.csv` or `.tsv` counts line ends inside cells.
        starts: The line on which each row of the file begins, used or not, ascending.
        removed: (place among the rows of the file, line on which it begins) of each row to leave out.

    Returns:
        The rest as it stands; the elements of a JSON array are written one a line.
    """
    if text.lstrip().startswith("["):
        gone = {place for place, _ in removed}
        kept = [json.dumps(row, ensure_ascii=False) for at, row in enumerate(json.loads(text)) if at not in gone]
        return "[\n" + ",\n".join(kept) + "\n]\n"
    is_table = name.lower().endswith((".csv", ".tsv"))
    lines = io.StringIO(text, newline="").readlines() if is_table else _by_newline(text)
    ends = dict(zip(starts, [*starts[1:], len(lines) + 1], strict=True))
    gone = {number for _, line in removed for number in range(line, ends[line])}
    return "".join(line for number, line in enumerate(lines, start=1) if number not in gone)


def _by_newline(text: str) -> list[str]:
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + [parts[-1]] * bool(parts[-1])
