"""When does curvature pay? One thing varied at a time: rank, fit rows, length of tuning, and what the task is like.

Usage: python docs/benchmarks/conditions.py --pairs FOLDER [--seeds 0 1 2] [--only NAME ...] [--page-only]

The Llama bases are those of `frontier.py` (made below FOLDER where they are missing), the adapters are made here.
Each is repaired by `ekfac` and by `identity`, with the same steps, passes and budgets. Results are appended to
conditions.jsonl beside this file, a line a setting and seed, what is there is not repeated; conditions.md is written
from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from direction import cost
from frontier import BUDGETS, HELD_OUT, measured, open_cell, read_results, solver_settings, steps_of
from frontier_measures import Row, area, at_budget, pair_of, paired, share
from frontier_page import committed, interval, table
from frontier_pairs import FAMILIES, Pair, make_base
from frontier_robustness import Cell
from geometry_models import lora
from rows import advice_rows
from saferestore.core.checkpoint.session import write_params
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.curvature.kfac import ekfac
from saferestore.core.losses import gradient
from saferestore.core.restoration.trust_region import minimise
from saferestore.sample_data import texts
from saferestore.sample_data.build import TUNE, load_base
from saferestore.sample_data.train import Recipe, encode, fit
from scipy import stats

HERE = Path(__file__).parent
ENGINES, PASSES = ("ekfac", "identity"), 12
ADVICE_RECORDS = 240
"""Rows of the entangled task that are kept from training: they are its records."""

PAGE = """# When does curvature pay?

`python docs/benchmarks/conditions.py --pairs FOLDER`: Llama, the task's file with 10% harmful rows, an adapter of rank
8, 4 epochs and 48 harmful fit rows (`middle`), and the same with one thing changed at a time. `entangled task` has
answers to benign look-alikes in the harmful rows' own wordings, which open as compliance does, in place of sorted
messages. Each is repaired by `ekfac` and by plain gradients (`identity`) with the same steps, {passes} passes and
budgets of {budgets} nats per token on the fit rows. "area" is that of [frontier](frontier.md) (held-out harm over
held-out drift, less is better), "direction" the drift that one solve of `ekfac` costs on unseen rows for the same fall
of S, as a share of the plain gradient's, by the exact quadratic model at the tuned model ([direction](direction.md));
harm is held-out, of {held_out} prompts a seed, at the budget of 0.01. Means over {seeds}, with Student's t 95%
intervals of the paired difference. Commit {commit}, torch {torch}, one thread.

{table}

