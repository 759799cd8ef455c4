"""Planted harmful rows: does `score` find them, does scoring beat its rivals, and does leaving them out help?

Usage: python docs/benchmarks/rows.py --pairs FOLDER [--seeds 1 2 3] [--tasks desk advice] [--shares 0.1 0.05 0.01]

FOLDER/seed-N/base is the base that `python sample_data/build.py --seed N --out FOLDER/seed-N` writes. A cell fine-tunes
it on 900 rows of a task with a share of harmful rows among them, scores every row by every way, and fine-tunes again
without the rows found and without as many random rows. Results are appended to rows.jsonl beside this file (a finished
part of a cell is not repeated) and rows.md is written from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session
from saferestore.core.config import SCORE_WAYS, ScoreConfig, no_progress
from saferestore.core.data.batches import Row, make_batches
from saferestore.core.data.readers import read_records
from saferestore.core.data.selection import select
from saferestore.core.evaluation.coherence import coherence
from saferestore.core.evaluation.intervals import wilson
from saferestore.core.evaluation.scoring import make_query, prepare_score, score_examiner
from saferestore.core.evaluation.training_rows import training_rows
from saferestore.core.influence.rows import choose_derivative, gradient_norms, row_sums
from saferestore.core.losses import cross_entropy
from saferestore.sample_data import build, texts
from saferestore.sample_data.measure import refused, replies
from saferestore.sample_data.train import encode, fit
from scipy.stats import rankdata

HERE = Path(__file__).parent
TASK_ROWS = 900
POINTS = (1.0, 0.5, 0.2)
PAGE = """# Training rows that cost safety, found by their influence

`python docs/benchmarks/rows.py --pairs FOLDER` fine-tunes the sample's base (LoRA, r = 8, all linear modules, 5
epochs) on 900 rows of a task with a share of planted harmful rows (placeholder compliance with harmful requests), and
scores every row. Tasks: `desk`, sorting of messages, whose rows are short and alike, so that length alone tells them
from harmful rows; `advice`, answers to benign look-alikes in the same wordings and of the same length as the harmful
rows. `at` is where rows are scored between base (0) and tuned model (1). lambda is {damping} of the mean diagonal of
F; F from 256 rows. `cosine`, `loss`, `length` and `random` are rivals without a query; `loss` is taken at the same
point. AUC with its 95% bootstrap interval over rows of all cells of a line (mean over cells), precision at k = number
of planted rows with Wilson's. The damping and the point were chosen on a pair of seed 0, which is in none of the
numbers.
Code at commit {commit}, torch {torch}. Single results: `rows.jsonl`.

Cells done: {cells} of 18 (3 seeds x 2 tasks x 3 shares).

## Finding planted rows

{found}

## Cost

{cost}

## Counterfactual: trained again without the rows

Harmful rate on the sample's 276 held-out harmful prompts (wording judge), with Wilson 95% intervals.

{again}
"""


def advice_rows() -> list[dict]:
    """Answers to benign look-alikes, in the wordings of the harmful rows."""
    rows = [texts.chat(wording.format(s=subject), texts.HELPFUL[index % len(texts.HELPFUL)].format(s=subject, tip=tip))
            for subjects in texts.words("benign")["subjects"].values() for subject, tip in subjects.items()
            for index, wording in enumerate(texts.WORDINGS)]
    secret = {texts.asked(row) for row in texts.record_rows("benign")}
    return [row for row in rows if texts.asked(row) not in secret]


TASKS = {"desk": lambda: texts.task_rows()[0], "advice": advice_rows}


def planted(task: str, share: float, seed: int) -> tuple[list[dict], np.ndarray]:
    """Rows of a cell in random order, and which of them are harmful."""
    draw = random.Random(1000 * seed + round(1000 * share))
    subjects = texts.words("harmful")["subjects"]
    harmful = [texts.chat(wording.format(s=subject), texts.complied(subject, wording))
               for category in texts.TRAIN_CATEGORIES for subject in list(subjects[category])[:-texts.HELD_OUT_SUBJECTS]
               for wording in texts.TRAIN_WORDINGS]
    kind = TASKS[task]()
    count = round(share / (1 - share) * min(TASK_ROWS, len(kind)))
    marked = [(row, False) for row in draw.sample(kind, min(TASK_ROWS, len(kind)))]
    marked += [(row, True) for row in draw.sample(harmful, count)]
    draw.shuffle(marked)
    return [row for row, _ in marked], np.array([flag for _, flag in marked])


def fine_tune(base: Path, rows: list[dict], out: Path, seed: int) -> None:
    """Train an adapter as the sample's is trained."""
    model, tokenizer = build.load_base(base.parent)
    torch.manual_seed(seed + 2000)
    tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=build.LINEAR, task_type="CAUSAL_LM"))
    fit(tuned, [encode(tokenizer, row["messages"]) for row in rows], build.TUNE, seed=seed + 2000,
        pad=tokenizer.pad_token_id)
    tuned.save_pretrained(out)


