"""How much drift a direction costs: (F + lambda I)^-1 grad S by every engine, against the exact Gauss-Newton matrix.

`python docs/benchmarks/direction.py --pairs FOLDER` asks, at the tuned model of each pair of `frontier.py`, how much
the softened drift rises by the exact quadratic model for one and the same fall of S along each engine's direction: on
the fit rows and on retain rows that no engine saw. Results are appended to direction.jsonl beside this file, and
direction.md is written from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from frontier import FIT_ROWS, HELD_OUT, open_cell
from frontier_measures import Row
from frontier_page import committed, table
from frontier_pairs import all_pairs, make_pair
from saferestore.core.checkpoint.session import LiveModel, write_params
from saferestore.core.curvature.cg import ConjugateGradients
from saferestore.core.curvature.diagonal import diagonal_fisher
from saferestore.core.curvature.fisher import LowRankFisher, fisher, low_rank_fisher
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.curvature.kfac import ekfac
from saferestore.core.curvature.operator import CurvatureOperator, Identity
from saferestore.core.losses import Loss, gradient
from saferestore.core.params import Params, dot
from scipy import stats

HERE = Path(__file__).parent
DAMPING = (0.01, 0.1, 1.0)
"""Over the mean diagonal of F."""

PAGE = """# What a direction costs

`python docs/benchmarks/direction.py --pairs FOLDER`, at the tuned model of {count} pairs of [frontier](frontier.md)
({seeds}; 48 harmful, 72 retain rows): one solve (F + lambda I)^-1 grad S by each engine, F of the softened drift on the
retain rows. Shown is the drift for one and the same fall of S, by linear S and the exact quadratic softened drift, as a
share of what the plain gradient costs: on the fit rows, and on retain rows that no engine saw. Geometric means over
pairs with Student's t 95% intervals of the logarithms. "scores" are backward passes over the retain rows, `cg` takes
products of the exact matrix instead. Commit {commit}, torch {torch}, one thread.

{table}
"""


def drawn(live: LiveModel, losses: Sequence[Loss], draws: int, seed: int) -> LowRankFisher:
    """Return the sample-space Fisher matrix with several draws of labels a row."""
    parts = [fisher(live, losses, seed=seed + draw) for draw in range(draws)]
    rows = {name: torch.cat([part.rows[name] for part in parts]) / draws**0.5 for name in parts[0].rows}
    return low_rank_fisher(rows, parts[0].shapes)


def operators(live: LiveModel, fit: Loss, seed: int) -> Iterator[tuple[str, str, CurvatureOperator, Sequence[float]]]:
    """Yield (name, scores, operator, dampings) of every engine, one in memory at a time."""
    yield "identity", "0", Identity(), (1.0,)
    yield "fisher", "1", fisher(live, (fit,), seed=seed), DAMPING
    yield "fisher, 4 draws", "4", drawn(live, (fit,), 4, seed), DAMPING
    yield "fisher, 16 draws", "16", drawn(live, (fit,), 16, seed), DAMPING
    diagonal = diagonal_fisher(live, (fit,), seed=seed)
    yield "diagonal", "1", diagonal, DAMPING
    yield "ekfac", "2", ekfac(live, (fit,), seed=seed), DAMPING
    yield "ekfac, 24 vectors of long sides", "2", ekfac(live, (fit,), seed=seed, whole=32, leading=24), DAMPING
    exact = GaussNewton(live, (fit,), keep_graph=True)
    for products in (4, 8):
        yield f"cg, {products} products", "1", ConjugateGradients(
            exact, diagonal.f, diagonal.mean_diagonal, max_products=products, tolerance=1e-6), DAMPING


def cost(matrix: GaussNewton, slope: Params, x: Params) -> float:
    """Return x'G x / (slope'x)^2: twice the drift of a step along x that lowers S by 1."""
    return dot(x, matrix.matvec(x)) / dot(slope, x) ** 2


def measure(pair_folder: Path, seeds: Sequence[int], results: Path) -> None:
    """Run what is missing."""
    done = {tuple(row["pair"]) for row in read(results)}
    for pair in all_pairs(seeds):
        key = dataclasses.astuple(pair)
        if pair.attack == "drift" or key in done:
            continue
        make_pair(pair, pair_folder)
        cell = open_cell(pair, pair.folder(pair_folder), pair.tuned(pair_folder), FIT_ROWS, HELD_OUT)
        live, problem = cell.prepared.problem.live, cell.prepared.problem
        write_params(live, cell.start)
        slope = gradient(live, problem.safety[0])[1]
        fit = problem.kept_low
        unseen = dataclasses.replace(fit, batches=cell.prepared.held_out.drift)  # G asks for no targets
        seen, held = (GaussNewton(live, (loss,), keep_graph=True) for loss in (fit, unseen))
        found: list[Row] = []
        for name, scores, operator, dampings in operators(live, fit, cell.config.seed):
            for damping in dampings:
                x = operator.solve(slope, damping * (operator.mean_diagonal or 1.0)).x
                found.append({"pair": key, "engine": name, "scores": scores, "damping": damping,
                              "fit": cost(seen, slope, x), "held_out": cost(held, slope, x)})
        with results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        print(pair.name, [(row["engine"], row["damping"], f"{row['held_out']:.3g}") for row in found], flush=True)


def read(results: Path) -> list[Row]:
    """Return the results so far."""
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def page(rows: Sequence[Row], commit: str) -> str:
    """Return the page."""
    pairs = list(dict.fromkeys(tuple(row["pair"]) for row in rows))
    plain = {tuple(row["pair"]): row for row in rows if row["engine"] == "identity"}
    lines = []
    for key in dict.fromkeys((row["engine"], row["scores"], row["damping"]) for row in rows):
        own = [row for row in rows if (row["engine"], row["scores"], row["damping"]) == key]
        shares = [[math.log(row[where] / plain[tuple(row["pair"])][where]) for row in own]
                  for where in ("fit", "held_out")]
        damping = "-" if key[0] == "identity" else f"{key[2]:g}"
        lines.append([key[0], key[1], damping, *map(share, shares)])
    seeds = ", ".join(f"seed {seed}" for seed in sorted({pair[3] for pair in pairs}))
    shown = table(("engine", "scores", "lambda over the mean diagonal", "fit rows", "unseen rows"), lines)
    return PAGE.format(count=len(pairs), seeds=seeds, commit=commit, torch=torch.__version__, table=shown)


def share(logs: Sequence[float]) -> str:
    """Return a geometric mean in words, with its interval where there are two pairs or more."""
    mean = statistics.mean(logs)
    if len(logs) < 2 or not any(logs):
        return f"{math.exp(mean):.3g}"
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / len(logs) ** 0.5
    return f"{math.exp(mean):.3g} ({math.exp(mean - half):.3g}-{math.exp(mean + half):.3g})"


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "direction.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page_only:
        measure(options.pairs, options.seeds, options.results)
    options.results.with_suffix(".md").write_text(page(read(options.results), committed()), encoding="utf-8")


if __name__ == "__main__":
    main()
