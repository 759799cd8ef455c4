"""Means over seeds of the results of `geometry.py`, and the tables of its page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from saferestore.core.geometry.verdict import HEADLINE, LABELS, OUTCOMES
from scipy.stats import t as student

Json = dict[str, Any]
Value = Callable[[Json], float | None]
COLUMNS = ("harmful rows", "task rows", "benign rows", "shuffled", "another base", "itself")
"""Base against tuned by set; harmful rows of the base against its two controls, and against itself."""
NAMES = {"surface_pearson": "loss surfaces", "change_pearson": "loss changes", "row_partial_spearman": "losses of rows",
         "eigenspace_overlap": "leading curvature"}
"""Headline measures in short."""
SHOWN = "{:.2f}"


@dataclass(frozen=True)
class Mean:
    """A mean over bases (family and seed), with half the width of its 95% interval.

    Attributes:
        value: The mean of the bases' own means over cells.
        half: By Student's t over bases; None for one.
        bases: How many.
    """

    value: float
    half: float | None
    bases: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return 0 if self.half is None else (self.value > self.half) - (self.value < -self.half)


def over_seeds(cells: Iterable[Json], value: Value) -> Mean | None:
    """The mean over bases: cells of one base share it, so they are averaged first; None where nothing is defined."""
    own: dict[tuple, list[float]] = {}
    for cell in cells:
        if (found := value(cell)) is not None:
            own.setdefault((cell["family"], cell["seed"]), []).append(found)
    means, n = [statistics.mean(each) for each in own.values()], len(own)
    if not n:
        return None
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(means) / math.sqrt(n) if n > 1 else None
    return Mean(statistics.mean(means), half, n)


def text(found: Mean | None, form: str = SHOWN) -> str:
    """A mean as the page writes it."""
    if found is None:
        return "-"
    return form.format(found.value) + ("" if found.half is None else f" ± {form.format(found.half)}")


def alike(column: str, measure: str) -> Value:
    """The value of a measure in a column of `COLUMNS`."""
    if column == "itself":
        return lambda cell: cell["itself"]["harmful"][measure]["value"] if measure in cell["itself"]["harmful"] else 1.0
    if column.endswith(" rows"):
        return lambda cell: cell["tuned"][column.removesuffix(" rows")][measure]["value"]
    return lambda cell: cell["controls"][column]["harmful"][measure]["value"] if column in cell["controls"] else None


def minus(first: Value, second: Value) -> Value:
    """The difference of two values of one cell; None where either is not defined."""
    def value(cell: Json) -> float | None:
        a, b = first(cell), second(cell)
        return None if a is None or b is None else a - b

    return value


def share(system: str, gradient: str, k: int) -> Value:
    """The share of a gradient in the task's top-k eigenspace at base or tuned; `random` for a random vector's."""
    key, name = ("random", "task") if gradient == "random" else ("value", gradient)
    return lambda cell: next((row[key] for row in cell["shares"][system] if (row["gradient"], row["k"]) == (name, k)),
                             None)


def harm(system: str) -> Value:
    """Share of harmful prompts answered by base or tuned."""
    return lambda cell: cell["harmful_answers"][system]


def kinds(cells: Sequence[Json], *keys: str) -> list[tuple[tuple, list[Json]]]:
    """Cells by the values of some keys, in the order of their first cell."""
    found: dict[tuple, list[Json]] = {}
    for cell in cells:
        found.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    return list(found.items())


def sizes(cells: Sequence[Json]) -> list[int]:
    """Sizes of the task's eigenspace that were measured."""
    return sorted({row["k"] for cell in cells for row in cell["shares"]["tuned"]})


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def outcomes(cells: Sequence[Json], measure: str) -> str:
    """Cells by the outcome of a measure: preserved, not preserved, not distinguishable."""
    return " / ".join(str(sum(cell["outcomes"][measure] == outcome for cell in cells)) for outcome in OUTCOMES)


