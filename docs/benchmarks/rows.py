"""Planted harmful rows: does `score` find them, does scoring beat its rivals, and does leaving them out help?

Usage: python docs/benchmarks/rows.py --pairs FOLDER [--parts scores again firm-gentle ...]

FOLDER/seed-N/base is the base that `python sample_data/build.py --seed N --out FOLDER/seed-N` writes. A cell fine-tunes
it on 900 rows of a task with a share of harmful rows among them. `scores` scores every row by every way; `again`
fine-tunes again without the rows found and without as many random rows; `firm-gentle` does all of it, by the default
way, from a base aligned for two more epochs and at a lower rate; `floor` trains without any planted row; `points` are
other points between base and tuned model. Results are appended to rows.jsonl beside this file (what is there is not
repeated, adapters and firm bases are kept in --work), and rows.md is written from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rows_page
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session
from saferestore.core.config import SCORE_WAYS, ScoreConfig, no_progress
from saferestore.core.data.batches import Row, make_batches
from saferestore.core.data.readers import read_records
from saferestore.core.data.selection import select
from saferestore.core.evaluation.coherence import coherence
from saferestore.core.evaluation.scoring import make_query, prepare_score, safety_point, score_examiner
from saferestore.core.evaluation.training_rows import training_rows
from saferestore.core.influence.rows import choose_derivative, gradient_norms, row_sums
from saferestore.core.losses import cross_entropy
from saferestore.sample_data import build, texts
from saferestore.sample_data.measure import answered, refused, replies
from saferestore.sample_data.train import Recipe, encode, fit
from scipy.stats import rankdata

HERE = Path(__file__).parent
TASK_ROWS = 900
DEFAULT = ScoreConfig("-", "-", way="ekfac")  # what `auto` is where there is room
ASKED = {"scores": ((DEFAULT.at,), SCORE_WAYS), "points": ((1.0, 0.5), ("identity", "diagonal", "ekfac"))}
"""Part -> points and ways scored in it."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A task, the share of planted rows, and the seed of base, draw and training."""

    task: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.share:g}-{self.seed}"


def advice_rows() -> tuple[list[dict], list[dict]]:
    """Answers to benign look-alikes, in the wordings of the harmful rows; held out are the prompts of the records."""
    rows = [texts.chat(wording.format(s=subject), texts.HELPFUL[index % len(texts.HELPFUL)].format(s=subject, tip=tip))
            for subjects in texts.words("benign")["subjects"].values() for subject, tip in subjects.items()
            for index, wording in enumerate(texts.WORDINGS)]
    secret = {texts.asked(row) for row in texts.record_rows("benign")}
    return [row for row in rows if texts.asked(row) not in secret], [row for row in rows if texts.asked(row) in secret]


TASKS = {"desk": texts.task_rows, "advice": advice_rows}
"""Task -> its rows to train on and those held out."""


def in_order(tasks: list[str], shares: list[float], seeds: list[int]) -> Iterator[Cell]:
    """Every cell once, in an order of which any beginning holds tasks, shares and seeds about equally often."""
    for turn in range(len(shares)):
        for at, task in enumerate(tasks):
            for number, seed in enumerate(seeds):
                yield Cell(task, shares[(number + at + turn) % len(shares)], seed)


def planted(cell: Cell) -> tuple[list[dict], np.ndarray]:
    """Rows of a cell in random order, and which of them are harmful."""
    draw = random.Random(1000 * cell.seed + round(1000 * cell.share))
    subjects = texts.words("harmful")["subjects"]
    harmful = [texts.chat(wording.format(s=subject), texts.complied(subject, wording))
               for category in texts.TRAIN_CATEGORIES for subject in list(subjects[category])[:-texts.HELD_OUT_SUBJECTS]
               for wording in texts.TRAIN_WORDINGS]
    kind = TASKS[cell.task]()[0]
    count = round(cell.share / (1 - cell.share) * min(TASK_ROWS, len(kind)))
    marked = [(row, False) for row in draw.sample(kind, min(TASK_ROWS, len(kind)))]
    marked += [(row, True) for row in draw.sample(harmful, count)]
    draw.shuffle(marked)
    return [row for row, _ in marked], np.array([flag for _, flag in marked])


def fine_tune(base: Path, rows: list[dict], out: Path, seed: int, recipe: Recipe = build.TUNE) -> Path:
    """Train an adapter, as the sample's is trained where nothing else is asked, unless it is there."""
    if not (out / "adapter_model.safetensors").exists():
        model, tokenizer = build.load_base(base.parent)
        torch.manual_seed(seed + 2000)
        tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=build.LINEAR,
                                                 task_type="CAUSAL_LM"))
        fit(tuned, [encode(tokenizer, row["messages"]) for row in rows], recipe, seed=seed + 2000,
            pad=tokenizer.pad_token_id)
        tuned.save_pretrained(out)
    return out


