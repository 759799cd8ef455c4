"""Every method of the table, and every engine of ours, once on every pair: does it run, move anything, keep its budget?

Usage: python docs/benchmarks/methods_run.py --pairs FOLDER [--seeds 0] [--only PART ...] [--minutes 60]

The pairs are those of `frontier.py` (made below FOLDER where they are missing). A run is what `restore --method NAME
--max-drift 0.01` does on 48 fit rows and 6 passes, up to its held-out measurements, which are the frontier's matter.
Results are appended to methods_run.jsonl beside this file, a line a method and pair, what is there is not repeated;
methods-run.md is written from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from frontier import BUDGET, FIT_ROWS, OURS, done_of, given, open_cell, read_results, steps_of
from frontier_measures import pair_of
from frontier_pairs import Pair, all_pairs, make_pair
from frontier_robustness import Cell
from saferestore.core.config import PUBLISHED
from saferestore.core.errors import SaferestoreError
from saferestore.core.params import axpy, is_finite, norm
from saferestore.core.restoration.methods.table import apply
from saferestore.core.restoration.settings import solver_settings
from saferestore.core.restoration.trust_region import Outcome, minimise

HERE = Path(__file__).parent
NAMES = (*OURS, *PUBLISHED)
PASSES, HELD_OUT = 6, 8
OVER = 1.01
"""Drift over the budget by more than this factor counts as over it."""
Json = dict[str, Any]
PAGE = """# Every method once on every pair

`python docs/benchmarks/methods_run.py --pairs FOLDER` runs every row of [methods](../methods.md) and every engine of
ours (`anchor-`) once on the pairs of [frontier.md](frontier.md): a drift budget of 0.01 nats per token on the fit rows,
6 passes, 48 harmful rows to fit on. Nothing here is held out: it shows that a method runs, moves the model and keeps
its budget, not how well it repairs. {pairs} of 54 pairs ({seeds}), {runs} runs; commit {commit}, torch {torch}, one
thread, on a shared machine (`seconds` are medians and only rough).

{findings}

A run refuses with a reason where a method does not fit the pair; one that does nothing is said to (`no_change` and
`W_NO_STEP` in a report of `restore`): the least change that it can make overruns the budget. The first run of all
found a crash of `prune-random` and `antidote` on GPT-2 fully fine-tuned, whose weights are transposed; it is mended,
and their runs on that pair are those after it.

`moved` is the median of |step| / |adapter|; `S falls` on how many pairs the safety loss is lower after it.

