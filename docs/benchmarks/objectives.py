"""Which safety objective? Every one, and its sums with `anchor`, by the default engine on pairs that chose nothing.

Usage: python docs/benchmarks/objectives.py --pairs FOLDER [--only PART ...] [--page-only]

The pairs are those of `frontier.py` (made below FOLDER where they are missing), one of each family and kind; budgets,
passes, rows and area are the frontier's. Results are appended to objectives.jsonl beside this file, what is there is
not repeated; objectives.md is written from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import frontier
import torch
from frontier import FIT_ROWS, HELD_OUT, Row, open_cell, run_beside, run_cell
from frontier_measures import BUDGET, Key, area, at_budget, pair_of, paired
from frontier_page import OURS, rate, table
from frontier_page import drift as mean_drift
from frontier_pairs import Pair, make_pair
from frontier_robustness import Cell
from saferestore.core.restoration.objectives import safety_losses

HERE = Path(__file__).parent
ENGINE = OURS.partition("-")[2]
OBJECTIVES = ("anchor", "match", "ascent", "anchor+match", "anchor+ascent", "anchor+match+ascent")
NAMES = tuple(f"{objective}-{ENGINE}" for objective in OBJECTIVES)
PAIRS = (Pair("llama", "mixed", "adapter", 1), Pair("llama", "mixed", "full", 2),
         Pair("gpt2", "mixed", "adapter", 2), Pair("gpt2", "mixed", "full", 2),
         Pair("qwen2", "mixed", "adapter", 2), Pair("qwen2", "pure", "full", 2))
PAGE = """# Which safety objective

`python docs/benchmarks/objectives.py --pairs FOLDER` runs every safety objective of [method.md](../method.md), and sums
of them, by the default engine (`{engine}`) on pairs of [frontier.md](frontier.md) by which nothing was chosen: {pairs}.
48 harmful and 72 retain rows, 12 passes; all is held-out. Areas under the frontier (lower is better, 1 is nothing done)
are compared in pairs, with Student's t 95% intervals; rates at a budget of {budget} nats per token on the fit rows are
means over models, with 95% intervals, the wider of Student's over models and Wilson's of all answers. `nothing` is the
tuned model.
Single results: `objectives.jsonl`; commit {commit}, torch {torch}, one thread.

{table}
"""


def with_objective(cell: Cell, objective: str) -> Cell:
    """Return a pair with the same rows and answers, to be restored by another objective."""
    prepared = cell.prepared
    problem = dataclasses.replace(prepared.problem, safety=safety_losses(objective, prepared.safety))
    return dataclasses.replace(cell, prepared=dataclasses.replace(prepared, problem=problem))


def measure(folder: Path, only: Sequence[str] | None, results: Path) -> None:
    """Run what is missing of the pairs."""
    frontier.OURS, frontier.LONG = NAMES, ()
    for pair in PAIRS:
        if only is None or any(part in pair.name for part in only):
            make_pair(pair, folder)
            cell = open_cell(pair, pair.folder(folder), pair.tuned(folder), FIT_ROWS, HELD_OUT,
                             objective="+".join(OBJECTIVES[:3]))
            for name in NAMES:
                run_cell(with_objective(cell, name.partition("-")[0]), [name], results, math.inf)


def page(rows: Sequence[Row], commit: str) -> str:
    """Return the page: only pairs on which everything ran."""
    def of(name: str, pair: Key) -> float:
        return area(name, rows, pair)

    pairs = [pair for pair in dict.fromkeys(map(pair_of, rows)) if all(math.isfinite(of(name, pair)) for name in NAMES)]
    lines = []
    for name in ("tuned", *NAMES):
        found = [row for pair in pairs if (row := at_budget(name, rows, pair)) is not None]
        shown = "nothing" if name == "tuned" else f"`{name.partition('-')[0]}`"
        own = "-" if name == "tuned" else f"{sum(of(name, pair) for pair in pairs) / len(pairs):.3f}"
        less = "-" if name in ("tuned", NAMES[0]) else "{:+.3f} ({:+.3f} to {:+.3f})".format(
            *paired(of, name, NAMES[0], pairs)[:3])
        lines.append([shown, own, less, *(rate(found, key) for key in ("harm", "refused", "over_refusal", "task")),
                      mean_drift(found)])
    head = ("objective", "area", "less `anchor`", "harmful", "refusals", "over-refusal", "task", "drift held-out")
    return PAGE.format(engine=ENGINE, pairs="; ".join(", ".join(map(str, pair)) for pair in pairs), budget=BUDGET,
                       commit=commit, torch=torch.__version__, table=table(head, lines))


if __name__ == "__main__":
    run_beside(__doc__ or "", HERE / "objectives.jsonl", measure, page)
