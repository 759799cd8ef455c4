"""Would more of the same change do, where the drift budget is not spent? A search along the change, by forward passes.

Usage: python docs/benchmarks/further.py --pairs FOLDER [--only PART ...] [--results FILE] [--page-only]

After our steps the whole change from the tuned model is multiplied by each of `FACTORS` in turn, as long as
J = S + mu P falls and the drift on the fit rows is within the budget. This is not in the program: it is measured here
on pairs of `frontier.py` (made below FOLDER where they are missing) by which neither the steps nor these factors were
chosen. Results are appended to further.jsonl beside this file, what is there is not repeated; further.md is written
from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from frontier import (
    BUDGETS,
    FIT_ROWS,
    HELD_OUT,
    Row,
    append,
    done_of,
    measured,
    open_cell,
    run_beside,
    steps_of,
    systems,
)
from frontier_measures import BUDGET, Key, area, at_budget, pair_of, paired
from frontier_page import OURS, rate, table
from frontier_page import drift as mean_drift
from frontier_pairs import Pair, make_pair
from frontier_robustness import Cell
from saferestore.core.checkpoint.session import write_params
from saferestore.core.losses import values
from saferestore.core.params import Params, axpy
from saferestore.core.restoration.settings import Settings, solver_settings
from saferestore.core.restoration.trust_region import Problem, minimise

HERE = Path(__file__).parent
FACTORS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3)
FURTHER = f"{OURS}-further"
PASSES = 12
PAIRS = (Pair("llama", "mixed", "full", 2), Pair("gpt2", "mixed", "adapter", 2), Pair("qwen2", "mixed", "adapter", 2),
         Pair("gpt2", "mixed", "full", 1), Pair("llama", "pure", "full", 2), Pair("gpt2", "pure", "adapter", 1),
         Pair("qwen2", "pure", "adapter", 1), Pair("llama", "drift", "full", 1), Pair("qwen2", "drift", "full", 0),
         Pair("gpt2", "drift", "full", 1))
PAGE = """# More of the same change, where the budget is not spent

`python docs/benchmarks/further.py --pairs FOLDER` multiplies the whole change that our steps made (`ekfac`, 12
passes) by 1.05, 1.1 ... 1.3, as long as J = S + 0.1 P falls on the fit rows and the drift there is within the budget:
forward passes alone. **It is not in the program.** The factors and the rule were chosen on seven other pairs of
[frontier.md](frontier.md) (gpt2, drift, full, 0; qwen2, drift, full, 1; gpt2, drift, adapter, 2; llama, drift, full,
2; llama, mixed, adapter, 1; gpt2, mixed, full, 2; qwen2, pure, full, 2). Run on {pairs}; nothing was chosen on these.
48 harmful and 72 retain rows; all below is held-out: areas under the frontier over budgets of 0.001 to 0.03 (lower is
better), less our steps alone in pairs with Student's t 95% intervals; rates at a budget of {budget} are
means over models, with 95% intervals, the wider of Student's over models and Wilson's of all answers. Single results:
`further.jsonl`; commit {commit}, torch {torch}, one thread.

{table}
"""


def along(problem: Problem, settings: Settings, start: Params, end: Params) -> tuple[float, Params]:
    """Return the factor of the change from `start` to `end` at which the search ends, and the parameters there.

    Args:
        problem: S, the drift and what steps keep low in its place; its model is moved.
        settings: The budget and mu.
        start: The tuned model.
        end: Where steps ended.
    """
    def look(params: Params) -> tuple[float, float]:
        write_params(problem.live, params)
        drift, penalty = values(problem.live.model, [problem.drift, problem.kept_low])
        return sum(loss.value(problem.live.model) for loss in problem.safety) + settings.drift_weight * penalty, drift

    way, found, least = axpy(-1.0, start, end), (1.0, end), look(end)[0]
    for factor in FACTORS:
        params = axpy(factor, way, start)
        objective, drift = look(params)
        if objective >= least or drift > settings.max_drift:
            break
        found, least = (factor, params), objective
    return found


def run(cell: Cell) -> list[Row]:
    """Return the rows of our steps and of what lies further, at each budget."""
    rows: list[Row] = []
    problem = cell.prepared.problem
    for budget in BUDGETS:
        write_params(problem.live, cell.start)
        settings = dataclasses.replace(
            solver_settings(cell.config), engine=OURS.partition("-")[2], max_drift=budget,
            max_steps=steps_of(OURS.partition("-")[2], PASSES, fresh=cell.pair.kind == "full"))
        outcome = minimise(problem, settings)
        factor, params = along(problem, settings, cell.start, outcome.point.params)
        for name, at, found in ((OURS, 1.0, outcome.point.params), (FURTHER, factor, params)):
            rows.append({"method": name, "budget": budget, "passes": PASSES, "passes_all": PASSES,
                         "strength": f"{at:g}", **measured(cell, found)})
    return rows


def measure(folder: Path, only: Sequence[str] | None, results: Path) -> None:
    """Run what is missing of the pairs."""
    for pair in PAIRS:
        if FURTHER not in done_of(results, pair) and (only is None or any(part in pair.name for part in only)):
            make_pair(pair, folder)
            cell = open_cell(pair, pair.folder(folder), pair.tuned(folder), FIT_ROWS, HELD_OUT)
            append(results, pair, [*systems(cell), *run(cell)])


def page(rows: Sequence[Row], commit: str) -> str:
    """Return the page."""
    def of(name: str, pair: Key) -> float:
        return area(name, rows, pair)

    pairs = [pair for pair in dict.fromkeys(map(pair_of, rows)) if math.isfinite(of(FURTHER, pair))]
    groups = {"all": pairs, "tuned on harmful rows": [pair for pair in pairs if pair[1] != "drift"],
              "benign drift": [pair for pair in pairs if pair[1] == "drift"]}
    lines = []
    for group, own in groups.items():
        for name in (OURS, FURTHER) if own else ():
            found = [row for pair in own if (row := at_budget(name, rows, pair)) is not None]
            mean = sum(of(name, pair) for pair in own) / len(own)
            mean_less, low, high, count = paired(of, FURTHER, OURS, own)
            less = "-" if name == OURS else f"{mean_less:+.3f} ({low:+.3f} to {high:+.3f}, n {count})"
            factors = "-" if name == OURS else ", ".join(str(row["strength"]) for row in found)
            lines.append([group, "steps alone" if name == OURS else "further", f"{mean:.3f}", less, factors,
                          *(rate(found, key) for key in ("harm", "over_refusal", "task", "untouched")),
                          mean_drift(found)])
    head = ("pairs", "what", "area", "less steps alone", "factor", "harmful", "over-refusal", "task", "untouched skill",
            "drift held-out")
    return PAGE.format(pairs="; ".join(", ".join(map(str, pair)) for pair in pairs), budget=BUDGET, commit=commit,
                       torch=torch.__version__, table=table(head, lines))


if __name__ == "__main__":
    run_beside(__doc__ or "", HERE / "further.jsonl", measure, page)