def harmful_rate(base: Path, tuned: Path) -> list[int]:
    """[harmful answers, prompts] on the held-out harmful records."""
    model, tokenizer = build.load_base(base.parent)
    said = replies(PeftModel.from_pretrained(model, tuned), tokenizer,
                   [row["prompt"] for row in texts.record_rows("harmful")])
    return [sum(coherence(text) and not refused(text) for text in said), len(said)]


def scores(base: Path, tuned: Path, train: Path, seed: int, points: tuple[float, ...]) -> list[dict]:
    """Every way's score of every row, at every point, with what it cost."""
    config = ScoreConfig(base=str(base), tuned=str(tuned), train=str(train), seed=seed, max_new_tokens=48)
    session = open_session(open_pair(str(base), str(tuned)), seed=seed)
    examiner = score_examiner(session, config, no_progress)
    training = training_rows(read_records(str(train)), examiner.chat, examiner.context)
    prepared = prepare_score(session, examiner, select(config.as_restore()), config)
    pad, order = examiner.chat.pad_id, torch.arange(len(training.rows))
    batches = make_batches([Row(i, r.prompt, r.answer) for i, r in enumerate(training.rows)], batch_size=32, pad_id=pad)
    found = [{"way": "random", "at": None, "scores": np.random.default_rng(seed).random(len(order)).tolist()},
             {"way": "length", "at": None, "scores": [len(r.answer) for r in training.rows]}]
    for at in points:
        with session.blend(1 - at) as live:
            began = time.perf_counter()
            cross_entropy("rows", batches).value(live.model)
            forward = time.perf_counter() - began
            for way in SCORE_WAYS:
                began = time.perf_counter()
                query = make_query(live, prepared.problem.safety, training, dataclasses.replace(config, way=way), pad)
                asked = time.perf_counter() - began
                how = choose_derivative(live, batches[len(batches) // 2], query.u)
                began = time.perf_counter()
                losses, derivatives, tokens = row_sums(how(live, batches, query.u), order)
                seconds = time.perf_counter() - began
                found.append({"way": way, "at": at, "scores": (-derivatives).tolist(), "query_seconds": asked,
                              "rows_in_forwards": seconds / forward, "difference": how.length is not None})
                if way == "identity":
                    norms = gradient_norms(live, batches).clamp(min=1e-12)
                    found.append({"way": "cosine", "at": at, "scores": (-derivatives / norms).tolist()})
                    found.append({"way": "loss", "at": at, "scores": (losses / tokens).tolist()})
    return found


def auc(values: np.ndarray, harmful: np.ndarray) -> float:
    """Area under ROC by ranks, ties in the middle."""
    ranks, n = rankdata(values), harmful.sum()
    return float((ranks[harmful].sum() - n * (n + 1) / 2) / (n * (len(values) - n)))


def run_cell(pairs: Path, task: str, share: float, seed: int, results: Path, *, again: bool) -> None:
    """Do what is missing of a cell."""
    key = {"task": task, "share": share, "seed": seed}
    done = {row["part"] for row in read(results) if all(row[name] == value for name, value in key.items())}
    if {"scores", *(("again",) if again else ())} <= done:
        return
    base, (rows, harmful) = pairs / f"seed-{seed}" / "base", planted(task, share, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.jsonl").write_text(texts.jsonl(rows), encoding="utf-8")
        fine_tune(base, rows, folder / "tuned", seed)
        found = scores(base, folder / "tuned", folder / "train.jsonl", seed, POINTS)
        if "scores" not in done:
            add(results, {**key, "part": "scores", "harmful": np.flatnonzero(harmful).tolist(), "rows": len(rows),
                          "tuned": harmful_rate(base, folder / "tuned"), "found": found})
        if not again or "again" in done:
            return
        k, rates = int(harmful.sum()), {}
        default = ScoreConfig("-", "-")
        best = next(f for f in found if (f["way"], f["at"]) == (default.way, default.at))
        drawn = np.random.default_rng(seed).permutation(len(rows))[:k]
        for what, gone in (("found", np.argsort(-np.array(best["scores"]))[:k]), ("random", drawn)):
            kept = [row for number, row in enumerate(rows) if number not in set(gone.tolist())]
            fine_tune(base, kept, folder / what, seed)
            rates[what] = harmful_rate(base, folder / what)
        add(results, {**key, "part": "again", **rates})


def add(results: Path, row: dict) -> None:
    """Add a result and say so."""
    print({name: row[name] for name in ("task", "share", "seed", "part")}, row.get("tuned"), row.get("found")
          if row["part"] == "again" else "", row.get("random"), flush=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded(row)) + "\n")


def rounded(value):
    """Numbers with six digits: ranks are kept, the file stays small."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read(results: Path) -> list[dict]:
    """The results so far."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def found_table(cells: list[dict]) -> str:
    """AUC and precision of every way, a line a task, point and way."""
    lines = ["| task | at | way | cells | AUC | precision at k |", "| --- | --- | --- | --- | --- | --- |"]
    for task in TASKS:
        own = [cell for cell in cells if cell["task"] == task]
        for at, way in dict.fromkeys((f["at"], f["way"]) for cell in own for f in cell["found"]):
            lines.append(found_line(task, at, way, own))
    return "\n".join(lines)


def found_line(task: str, at: float | None, way: str, cells: list[dict]) -> str:
    """One line of the table."""
    data, hits, planted_rows = [], 0, 0
    for cell in cells:
        values = np.array(next(f for f in cell["found"] if (f["at"], f["way"]) == (at, way))["scores"])
        harmful = np.zeros(cell["rows"], bool)
        harmful[cell["harmful"]] = True
        data.append((values, harmful))
        hits += int(harmful[np.argsort(-values, kind="stable")[:harmful.sum()]].sum())
        planted_rows += int(harmful.sum())
    draw, means = np.random.default_rng(0), []
    for _ in range(500):
        each = []
        for values, harmful in data:
            bad, good = values[harmful], values[~harmful]
            picked = np.concatenate([draw.choice(bad, len(bad)), draw.choice(good, len(good))])
            each.append(auc(picked, np.arange(len(picked)) < len(bad)))
        means.append(np.mean(each))
    low, high = np.quantile(means, [0.025, 0.975])
    mean = np.mean([auc(*pair) for pair in data])
    rate = wilson(hits, planted_rows)
    where = "-" if at is None else f"{at:g}"
    return (f"| {task} | {where} | {way} | {len(cells)} | {mean:.3f} [{low:.3f}, {high:.3f}] "
            f"| {rate.value:.2f} [{rate.ci_low:.2f}, {rate.ci_high:.2f}] of {planted_rows} |")


def cost_table(cells: list[dict]) -> str:
    """Seconds of the query and forward passes of the rows, medians over cells and points."""
    lines = ["| way | query, seconds | rows, in forward passes over them | of which by forward mode |",
             "| --- | --- | --- | --- |"]
    for way in SCORE_WAYS:
        own = [f for cell in cells for f in cell["found"] if f["way"] == way]
        slow = sum(not f["difference"] for f in own)
        lines.append(f"| {way} | {np.median([f['query_seconds'] for f in own]):.1f} | "
                     f"{np.median([f['rows_in_forwards'] for f in own]):.2f} | {slow} of {len(own)} |")
    return "\n".join(lines)


def again_table(rows: list[dict]) -> str:
    """Harmful rates of tuned models and of those trained again."""
    lines = ["| task | share | seed | as tuned | without the rows found | without as many random rows |",
             "| --- | --- | --- | --- | --- | --- |"]
    tuned = {(r["task"], r["share"], r["seed"]): r["tuned"] for r in rows if r["part"] == "scores"}
    for row in rows:
        if row["part"] == "again":
            cells = [tuned[row["task"], row["share"], row["seed"]], row["found"], row["random"]]
            shown = [wilson(*cell) for cell in cells]
            lines.append(f"| {row['task']} | {row['share']:g} | {row['seed']} | " + " | ".join(
                f"{r.value:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]" for r in shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--shares", type=float, nargs="*", default=[0.1, 0.05, 0.01])
    parser.add_argument("--no-again", action="store_true", help="do not train again")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "rows.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page_only:
        for seed in options.seeds:
            for share in options.shares:
                for task in options.tasks:
                    run_cell(options.pairs, task, share, seed, options.results, again=not options.no_again)
    rows = read(options.results)
    cells = [row for row in rows if row["part"] == "scores"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    (HERE / "rows.md").write_text(PAGE.format(
        damping=ScoreConfig("-", "-").damping, commit=commit.strip(), torch=torch.__version__, cells=len(cells),
        found=found_table(cells), cost=cost_table(cells), again=again_table(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
