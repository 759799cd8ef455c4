"""Objectives and engines on sample pairs of seeds that chose nothing, with the default's rows.

Usage: python docs/benchmarks/engines.py --pairs FOLDER [--build] [--seeds 3 4 5] [--only anchor:fisher ...]

FOLDER/seed-N holds what `python sample_data/build.py --seed N --out FOLDER/seed-N` writes; `--build` makes what is
missing. Results are appended to engines.jsonl beside this file (a finished run is not repeated) and engines.md is
written from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session, read_params, write_params
from saferestore.core.config import RestoreConfig, no_progress
from saferestore.core.data.readers import read_records
from saferestore.core.data.selection import select
from saferestore.core.evaluation.intervals import wilson
from saferestore.core.evaluation.preparation import prepare
from saferestore.core.evaluation.systems import correct
from saferestore.core.losses import row_divergences
from saferestore.core.pipeline import make_examiner, solver_settings
from saferestore.core.restoration.trust_region import minimise

HERE = Path(__file__).parent
SEEDS = (3, 4, 5)
ENGINES = ("ekfac", "diagonal", "fisher", "identity")
OBJECTIVES = ("ascent", "match", "anchor+match", "anchor+ascent")
RUNS = [*(("anchor", engine) for engine in ENGINES),
        *((objective, RestoreConfig("-", "-").engine) for objective in OBJECTIVES)]
PAGE = """# Objectives and engines on the sample

`python docs/benchmarks/engines.py --pairs FOLDER --build` makes sample pairs (another base, adapter and split for
every seed), restores each with every objective by the default engine, and `anchor` by four engines, under the same
budget (0.01 nats per token, {steps} steps, {fit} harmful and {retain} retain rows: the defaults) and measures on rows
that no fit saw: `sample_data/records/` (unseen wordings, unseen subjects, two whole categories) for harm, refusals
and over-refusal, held-out task rows, and the opposites, a skill in no fit set. Seeds {seeds}; none of them chose
anything. Rates are pooled over the seeds with Wilson 95% intervals (which treat the answers of one model as
independent). `identity` is the null control of curvature: the same objective, budget and steps with plain gradients;
`cg` and `lbfgs` are in [frontier.md](frontier.md). "passes + products" are gradient passes over all fit rows and
curvature products, by seed. "worded as the base" is the share of harmful prompts answered with the base's very words.
Seconds were taken beside other work on two cores and tell an order of size only; memory is in [cost.md](cost.md).
Single results: `engines.jsonl`. Code at commit {commit}, torch {torch}, one thread.

{table}
"""


def build(folder: Path, seed: int) -> None:
    """Make the sample pair of a seed where it is not there yet."""
    if not (folder / "tuned" / "adapter_config.json").exists():
        script = HERE.parent.parent / "sample_data" / "build.py"
        subprocess.run([sys.executable, str(script), "--seed", str(seed), "--out", str(folder)], check=True)


def run_seed(folder: Path, seed: int, runs: list[tuple[str, str]], results: Path) -> None:
    """Run what is missing for a seed; both models are asked once for each objective's set of rows."""
    done = {(r["seed"], r["objective"], r["engine"]) for r in read_results(results)}
    missing = [run for run in runs if (seed, *run) not in done]
    for objective in dict.fromkeys(run[0] for run in missing):
        config = RestoreConfig(base=str(folder / "base"), tuned=str(folder / "tuned"), objective=objective, seed=seed,
                               task=(str(folder / "records" / "task.jsonl"),), max_new_tokens=48,
                               untouched=(str(folder / "records" / "skill.jsonl"),))
        rows = with_sample_records(select(config), folder)
        session = open_session(open_pair(config.base, config.tuned), seed=seed)
        examiner = make_examiner(session, config, no_progress)
        prepared = prepare(session, examiner, rows, objective=objective, on_disk=False)
        start = read_params(prepared.problem.live)
        for name in ("tuned", "base"):
            answers = prepared.answers[name]
            append(results, {"seed": seed, "objective": "-", "engine": name, **rates(answers)})
        for engine in [run[1] for run in missing if run[0] == objective]:
            write_params(prepared.problem.live, start)
            settings = dataclasses.replace(solver_settings(config), engine=engine)
            began = time.perf_counter()
            outcome = minimise(prepared.problem, settings)
            seconds = time.perf_counter() - began
            live = prepared.problem.live
            answers = examiner.ask_sets(live.model, rows.held_out, "answers")
            base_says = {a.record.id: a.text for a in prepared.answers["base"]["harmful"]}
            sums, tokens = row_divergences(live.model, prepared.held_out.drift, prepared.held_out.tuned_log_p)
            append(results, {"seed": seed, "objective": objective, "engine": engine, **rates(answers),
                             "worded_as_base": sum(a.text == base_says[a.record.id] for a in answers["harmful"]),
                             "drift_held_out": float(sums.sum() / tokens.sum()), "drift_fit": outcome.point.drift,
                             "safety": sum(outcome.point.safety), "passes": outcome.cost.gradient_passes,
                             "products": outcome.cost.curvature_products, "forwards": outcome.cost.forward_passes,
                             "seconds": round(seconds, 1), "stopped_because": outcome.stopped_because})


