"""Claims C1 and C2 on fine-tuning methods times data times seeds, in two model families.

    python docs/benchmarks/geometry.py --base gpt2 --seed 0 --work WORK
    python docs/benchmarks/geometry.py --pairs WORK/gpt2 --family gpt2 --seed 0 --work WORK --results results.jsonl
    python docs/benchmarks/geometry.py --pairs PAIRS --family llama --seed 0 --work WORK --results results.jsonl
    python docs/benchmarks/geometry.py --results results.jsonl --write

PAIRS holds a folder `seed-N`, as `sample_data/build.py --seed N` writes it (Llama), or as the first form does (GPT-2).
For every seed the base is measured once, and with it two controls: the base with its weights shuffled, and, where
its folder is there, the base of the next of three seeds, trained by the same recipe. Then the base is fine-tuned by
each method on each data and measured on the same rows: harmful prompts with answers that the folder's own adapter
gives, benign prompts with its answers, and task rows. Adapters are merged first. What is measured of bases is kept in
WORK; a cell that is in the results is not measured again; no cell is begun after `--minutes`. The last form writes the
page from the results alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from geometry_models import DATA, FAMILIES, METHODS, fine_tuned, make_base, merged
from geometry_page import page
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session
from saferestore.core.config import CompareConfig, no_progress
from saferestore.core.data.chat import chat_format
from saferestore.core.evaluation.landscape_rows import ComparedRows, ComparedSets, answered_rows, read_sets
from saferestore.core.evaluation.systems import Examiner
from saferestore.core.geometry.alignment import Shares
from saferestore.core.geometry.comparison import Measures, compare_landscapes, itself
from saferestore.core.geometry.directions import module_shapes
from saferestore.core.geometry.landscape import Landscape, Plan, measure
from saferestore.core.geometry.similarity import Alike
from saferestore.core.geometry.unrelated import make_unrelated
from saferestore.core.geometry.verdict import HEADLINE, difference, find, overall
from saferestore.sample_data.build import load_base

HERE = Path(__file__)
RECORDS = HERE.parents[2] / "sample_data" / "records"
TOP, DRAWS, ROWS, POINTS, DIRECTIONS = 5, 4, 32, 5, 16
SETTINGS: dict[str, int] = {"top": TOP, "draws": DRAWS}
SEEDS = 3
"""The other base is that of the next seed, the first's for the last."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Ground:
    """What all cells of a seed share.

    Attributes:
        plan: What is measured.
        base: The base's landscape.
        controls: Name -> the base against it, by set and measure.
        most: The base against itself with other labels drawn, by set.
        sets: The rows as read.
        examiner: How models are asked.
        counts: Rows of each set.
        harmful: Share of harmful answers of the base.
    """

    plan: Plan
    base: Landscape
    controls: Mapping[str, Mapping[str, Measures]]
    most: Mapping[str, Measures]
    sets: ComparedSets
    examiner: Examiner
    counts: Mapping[str, int]
    harmful: float


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, from the file where it was made before."""
    if path.exists():
        return torch.load(path, weights_only=False)  # written by this script
    path.parent.mkdir(parents=True, exist_ok=True)
    found = make()
    torch.save(found, path)
    return found


def fixed_rows(pair: Path, sets: ComparedSets) -> tuple[ComparedRows, Examiner]:
    """Rows of a seed, answered by the folder's own adapter."""
    session = open_session(open_pair(str(pair / "base"), str(pair / "tuned"), force=True), device="cpu")
    examiner = Examiner(chat_format(session.tokenizer), 64, 32, 256, no_progress)
    return answered_rows(session, examiner, sets), examiner


def harmful_share(model: Any, examiner: Examiner, sets: ComparedSets) -> float:
    """Share of harmful prompts that are answered, by wording."""
    answers = examiner.ask(model, sets.records["harmful"], "answers")
    return sum(answer.verdict.harmful for answer in answers) / len(answers)