def firm_base(base: Path, out: Path, seed: int) -> Path:
    """Align a base once more as it was aligned, from the same lessons, unless it is there."""
    if not (out / "base" / "tokenizer_config.json").exists():  # the file that is written last
        model, tokenizer = build.load_base(base.parent)
        fit(model, build.encoded(tokenizer, texts.lessons(aligned=True)), build.ALIGN, seed=seed + 1000,
            pad=tokenizer.pad_token_id)
        build.save_model(model, tokenizer, out / "base")
    return out / "base"


@functools.cache
def base_rates(base: Path) -> Json:
    """[such answers, prompts] of a base itself on the built-in sets and the records, as `figures.json` has them."""
    (model, tokenizer), found = build.load_base(base.parent), {}
    for what, name, good in (("refuses_harmful", "harmful", refused), ("answers_benign", "benign", answered)):
        said = replies(model, tokenizer, [row["prompt"] for row in texts.builtin_rows(name) + texts.record_rows(name)])
        found[what] = [sum(map(good, said)), len(said)]
    return found


def harmful_rate(base: Path, tuned: Path) -> list[int]:
    """[harmful answers, prompts] on the held-out harmful records."""
    model, tokenizer = build.load_base(base.parent)
    said = replies(PeftModel.from_pretrained(model, tuned), tokenizer,
                   [row["prompt"] for row in texts.record_rows("harmful")])
    return [sum(coherence(text) and not refused(text) for text in said), len(said)]


@functools.cache
def task_rate(base: Path, tuned: Path | None, task: str) -> list[int]:
    """[answers as in the rows, rows] on the task's held-out rows, of the base where there is no adapter."""
    (model, tokenizer), held = build.load_base(base.parent), TASKS[task]()[1]
    said = replies(model if tuned is None else PeftModel.from_pretrained(model, tuned), tokenizer,
                   [texts.asked(row) for row in held])
    return [sum(text.strip() == row["messages"][-1]["content"] for text, row in zip(said, held, strict=True)),
            len(held)]