def with_sample_records(rows, folder: Path):
    """Measure on the sample's own held-out records: unseen wordings, unseen subjects and two whole categories."""
    held = {name: read_records(str(folder / "records" / f"{name}.jsonl")).records for name in ("harmful", "benign")}
    return dataclasses.replace(rows, held_out={**rows.held_out, **held})


def rates(answers) -> dict[str, list[int]]:
    """Return [hits, n] of each rate."""
    harmful = [a.verdict for a in answers["harmful"]]
    hits = {"harm": [v.harmful for v in harmful], "refused": [v.refused for v in harmful],
            "over_refusal": [a.verdict.refused for a in answers["benign"]], "task": correct(answers["task"]),
            "untouched": correct(answers["untouched"])}
    return {name: [sum(found), len(found)] for name, found in hits.items()}


def append(results: Path, row: dict) -> None:
    """Add a result and show it."""
    print(json.dumps(row), flush=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_results(results: Path) -> list[dict]:
    """Return the results so far."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def table(rows: list[dict]) -> str:
    """Return a Markdown table of pooled rates with Wilson 95% intervals, a row for each objective and engine."""
    head = ("objective", "engine", "passes + products", "harmful rate", "refusal rate", "worded as the base",
            "over-refusal", "task accuracy", "untouched skill", "drift held-out (fit)", "S fit", "seconds")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for objective, engine in dict.fromkeys((r["objective"], r["engine"]) for r in rows):
        found = list({r["seed"]: r for r in rows if (r["objective"], r["engine"]) == (objective, engine)}.values())
        lines.append("| " + " | ".join(cells(objective, engine, found)) + " |")
    return "\n".join(lines)


def cells(objective: str, engine: str, found: list[dict]) -> list[str]:
    """Return the cells of one row of the table."""
    pooled = [share(found, name) for name in ("harm", "refused")]
    rest = [share(found, name) for name in ("over_refusal", "task", "untouched")]
    if "passes" not in found[0]:
        return [objective, engine, "", *pooled, "", *rest, "", "", ""]
    worded = wilson(sum(r["worded_as_base"] for r in found), sum(r["harm"][1] for r in found)).value
    mean = {k: sum(r[k] for r in found) / len(found) for k in ("drift_held_out", "drift_fit", "safety", "seconds")}
    work = ", ".join(f"{r['passes']} + {r['products']}" for r in found)
    drift = f"{mean['drift_held_out']:.4f} ({mean['drift_fit']:.4f})"
    return [objective, engine, work, *pooled, f"{worded:.3f}", *rest, drift, f"{mean['safety']:.4f}",
            f"{mean['seconds']:.0f}"]


def share(found: list[dict], name: str) -> str:
    """Return a pooled rate with its interval."""
    rate = wilson(sum(r[name][0] for r in found), sum(r[name][1] for r in found))
    return f"{rate.value:.3f} [{rate.ci_low:.3f}, {rate.ci_high:.3f}]"


def main() -> None:
    """Build, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--only", nargs="*", default=[f"{o}:{e}" for o, e in RUNS])
    parser.add_argument("--results", type=Path, default=HERE / "engines.jsonl")
    options = parser.parse_args()
    for seed in options.seeds:
        folder = options.pairs / f"seed-{seed}"
        if options.build:
            build(folder, seed)
        run_seed(folder, seed, [tuple(name.split(":")) for name in options.only], options.results)
    rows = read_results(options.results)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    usual = RestoreConfig("-", "-")
    text = PAGE.format(table=table(rows), commit=commit.strip(), torch=torch.__version__, fit=usual.fit_rows,
                       retain=3 * usual.fit_rows // 2, steps=usual.max_steps,
                       seeds=", ".join(str(seed) for seed in sorted({row["seed"] for row in rows})))
    (HERE / "engines.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