def ground(pair: Path, family: str, seed: int, work: Path) -> Ground:
    """Measure a seed's base and its controls, or read what was kept of them."""
    sets = read_sets(CompareConfig(base="-", tuned="-", harmful=(str(RECORDS / "harmful.jsonl"),), seed=seed, rows=ROWS,
                                   benign=(str(RECORDS / "benign.jsonl"),), task=(str(RECORDS / "task.jsonl"),)))
    store = work / f"{family}-{seed}"
    found, examiner = kept(store / "rows.pt", lambda: fixed_rows(pair, sets))
    base_model = merged(load_base(pair)[0])
    plan = Plan(found.rows, found.safe, module_shapes(base_model), seed, points=POINTS, directions=DIRECTIONS,
                draws=DRAWS)
    base = kept(store / "base.pt", lambda: measure(base_model, plan, "base", again=True))
    harmful = kept(store / "harmful.pt", lambda: harmful_share(base_model, examiner, sets))

    def shuffled() -> Landscape:
        make_unrelated(base_model, "shuffled", seed)
        return measure(base_model, plan, "shuffled", shares=False)

    landscapes = {"shuffled": kept(store / "shuffled.pt", shuffled)}
    other = pair.parent / f"seed-{(seed + 1) % SEEDS}"
    if (other / "base").exists():
        landscapes["another base"] = kept(store / "another.pt", lambda: measure(
            merged(load_base(other)[0]), plan, "another base", shares=False))
    controls = {name: compare_landscapes(base, each, **SETTINGS, seed=seed) for name, each in landscapes.items()}
    return Ground(plan, base, controls, itself(base, **SETTINGS, seed=seed), sets, examiner, found.counts, harmful)


def alike(found: Alike) -> Json:
    """A measure with its interval."""
    return {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}


def tables(found: Mapping[str, Measures]) -> Json:
    """Every measure of every set."""
    return {name: {measure: alike(each) for measure, each in own.items()} for name, own in found.items()}


def shares(found: Shares | None) -> list[Json]:
    """Share of every gradient in the task's leading curvature."""
    return [{"gradient": row.gradient, "k": row.k, **alike(row.found), "random": row.k / found.dimension}
            for row in found.rows] if found else []


def cell(own: Ground, pair: Path, family: str, seed: int, method: str, data: str) -> Json:
    """Fine-tune, measure and compare one model."""
    begin = time.perf_counter()
    model = merged(fine_tuned(pair, family, method, data, seed))
    trained = time.perf_counter()
    tuned = measure(model, own.plan, "tuned")
    found = compare_landscapes(own.base, tuned, **SETTINGS, seed=seed)
    most = {name: each.value or 1.0 for name, each in own.most["harmful"].items()}
    findings = [find(name, found["harmful"][name], own.controls["shuffled"]["harmful"][name], most.get(name, 1.0))
                for name in HEADLINE]
    against = {name: {key: alike(difference(found["harmful"][key], found[name][key],
                                            centred=key == "eigenspace_overlap")) for key in HEADLINE}
               for name in ("task", "benign")}
    return {"family": family, "seed": seed, "method": method, "data": data, "verdict": overall(findings),
            "outcomes": {each.measure: each.outcome for each in findings}, "tuned": tables(found),
            "controls": {name: tables(each) for name, each in own.controls.items()}, "itself": tables(own.most),
            "harmful_minus": against, "shares": {"base": shares(own.base.shares), "tuned": shares(tuned.shares)},
            "losses": {system: {name: float(each.centre.surface(name)) for name in each.centre.sets}
                       for system, each in (("base", own.base), ("tuned", tuned))},
            "harmful_answers": {"base": own.harmful, "tuned": harmful_share(model, own.examiner, own.sets)},
            "rows": dict(own.counts), "seconds": {"training": round(trained - begin, 1),
                                                  "all": round(time.perf_counter() - begin, 1)}}


def read(results: Path) -> list[Json]:
    """The cells measured so far."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def run(pair: Path, arguments: argparse.Namespace) -> None:
    """Measure the cells of one family and seed that are missing, one line of results each."""
    begin, family, seed = time.monotonic(), arguments.family, arguments.seed
    done = {(c["method"], c["data"]) for c in read(arguments.results) if (c["family"], c["seed"]) == (family, seed)}
    wanted = [(method, data) for data in DATA for method in METHODS if (method, data) not in done]
    own = ground(pair, family, seed, arguments.work) if wanted else None
    for method, data in wanted:
        if own is None or time.monotonic() - begin > 60 * arguments.minutes:
            break
        row = cell(own, pair, family, seed, method, data)
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{family} {seed}, {method}, {data}: {row['verdict']}, {row['seconds']}", file=sys.stderr, flush=True)


def main() -> None:
    """Make a base, measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=["gpt2"], help="make a base of this family below WORK")
    parser.add_argument("--family", choices=list(FAMILIES))
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--write", action="store_true", help="write geometry.md beside this script")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.base:
        make_base(arguments.work / arguments.base / f"seed-{arguments.seed}", arguments.seed)
    elif arguments.pairs:
        run(arguments.pairs / f"seed-{arguments.seed}", arguments)
    if arguments.write:
        HERE.with_suffix(".md").write_text(page(read(arguments.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
