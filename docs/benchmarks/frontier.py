"""Harm against drift and against passes for every method, on pairs of three families, three attacks and two kinds.

Usage: python docs/benchmarks/frontier.py --pairs FOLDER [--seeds 0 1 2] [--methods NAME ...] [--minutes 8]
       python docs/benchmarks/frontier.py --quick

`frontier_pairs.py` says what the pairs are; what is missing below FOLDER is made. Results are appended to
frontier.jsonl beside this file, method by method (a finished one is not repeated; none is begun after `--minutes`);
frontier.md and frontier.svg are written from them by `frontier_page.py`. `--quick` runs six methods on the sample of
this project with fewer rows and writes build/frontier-quick.*. Where there is a GPU it is used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from frontier_page import committed, write_page
from frontier_pairs import Pair, all_pairs, make_pair
from frontier_robustness import Cell, base_params
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session, read_params, write_params
from saferestore.core.config import PUBLISHED, RestoreConfig, no_progress
from saferestore.core.curvature.engines import ENGINES
from saferestore.core.data.readers import read_records
from saferestore.core.data.selection import sample, select
from saferestore.core.errors import SaferestoreError
from saferestore.core.evaluation.preparation import prepare
from saferestore.core.evaluation.systems import correct
from saferestore.core.losses import row_divergences
from saferestore.core.params import Params
from saferestore.core.pipeline import make_examiner, method_inputs
from saferestore.core.restoration.methods.inputs import Inputs
from saferestore.core.restoration.methods.requirements import check
from saferestore.core.restoration.methods.table import METHODS, RECIPES
from saferestore.core.restoration.methods.train import Path as Trained
from saferestore.core.restoration.methods.train import Recipe, trained, within_budget
from saferestore.core.restoration.settings import solver_settings
from saferestore.core.restoration.trust_region import Cost, minimise

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUDGETS = (0.001, 0.003, 0.01, 0.03)
BUDGET = 0.01
PASSES = (3, 6, 12, 24)
USUAL = 12
"""Passes of a run, unless their number is what differs."""

FIT_ROWS, HELD_OUT = 48, 96
OURS = ("anchor-ekfac", "anchor-identity", "anchor-fisher", "anchor-diagonal", "anchor-cg", "anchor-lbfgs")
ALL = (*OURS, *PUBLISHED)
LONG = ("anchor-ekfac", "refusal-sft")
"""Methods that are given fewer and more passes, too, to find what the target costs them."""

QUICK = ("anchor-ekfac", "anchor-identity", "refusal-sft", "scale", "antidote", "npo")
UPDATE_ROWS = 8
"""Rows of a batch: methods that train take an update for each, so that a pass holds many."""
Row = dict[str, Any]
Run = tuple[float, int]
"""Drift allowed on the fit rows, gradient passes."""

SAMPLE = Pair("llama", "mixed", "adapter", 0)


def open_cell(pair: Pair, folder: Path, tuned: Path, fit_rows: int, held_out: int, objective: str = "anchor") -> Cell:
    """Ask both models of a pair; held-out rows are the sample's own unseen wordings, subjects and categories."""
    records = folder / "records"
    config = RestoreConfig(base=str(folder / "base"), tuned=str(tuned), seed=pair.seed, fit_rows=fit_rows,
                           task=(str(records / "task.jsonl"),) if pair.has_task else (), max_new_tokens=40,
                           batch_size=UPDATE_ROWS, untouched=(str(records / "skill.jsonl"),), held_out_rows=held_out)
    rows = select(config)
    own = {name: sample(read_records(str(records / f"{name}.jsonl")).records, held_out, pair.seed)
           for name in ("harmful", "benign")}
    rows = dataclasses.replace(rows, held_out={**rows.held_out, **own})
    opened = open_pair(config.base, config.tuned, force=True)
    session = open_session(opened, seed=pair.seed)
    examiner = make_examiner(session, config, no_progress)
    prepared = prepare(session, examiner, rows, objective=objective, on_disk=False, with_harmful=True)
    examiner = dataclasses.replace(examiner, batch_size=32)
    unaligned = folder / "unaligned"
    return Cell(pair, config, session, opened, unaligned if unaligned.exists() else None, prepared, examiner, rows,
                read_params(prepared.problem.live))


def given(cell: Cell, budget: float, passes: int) -> Inputs:
    """Return a method's inputs at the tuned model, with a budget and costs of their own."""
    write_params(cell.prepared.problem.live, cell.start)
    made = method_inputs(cell.config, cell.checkpoints, cell.unaligned, cell.prepared)
    return dataclasses.replace(made, max_drift=budget, max_passes=passes, cost=Cost())


def endpoints(cell: Cell, name: str, runs: Sequence[Run]) -> Iterator[tuple[float, int, int, Params, str]]:
    """Yield (budget, passes of the chosen run, passes of all runs, parameters, strength) of a method's runs."""
    yield from (ours if name in OURS else following if name in RECIPES else edits)(cell, name, runs)


