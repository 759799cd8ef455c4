"""How many eigenvectors of a long side does EK-FAC need? Its steps with the sides of the pairs cut to a few.

Usage: python docs/benchmarks/leading.py --pairs FOLDER [--seeds 1] [--only PART ...] [--page-only]

The pairs are those of `frontier.py` (made below FOLDER where they are missing); `kfac.WHOLE` and `kfac.LEADING` were
chosen after a look at the results. Every side longer than K keeps K leading eigenvectors, from a sketch of K + 8
columns; `whole` keeps all, as the default does up to `kfac.WHOLE`. Budgets, passes, rows and area are those of the
frontier. Results are appended to leading.jsonl beside this file, what is there is not repeated; leading.md is written
from them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import frontier
import torch
from frontier import FIT_ROWS, HELD_OUT, Row, open_cell, read_results, run_cell
from frontier_measures import Key, area, pair_of, paired
from frontier_page import committed, table
from frontier_pairs import all_pairs, make_pair
from saferestore.core.curvature import kfac
from saferestore.core.curvature.engines import ENGINES, Engine, EngineInputs

HERE = Path(__file__).parent
KEPT = (3, 6, 12, 24, 48)
OVERSAMPLED = 8
WHOLE, CONTROL = "anchor-ekfac", "anchor-identity"
NAMES = (CONTROL, *(f"{WHOLE}-{count}" for count in KEPT), WHOLE)
PAGE = """# How many eigenvectors a long side needs

`python docs/benchmarks/leading.py --pairs FOLDER` runs `ekfac` on pairs of [frontier.md](frontier.md) with every side
longer than K cut to its K leading eigenvectors; these models have sides of 96, 288 and 384 beside the adapter's rank.
Areas under the frontier on rows that no fit saw (lower is better), 48 harmful rows, 12 passes; differences are paired,
with Student's t 95% intervals. `identity` is the null control: no curvature. {count} pairs: {pairs}.
Single results: `leading.jsonl`; commit {commit}, torch {torch}, one thread.

{table}

`share` is how much of the gain of `whole` over `identity` is kept. What the default keeps of longer sides was chosen
after a look at this table, so it is no test of that choice.
"""


def cut(count: int) -> Engine:
    """Return `ekfac` with `count` eigenvectors of every longer side."""
    def make(inputs: EngineInputs, count: int) -> kfac.EigenKronecker:
        return kfac.ekfac(inputs.live, inputs.losses, seed=inputs.seed, whole=count, leading=count)
    return Engine(partial(make, count=count), ENGINES["ekfac"].score_passes, False, False)


def measure(folder: Path, seeds: Sequence[int], only: Sequence[str] | None, results: Path) -> None:
    """Run what is missing of the pairs."""
    kfac.OVERSAMPLED = OVERSAMPLED
    ENGINES.update({f"ekfac-{count}": cut(count) for count in KEPT})
    frontier.OURS, frontier.LONG = NAMES, ()
    for pair in all_pairs(seeds):
        if only is None or any(part in pair.name for part in only):
            make_pair(pair, folder)
            cell = open_cell(pair, pair.folder(folder), pair.tuned(folder), FIT_ROWS, HELD_OUT)
            run_cell(cell, NAMES, results, math.inf)


def page(rows: Sequence[Row], commit: str) -> str:
    """Return the page: only pairs on which everything ran."""
    def of(name: str, pair: Key) -> float:
        return area(name, rows, pair)

    pairs = [pair for pair in dict.fromkeys(map(pair_of, rows)) if all(math.isfinite(of(name, pair)) for name in NAMES)]
    mean = {name: sum(of(name, pair) for pair in pairs) / len(pairs) for name in NAMES}
    lines = []
    for name in NAMES:
        share = (mean[CONTROL] - mean[name]) / (mean[CONTROL] - mean[WHOLE])
        shown = {WHOLE: "whole", CONTROL: "`identity`"}.get(name, name.rpartition("-")[2])
        less = ["-" if name == other else "{:+.3f} ({:+.3f} to {:+.3f})".format(*paired(of, name, other, pairs)[:3])
                for other in (WHOLE, CONTROL)]
        lines.append([shown, f"{mean[name]:.3f}", *less, f"{share:.0%}"])
    shown = table(("K", "area", "less whole", "less `identity`", "share"), lines)
    return PAGE.format(count=len(pairs), pairs="; ".join(", ".join(map(str, pair)) for pair in pairs), commit=commit,
                       torch=torch.__version__, table=shown)


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--pairs", type=Path, metavar="FOLDER")
    where.add_argument("--page-only", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--only", nargs="*", metavar="PART", help="pairs with one of these in their name")
    parser.add_argument("--results", type=Path, default=HERE / "leading.jsonl")
    parser.add_argument("--commit", help="of the code that ran, for the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page_only:
        measure(options.pairs, options.seeds, options.only, options.results)
    text = page(read_results(options.results), options.commit or committed())
    options.results.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