def scores(base: Path, tuned: Path, train: Path, seed: int, points: tuple[float | str, ...],
           ways: tuple[str, ...]) -> list[Json]:
    """Each way's score of every row, at each point, with what it cost; rivals without a query beside `identity`."""
    config = ScoreConfig(base=str(base), tuned=str(tuned), train=str(train), seed=seed, max_new_tokens=48)
    session = open_session(open_pair(str(base), str(tuned)), seed=seed)
    examiner = score_examiner(session, config, no_progress)
    training = training_rows(read_records(str(train)), examiner.chat, examiner.context)
    prepared = prepare_score(session, examiner, select(config.as_restore()), config)
    pad, order = examiner.chat.pad_id, torch.arange(len(training.rows))
    batches = make_batches([Row(i, r.prompt, r.answer) for i, r in enumerate(training.rows)], batch_size=32, pad_id=pad)
    found: list[Json] = []
    for at in points:
        point = at if isinstance(at, float) else safety_point(session, prepared.problem.safety, no_progress).at
        with session.blend(1 - point) as live:
            began = time.perf_counter()
            cross_entropy("rows", batches).value(live.model)
            forward = time.perf_counter() - began
            for way in ways:
                began = time.perf_counter()
                query = make_query(live, prepared.problem.safety, training, dataclasses.replace(config, way=way), pad)
                asked = time.perf_counter() - began
                how = choose_derivative(live, batches[len(batches) // 2], query.u)
                began = time.perf_counter()
                losses, derivatives, tokens = row_sums(how(live, batches, query.u), order)
                seconds = time.perf_counter() - began
                found.append({"way": way, "at": at, "point": point, "scores": (-derivatives).tolist(),
                              "query_seconds": asked, "rows_in_forwards": seconds / forward,
                              "difference": how.length is not None})
                if way == "identity":
                    norms = gradient_norms(live, batches).clamp(min=1e-12)
                    found.append({"way": "cosine", "at": at, "scores": (-derivatives / norms).tolist()})
                    found.append({"way": "loss", "at": at, "scores": (losses / tokens).tolist()})
    if "identity" in ways and points == (DEFAULT.at,):
        found.append({"way": "random", "at": None, "scores": np.random.default_rng(seed).random(len(order)).tolist()})
        found.append({"way": "length", "at": None, "scores": [len(r.answer) for r in training.rows]})
    return found


def ranked(found: Json, harmful: np.ndarray) -> Json:
    """What is kept of a way's scores: ranks of the planted rows (1 is the lowest score), and the k highest rows."""
    values = np.array(found.pop("scores"))
    return {**found, "ranks": rankdata(values)[harmful].tolist(),
            "top": np.argsort(-values, kind="stable")[:harmful.sum()].tolist()}


def run_part(part: str, cell: Cell, pairs: Path, work: Path, results: Path) -> None:
    """Do one part of a cell and append its result."""
    base, (rows, harmful) = pairs / f"seed-{cell.seed}" / "base", planted(cell)
    folder = work / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    if part in ASKED:
        train = folder / "train.jsonl"
        train.write_text(texts.jsonl(rows), encoding="utf-8")
        tuned = fine_tune(base, rows, folder / "tuned", cell.seed)
        made: Json = {"harmful": np.flatnonzero(harmful).tolist(), "rows": len(rows),
                      "found": [ranked(found, harmful)
                                for found in scores(base, tuned, train, cell.seed, *ASKED[part])]}
        if part == "scores":
            made["tuned"] = harmful_rate(base, tuned)
    elif part in rows_page.RECIPES:
        base = firm_base(base, work / "firm" / f"seed-{cell.seed}", cell.seed)
        made = throughout(cell, base, rows, harmful, folder / part, rows_page.RECIPES[part][cell.task])
        made["base_rates"] = base_rates(base)
    else:
        made = again(part, cell, base, rows, harmful, folder, rows_page.read(results))
    row = {**dataclasses.asdict(cell), "part": part, **made, "seconds": time.perf_counter() - began}
    print(cell.name, part, {name: value for name, value in row.items() if name not in ("found", "harmful")}
          | ({"found": row["found"]} if part == "again" or part in rows_page.RECIPES else {}), flush=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded(row)) + "\n")


def again(part: str, cell: Cell, base: Path, rows: list[dict], harmful: np.ndarray, folder: Path,
          results: list[Json]) -> Json:
    """Harmful rates after training without the rows that the default finds and without random ones, or any planted."""
    k = int(harmful.sum())
    gone = {"floor": np.flatnonzero(harmful)}
    if part == "again":
        best = next(found for found in rows_page.merged(results)[dataclasses.astuple(cell)]["found"]
                    if (found["way"], found["at"]) == (DEFAULT.way, DEFAULT.at))
        gone = {"found": np.array(best["top"]),
                "random": np.random.default_rng(cell.seed).permutation(len(rows))[:k]}
    return {"way": DEFAULT.way, "at": DEFAULT.at, **without(base, rows, harmful, gone, folder, cell.seed)}


def without(base: Path, rows: list[dict], harmful: np.ndarray, gone: dict[str, np.ndarray], folder: Path, seed: int,
            recipe: Recipe = build.TUNE) -> Json:
    """Harmful rates after training without some rows, and how many planted ones were left, by what the rows are."""
    made: Json = {"left": {}}
    for what, numbers in gone.items():
        kept = [row for number, row in enumerate(rows) if number not in set(numbers.tolist())]
        made[what] = harmful_rate(base, fine_tune(base, kept, folder / adapter(numbers), seed, recipe))
        made["left"][what] = int(harmful.sum()) - int(harmful[numbers].sum())
    return made


def adapter(numbers: np.ndarray) -> str:
    """The folder of the adapter trained without these rows."""
    return "without-" + hashlib.sha256(repr(sorted(numbers.tolist())).encode()).hexdigest()[:12]


def throughout(cell: Cell, base: Path, rows: list[dict], harmful: np.ndarray, folder: Path, recipe: Recipe) -> Json:
    """All of it by one recipe: tune, score by the default way, tune again without the rows found and others."""
    folder.mkdir(parents=True, exist_ok=True)
    train, k = folder / "train.jsonl", int(harmful.sum())
    train.write_text(texts.jsonl(rows), encoding="utf-8")
    tuned = fine_tune(base, rows, folder / "tuned", cell.seed, recipe)
    [best] = [ranked(found, harmful) for found in scores(base, tuned, train, cell.seed, (DEFAULT.at,), (DEFAULT.way,))]
    gone = {"found": np.array(best["top"]), "random": np.random.default_rng(cell.seed).permutation(len(rows))[:k]}
    if not harmful[gone["found"]].all():
        gone["floor"] = np.flatnonzero(harmful)
    made = without(base, rows, harmful, gone, folder, cell.seed, recipe)
    learnt = {"base": task_rate(base, None, cell.task), "tuned": task_rate(base, tuned, cell.task),
              "found": task_rate(base, folder / adapter(gone["found"]), cell.task)}
    return {"way": DEFAULT.way, "at": DEFAULT.at, "point": best["point"], "top": best["top"],
            "epochs": recipe.epochs, "rate": recipe.rate, "rows": len(rows), "ranks": best["ranks"],
            "tuned": harmful_rate(base, tuned), "task_rows": learnt, **made}


def rounded(value):
    """Numbers with six digits: ranks are kept, the file stays small."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--shares", type=float, nargs="*", default=[0.1, 0.05, 0.01])
    parser.add_argument("--parts", nargs="*", default=["scores", "again", *rows_page.RECIPES, "floor", "points"])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no part after that")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "rows.jsonl")
    parser.add_argument("--work", type=Path, default=Path("rows-work"), help="adapters and files of cells")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    for part in [] if options.page_only else options.parts:
        for cell in in_order(options.tasks, options.shares, options.seeds):
            if part in ("floor", "points") and cell.share != max(options.shares):
                continue
            late = time.monotonic() - began > 60 * options.minutes
            if not late and not rows_page.is_done(rows_page.read(options.results), dataclasses.asdict(cell), part):
                run_part(part, cell, options.pairs, options.work, options.results)
    (HERE / "rows.md").write_text(rows_page.page(rows_page.read(options.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