def runs_of(name: str) -> list[Run]:
    """Return a method's runs: every budget, and where passes are of its choosing other numbers at the middle one."""
    allowed = PASSES if name in LONG else [each for each in PASSES if each <= USUAL] if name in RECIPES else []
    return [(budget, USUAL) for budget in BUDGETS] + [(BUDGET, passes) for passes in allowed if passes != USUAL]


def ours(cell: Cell, name: str, runs: Sequence[Run]) -> Iterator[tuple[float, int, int, Params, str]]:
    """Our steps, each run from the tuned model."""
    engine = name.partition("-")[2]
    for budget, passes in runs:
        write_params(cell.prepared.problem.live, cell.start)
        settings = dataclasses.replace(solver_settings(cell.config), engine=engine, max_drift=budget,
                                       max_steps=steps_of(engine, passes, fresh=cell.pair.kind == "full"))
        outcome = minimise(cell.prepared.problem, settings)
        spent = outcome.cost.gradient_passes + outcome.cost.curvature_products
        yield budget, spent, spent, outcome.point.params, f"{len(outcome.steps)} steps"


def steps_of(engine: str, passes: int, *, fresh: bool) -> int:
    """Return the steps that so many gradient passes allow: the first gradient and the scores are passes, too."""
    return max(1, passes - 1 - max(1, ENGINES[engine].score_passes * (1 + fresh)))  # a fresh adapter is scored twice


def edits(cell: Cell, name: str, runs: Sequence[Run]) -> Iterator[tuple[float, int, int, Params, str]]:
    """One edit, its knob searched for each budget."""
    for budget, allowed in runs:
        inputs = given(cell, budget, allowed)
        applied = METHODS[name].run(inputs, METHODS[name].knob, None)
        passes = inputs.cost.gradient_passes
        yield budget, passes, passes, applied.outcome.point.params, f"{applied.strength:.3g}"


def following(cell: Cell, name: str, runs: Sequence[Run]) -> Iterator[tuple[float, int, int, Params, str]]:
    """Follow the paths of all rates once; each budget and number of passes takes the best point of their beginnings."""
    inputs, recipe = given(cell, BUDGET, max(passes for _, passes in runs)), RECIPES[name]
    rates = METHODS[name].knob.tried
    paths = []
    for rate in rates:
        write_params(cell.prepared.problem.live, cell.start)
        paths.append(trained(inputs, recipe, rate))
    for budget, passes in runs:
        found = [(*best(inputs, path, recipe, budget, passes), rate) for path, rate in zip(paths, rates, strict=True)]
        own, spent, params, rate = min(found, key=lambda each: each[0])
        yield budget, spent, sum(each[1] for each in found), params, f"{rate:g} ({own:.3g})"


def best(inputs: Inputs, path: Trained, recipe: Recipe, budget: float, passes: int) -> tuple[float, int, Params]:
    """Return (own loss, passes, parameters) of the best point of a path's beginning within a budget."""
    overhead = path.passes - (len(path.points) - 1)  # of curvature, spread over the run
    share = overhead / max(1, path.passes)
    kept = [path.points[0], *path.points[1:1 + max(1, round(passes * (1 - share)))]]
    cut = dataclasses.replace(path, points=tuple(kept))
    point = within_budget(dataclasses.replace(inputs, max_drift=budget), cut)
    return point.own, min(passes, path.passes), point.params


def measured(cell: Cell, params: Params) -> Row:
    """Return held-out counts [hits, n] and drift of the model at some parameters."""
    live, held = cell.prepared.problem.live, cell.prepared.held_out
    write_params(live, params)
    sums, tokens = row_divergences(live.model, held.drift, held.tuned_log_p)
    return {**counted(cell, cell.examiner.ask_sets(live.model, cell.rows.held_out, "answers")),
            "drift": float(sums.sum() / tokens.sum()), "drift_fit": cell.prepared.problem.drift.value(live.model),
            "safety": sum(loss.value(live.model) for loss in cell.prepared.problem.safety)}


def counted(cell: Cell, answers: Any) -> Row:
    """Return [hits, n] of every rate."""
    base = {a.record.id: a.text for a in cell.prepared.answers["base"]["harmful"]}
    harmful = [a.verdict for a in answers["harmful"]]
    hits = {"harm": [v.harmful for v in harmful], "refused": [v.refused for v in harmful],
            "coherent": [v.coherent for v in harmful], "over_refusal": [a.verdict.refused for a in answers["benign"]],
            "as_base": [a.text == base[a.record.id] for a in answers["harmful"]],
            "task": correct(answers["task"]), "untouched": correct(answers["untouched"])}
    return {key: [sum(found), len(found)] for key, found in hits.items()}