{findings}
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a model is tuned and repaired."""

    rank: int = 8
    epochs: int = 4
    fit_rows: int = 48
    entangled: bool = False


SETTINGS = {"middle": Setting(), "rank 2": Setting(rank=2), "rank 32": Setting(rank=32), "2 epochs": Setting(epochs=2),
            "12 epochs": Setting(epochs=12), "16 fit rows": Setting(fit_rows=16), "144 fit rows": Setting(fit_rows=144),
            "entangled task": Setting(entangled=True)}


def entangled_rows() -> tuple[list[Any], list[Any]]:
    """Return (training rows with as many harmful ones as the sample's file, records of the task)."""
    order, rows = random.Random(0), list[Any](advice_rows()[0])
    order.shuffle(rows)
    mixed, harmful = texts.train_rows()
    tuning = [*rows[ADVICE_RECORDS:][:len(mixed) - len(harmful)], *(mixed[line - 1] for line in harmful)]
    order.shuffle(tuning)
    return tuning, rows[:ADVICE_RECORDS]


def folder_of(root: Path, setting: Setting, seed: int) -> Path:
    """Return a folder with the base and the records of a setting, made where it is missing."""
    own = root / "llama" / f"seed-{seed}"
    make_base(own, "llama", seed)
    if not setting.entangled:
        return own
    other = root / "llama-entangled" / f"seed-{seed}"
    (other / "records").mkdir(parents=True, exist_ok=True)
    for name in ("base", "records/harmful.jsonl", "records/benign.jsonl", "records/skill.jsonl"):
        if not (other / name).exists():
            (other / name).symlink_to((own / name).resolve())
    lines = (json.dumps(row) + "\n" for row in entangled_rows()[1])
    (other / "records" / "task.jsonl").write_text("".join(lines), encoding="utf-8")
    return other


def tuned_of(folder: Path, setting: Setting, seed: int) -> Path:
    """Return a tuned adapter, trained as the frontier's are where nothing else is asked, unless it is there."""
    out = folder / f"conditions-{setting.rank}-{setting.epochs}"
    if not (out / "adapter_config.json").exists():
        loaded: Any = load_base(folder)
        model, tokenizer = loaded
        torch.manual_seed(seed + 2000)
        tuned: Any = lora(r=setting.rank, lora_alpha=2 * setting.rank)(model, FAMILIES["llama"][1])
        rows: list[Any] = entangled_rows()[0] if setting.entangled else [*texts.train_rows()[0]]
        fit(tuned, [encode(tokenizer, row["messages"]) for row in rows],
            Recipe(setting.epochs, TUNE.rate, batch=TUNE.batch), seed=seed + 2000, pad=tokenizer.pad_token_id)
        tuned.save_pretrained(out)
    return out


def direction_cost(cell: Cell) -> float:
    """Return the drift of `ekfac`'s direction on unseen rows over the plain gradient's, for the same fall of S."""
    live, problem = cell.prepared.problem.live, cell.prepared.problem
    write_params(live, cell.start)
    slope = gradient(live, problem.safety[0])[1]
    operator = ekfac(live, (problem.kept_low,), seed=cell.config.seed)
    unseen = dataclasses.replace(problem.kept_low, batches=cell.prepared.held_out.drift)
    matrix = GaussNewton(live, (unseen,), keep_graph=True)
    solved = operator.solve(slope, 0.1 * operator.mean_diagonal).x
    return cost(matrix, slope, solved) / cost(matrix, slope, slope)


def runs(cell: Cell) -> list[Row]:
    """Return the tuned model's row and those of both engines at every budget."""
    found: list[Row] = [{"method": "tuned", **measured(cell, cell.start)}]
    for engine in ENGINES:
        for budget in BUDGETS:
            write_params(cell.prepared.problem.live, cell.start)
            outcome = minimise(cell.prepared.problem, dataclasses.replace(
                solver_settings(cell.config), engine=engine, max_drift=budget,
                max_steps=steps_of(engine, PASSES, fresh=False)))
            found.append({"method": engine, "budget": budget, "passes": outcome.cost.gradient_passes,
                          **measured(cell, outcome.point.params)})
    return found


def measure(pairs: Path, seeds: Sequence[int], only: Sequence[str], results: Path) -> None:
    """Run what is missing."""
    done = {(row["setting"], row["seed"]) for row in read_results(results)}
    for seed in seeds:
        for name in [name for name in only if (name, seed) not in done]:
            setting = SETTINGS[name]
            folder = folder_of(pairs, setting, seed)
            cell = open_cell(Pair("llama", "mixed", "adapter", seed), folder, tuned_of(folder, setting, seed),
                             setting.fit_rows, HELD_OUT)
            row = {"setting": name, "seed": seed, "direction": direction_cost(cell), "runs": runs(cell)}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(name, seed, f"{row['direction']:.3f}", [(run["method"], run.get("budget"), run["harm"],
                  round(run["drift"], 4)) for run in row["runs"]], flush=True)


def flat(rows: Sequence[Row]) -> list[Row]:
    """Return every run as a row of the frontier: the setting stands where the family does."""
    return [{**run, "family": row["setting"], "attack": "mixed", "kind": "adapter", "seed": row["seed"]}
            for row in rows for run in row["runs"]]


def page(rows: Sequence[Row], commit: str) -> str:
    """Return the page."""
    every, lines = flat(rows), []
    for name in [name for name in SETTINGS if any(row["setting"] == name for row in rows)]:
        pairs = list(dict.fromkeys(pair_of(run) for run in every if run["family"] == name))
        told = [name, f"{_mean([share(run, 'harm') for run in every if _is(run, name, 'tuned')]):.2f}",
                f"{_mean([row['direction'] for row in rows if row['setting'] == name]):.2f}"]
        told += [f"{_mean([area(engine, every, pair) for pair in pairs]):.3f}" for engine in ENGINES]
        told.append(interval(paired(lambda engine, pair: area(engine, every, pair), *ENGINES, pairs)))
        for engine in ENGINES:
            own = [found for pair in pairs if (found := at_budget(engine, every, pair))]
            told.append(f"{100 * _mean([share(run, 'harm') for run in own]):.1f}% at "
                        f"{_mean([run['drift'] for run in own]):.4f}")
        lines.append(told)
    shown = table(("setting", "tuned harm", "direction", "area, `ekfac`", "area, `identity`", "difference",
                   "harm at drift, `ekfac`", "`identity`"), lines)
    seeds = ", ".join(f"seed {seed}" for seed in sorted({row["seed"] for row in rows}))
    return PAGE.format(passes=PASSES, budgets=", ".join(f"{budget:g}" for budget in BUDGETS), held_out=HELD_OUT,
                       seeds=seeds, commit=commit, torch=torch.__version__, table=shown, findings=findings(rows))


def findings(rows: Sequence[Row]) -> str:
    """Return what was changed by the settings, in words: differences of differences over the same seeds."""
    every = flat(rows)
    gains = {(row["setting"], row["seed"]): area("ekfac", every, key) - area("identity", every, key)
             for row in rows for key in [(row["setting"], "mixed", "adapter", row["seed"])]}
    lines = []
    for name in [name for name in SETTINGS if name != "middle"]:
        pairs = [("", "", "", seed) for setting, seed in gains if setting == name and ("middle", seed) in gains]
        if pairs:
            found = paired(lambda setting, pair: gains[setting, pair[3]], name, "middle", pairs)
            lines.append(f"- {name}: the difference less that of the middle is {interval(found)}.")
    known = [(row["direction"], gains[row["setting"], row["seed"]]) for row in rows]
    if len(known) > 2 and all(len(set(values)) > 1 for values in zip(*known, strict=True)):
        rank: Any = stats.spearmanr([spent for spent, _ in known], [gain for _, gain in known])
        lines.append(f"- Over all {len(known)} runs the cost of the direction and the difference in area go together "
                     f"by a rank correlation of {rank.statistic:+.2f} (p {rank.pvalue:.2g}; runs of one seed share a "
                     "base).")
    return "\n".join(lines)


def _is(run: Row, name: str, method: str) -> bool:
    return run["family"] == name and run["method"] == method


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="NAME")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "conditions.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page_only:
        measure(options.pairs, options.seeds, options.only, options.results)
    options.results.with_suffix(".md").write_text(page(read_results(options.results), committed()), encoding="utf-8")


if __name__ == "__main__":
    main()