def measure_tables(cells: Sequence[Json]) -> str:
    """A table a headline measure: lines of family, method and data."""
    parts = []
    for measure in HEADLINE:
        lines = [[*key, *(shown(own, column, measure) for column in COLUMNS), outcomes(own, measure)]
                 for key, own in kinds(cells, "family", "method", "data")]
        parts.append(f"### {LABELS[measure].capitalize()}\n\n" + table(
            ("family", "method", "data", *COLUMNS, "p / n / c"), lines))
    return "\n\n".join(parts)


def all_measures(cells: Sequence[Json]) -> str:
    """Every measure, lines of family and measure."""
    return table(("family", "measure", *COLUMNS), (
        [*key, label, *(shown(own, column, measure) for column in COLUMNS)]
        for key, own in kinds(cells, "family") for measure, label in LABELS.items()))


def shown(cells: Sequence[Json], column: str, measure: str) -> str:
    """One number of a table; a plain 1 where a model is compared with itself and nothing is drawn."""
    drawn = any(measure in cell["itself"]["harmful"] for cell in cells)
    return "1" if column == "itself" and not drawn else text(over_seeds(cells, alike(column, measure)))


def verdicts(cells: Sequence[Json]) -> str:
    """Cells by their whole verdict, lines of family, method and data, with the harm that tuning brought."""
    lines = []
    for key, own in kinds(cells, "family", "method", "data"):
        found = [sum(cell["verdict"] == outcome for cell in own) for outcome in OUTCOMES]
        lines.append([*key, str(len(own)), *map(str, found), *(
            text(over_seeds(own, harm(system))) for system in ("base", "tuned"))])
    return table(("family", "method", "data", "cells", "preserved", "not preserved", "not distinguishable",
                  "harmful answers, base", "harmful answers, tuned"), lines)


def sides(cells: Sequence[Json], other: str, measure: str) -> tuple[int, int, int]:
    """Cells by the side of 0 that the interval of harmful rows minus others lies on: above, below, neither."""
    ends = [(cell["harmful_minus"][other][measure]["ci_low"], cell["harmful_minus"][other][measure]["ci_high"])
            for cell in cells]
    above, below = (sum(low is not None and low > 0 for low, _ in ends),
                    sum(high is not None and high < 0 for _, high in ends))
    return above, below, len(ends) - above - below


def stand_out(cells: Sequence[Json]) -> str:
    """Harmful rows minus task and benign rows, lines of family, data and measure."""
    lines = []
    for key, own in kinds(cells, "family", "data"):
        for measure in HEADLINE:
            gaps = [cell for other in ("task", "benign") for cell in (
                text(over_seeds(own, minus(alike("harmful rows", measure), alike(f"{other} rows", measure)))),
                " / ".join(map(str, sides(own, other, measure))))]
            lines.append([*key, LABELS[measure], *gaps])
    return table(("family", "data", "measure", "harmful - task", "cells + / - / 0", "harmful - benign",
                  "cells + / - / 0"), lines)


def share_table(cells: Sequence[Json]) -> str:
    """Shares of gradients in the task's leading curvature, lines of family, data and k."""
    gradients = ("safety", "harmful", "benign", "task")
    lines = [[*key, str(k), *(percent(over_seeds(own, share(system, name, k)))
                              for system in ("base", "tuned") for name in gradients),
              percent(over_seeds(own, share("tuned", "random", k)), "{:.3f}")]
             for key, own in kinds(cells, "family", "data") for k in sizes(own)]
    return table(("family", "data", "k", *(f"{name}, {system}" for system in ("base", "tuned") for name in gradients),
                  "random k/d"), lines)


def percent(found: Mean | None, form: str = "{:.1f}") -> str:
    """A mean share in percent."""
    if found is None:
        return "-"
    return text(Mean(100 * found.value, None if found.half is None else 100 * found.half, found.bases), form)