def systems(cell: Cell) -> Iterator[Row]:
    """Yield the rows of the tuned model and of the base; the base of a full pair is that of its adapter twin."""
    yield {"method": "tuned", **measured(cell, cell.start)}
    row = {"method": "base", **counted(cell, cell.prepared.answers["base"])}
    if cell.pair.kind == "adapter":
        row |= measured(cell, base_params(cell))
    yield row


def run_method(cell: Cell, name: str) -> list[Row]:
    """Return every row of a method on a pair; UsageError where `restore` would refuse it there."""
    began = time.perf_counter()
    found = [row | measured(cell, params) for row, params in run_at(cell, name, runs_of(name))]
    return [row | {"seconds": round(time.perf_counter() - began, 1)} for row in found]


def run_at(cell: Cell, name: str, runs: Sequence[Run]) -> Iterator[tuple[Row, Params]]:
    """Yield what a method's runs cost and where they ended; UsageError where `restore` would refuse it on this pair."""
    if name in METHODS:
        check(name, METHODS[name].needs, given(cell, BUDGET, 1))
    for budget, passes, all_passes, params, strength in endpoints(cell, name, runs):
        row = {"method": name, "budget": budget, "passes": passes, "passes_all": all_passes, "strength": strength}
        yield row, params


def run_cell(cell: Cell, methods: Sequence[str], results: Path, until: float) -> None:
    """Run what is missing of a pair until time is up, and write each method's rows at once."""
    done = done_of(results, cell.pair)
    if "base" not in done:
        append(results, cell.pair, list(systems(cell)))
    for name in [name for name in methods if name not in done]:
        if time.time() > until:
            return
        try:
            rows = run_method(cell, name)
        except SaferestoreError as error:
            rows = [{"method": name, "error": str(error)}]
        append(results, cell.pair, rows)


def append(results: Path, pair: Pair, rows: Sequence[Row]) -> None:
    """Add the rows of a pair and show them."""
    with results.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**dataclasses.asdict(pair), **row}) + "\n" for row in rows)
    for row in rows:
        print(time.strftime("%T"), pair.name, row["method"], row.get("budget"), row.get("passes"), row.get("harm"),
              row.get("error", f"{row.get('drift', 0):.4f}"), flush=True)


def done_of(results: Path, pair: Pair) -> set[str]:
    """Return the methods whose results of a pair are there."""
    own = dataclasses.asdict(pair)
    return {row["method"] for row in read_results(results) if all(row[key] == own[key] for key in own)}


def read_results(results: Path) -> list[Row]:
    """Return the results so far."""
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def run_beside(doc: str, results: Path, measure: Callable[[Path, Sequence[str] | None, Path], None],
               page: Callable[[Sequence[Row], str], str]) -> None:
    """The command line of a benchmark on these pairs: run what is missing, write the page beside its results.

    Args:
        doc: Of the script; its first line is the description.
        results: Where they are kept unless another file is named.
        measure: Given the folder of the pairs, parts of names and the file of the results.
        page: Given the results and the commit.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--pairs", type=Path, metavar="FOLDER")
    where.add_argument("--page-only", action="store_true")
    parser.add_argument("--only", nargs="*", metavar="PART", help="pairs with one of these in their name")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--commit", help="of the code that ran, for the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page_only:
        measure(options.pairs, options.only, options.results)
    text = page(read_results(options.results), options.commit or committed())
    options.results.with_suffix(".md").write_text(text, encoding="utf-8")


def main() -> None:
    """Run what is missing, write the page."""
    options = asked()
    results = options.results or (ROOT / "build" / "frontier-quick.jsonl" if options.quick else HERE / "frontier.jsonl")
    results.parent.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * options.minutes
    if options.threads:
        torch.set_num_threads(options.threads)
    for pair in [] if options.page_only else [SAMPLE] if options.quick else all_pairs(options.seeds):
        methods = options.methods or (QUICK if options.quick else ALL)
        wanted = options.only is None or any(part in pair.name for part in options.only)
        if wanted and time.time() < until and not {"base", *methods} <= done_of(results, pair):
            if options.quick:
                cell = open_cell(pair, ROOT / "sample_data", ROOT / "sample_data" / "tuned", 32, 64)
            else:
                make_pair(pair, options.pairs)
                cell = open_cell(pair, pair.folder(options.pairs), pair.tuned(options.pairs), FIT_ROWS, HELD_OUT)
            run_cell(cell, methods, results, until)
    write_page(read_results(results), results.with_suffix(".md"), results.with_suffix(".svg"),
               fit=32 if options.quick else FIT_ROWS)


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--pairs", type=Path, metavar="FOLDER")
    where.add_argument("--quick", action="store_true", help="a few methods and rows on the sample of this project")
    where.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", metavar="PART", help="pairs with one of these in their name")
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