| method | runs | moved | within the budget | S falls | seconds | did not run, did nothing, went over |
| --- | --- | --- | --- | --- | --- | --- |
{table}
"""


def once(cell: Cell, name: str) -> Json:
    """Run a method from the tuned model and say what became of it."""
    inputs, began = given(cell, BUDGET, PASSES), time.perf_counter()
    problem = inputs.problem
    before = sum(loss.value(problem.live.model) for loss in problem.safety)
    try:
        outcome = _outcome(cell, name) if name in OURS else apply(name, inputs).outcome
    except SaferestoreError as error:
        return {"error": str(error)}
    params = outcome.point.params
    return {"moved": norm(axpy(-1.0, cell.start, params)) / norm(cell.start), "finite": is_finite(params),
            "drift": problem.drift.value(problem.live.model), "safety_before": before,
            "safety": sum(loss.value(problem.live.model) for loss in problem.safety),
            "seconds": time.perf_counter() - began}


def _outcome(cell: Cell, name: str) -> Outcome:
    engine = name.removeprefix("anchor-")
    steps = steps_of(engine, PASSES, fresh=cell.pair.kind == "full")
    settings = dataclasses.replace(solver_settings(cell.config), engine=engine, max_drift=BUDGET, max_steps=steps)
    return minimise(cell.prepared.problem, settings)


def run_pair(pair: Pair, folder: Path, results: Path, until: float) -> None:
    """Run what is missing of a pair until time is up, and write every run at once."""
    done = done_of(results, pair)
    left = [name for name in NAMES if name not in done]
    if not left or time.time() > until:
        return
    make_pair(pair, folder)
    cell = open_cell(pair, pair.folder(folder), pair.tuned(folder), FIT_ROWS, HELD_OUT)
    for name in left:
        if time.time() > until:
            return
        row = {**dataclasses.asdict(pair), "method": name, **once(cell, name)}
        print(time.strftime("%T"), pair.name, {key: row[key] for key in row if key not in dataclasses.asdict(pair)},
              flush=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def fault(row: Json) -> str | None:
    """Return what is wrong with a run, in words; None where nothing is."""
    if "error" in row:
        return f"refused: {row['error']}"
    if not row["finite"] or not math.isfinite(row["drift"]) or not math.isfinite(row["safety"]):
        return "not finite"
    if row["moved"] == 0:
        return "did nothing"
    return "over the budget" if row["drift"] > OVER * BUDGET else None


def findings(rows: Sequence[Json]) -> str:
    """Return the sums in words, and each run that is not as it should be."""
    faults = [(row, told) for row in rows if (told := fault(row)) is not None]
    lines = [f"- {len(rows) - len(faults)} of {len(rows)} runs moved the model, within the budget and finite."]
    for kind in ("refused", "not finite", "did nothing", "over the budget"):
        own = [(row, told) for row, told in faults if told.startswith(kind)]
        by_method = {name: sum(row["method"] == name for row, _ in own) for name in NAMES}
        named = ", ".join(f"`{name}` {count}" for name, count in by_method.items() if count)
        lines.append(f"- {kind[0].upper()}{kind[1:]}: {len(own)}{': ' + named if named else ''}.")
    lines += [f"- {told}" for told in sorted({f"`{row['method']}`: {told}" for row, told in faults if "error" in row})]
    return "\n".join(lines)


def table(rows: Sequence[Json]) -> str:
    """Return a line a method."""
    lines = []
    for name in NAMES:
        own = [row for row in rows if row["method"] == name]
        ran = [row for row in own if "error" not in row]
        if not own:
            continue
        bad = [f"{row['family']} {row['attack']} {row['kind']} {row['seed']}: {told.split(':')[0]}"
               for row in own if (told := fault(row)) is not None]
        shown = "; ".join(bad[:3]) + (f"; {len(bad) - 3} more" if len(bad) > 3 else "")
        within = sum(row["drift"] <= OVER * BUDGET for row in ran)
        lines.append(f"| `{name}` | {len(own)} | {_middle(ran, 'moved', '.3g')} | {within} of {len(ran)} | "
                     f"{sum(row['safety'] < row['safety_before'] for row in ran)} of {len(ran)} | "
                     f"{_middle(ran, 'seconds', '.1f')} | {shown or 'none'} |")
    return "\n".join(lines)


def _middle(rows: Sequence[Json], key: str, form: str) -> str:
    return format(statistics.median(row[key] for row in rows), form) if rows else "-"


def page(rows: Sequence[Json], commit: str) -> str:
    """Return the page."""
    pairs = set(map(pair_of, rows))
    seeds = sorted({pair[-1] for pair in pairs})
    return PAGE.format(pairs=len(pairs), seeds=f"seed {', '.join(map(str, seeds))}", runs=len(rows), commit=commit,
                       torch=torch.__version__, findings=findings(rows), table=table(rows))


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--only", nargs="*", metavar="PART", help="pairs with one of these in their name")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--results", type=Path, default=HERE / "methods_run.jsonl")
    parser.add_argument("--commit", default="(not stated)", help="of the code that ran, for the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.time() + 60 * options.minutes
    for pair in all_pairs(options.seeds):
        if options.only is None or any(part in pair.name for part in options.only):
            run_pair(pair, options.pairs, options.results, until)
    (HERE / "methods-run.md").write_text(page(read_results(options.results), options.commit), encoding="utf-8")


if __name__ == "__main__":
    main()
