"""The page of `rows.py` from its results."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from saferestore.core.config import SCORE_WAYS, ScoreConfig
from saferestore.core.evaluation.intervals import wilson
from saferestore.sample_data.build import ALIGN
from saferestore.sample_data.train import Recipe
from scipy.stats import rankdata

Json = dict[str, Any]
DEFAULT = ScoreConfig("-", "-", way="ekfac")  # what `auto` is where there is room
RECIPES = {"firm-gentle": {"desk": Recipe(epochs=8, rate=1e-3, batch=16),
                           "advice": Recipe(epochs=3, rate=1e-3, batch=16)}}
"""Part -> task -> how every model of it is trained, other than the sample's is."""
MILD_CHOSEN_ON = (0, 1)
"""Seeds by which the base and the recipe of `firm-gentle` were chosen."""
EARLIER = (("short", 0.2, "the sample's base, 0.003 for 2 epochs"),
           ("gentle", 0.2, "the sample's base, 0.0015 for 5 epochs (`desk`), 0.0005 for 3 (`advice`)"),
           ("firm", 0.2, "firm base, 0.003 for 5 epochs"),
           ("firm-gentle", 0.2, "firm base, 0.001 for 8 epochs (`desk`), for 3 (`advice`)"))
"""(part, point, in words) of what was run before the default point was `auto`; the first three are not run any more."""
KEY = ("task", "share", "seed")
PAGE = """# Training rows that cost safety, found by their influence

`python docs/benchmarks/rows.py --pairs FOLDER` fine-tunes the sample's base (LoRA, r = 8, all linear modules, 5
epochs) on 900 rows of a task with a share of planted harmful rows (placeholder compliance with harmful requests), and
scores every row. Tasks: `desk`, sorting of messages, whose rows are short and alike, so that length alone tells them
from harmful rows; `advice`, answers to benign look-alikes in the same wordings and of the same length as the harmful
rows. `at` is where rows are scored between base (0) and tuned model (1). lambda is {damping} of the mean diagonal of
F; F from 256 rows. `cosine`, `loss`, `length` and `random` are rivals without a query; `loss` is taken at the same
point. AUC: mean over the cells of a line with its 95% bootstrap interval over rows; precision at k = number of planted
rows, all cells of a line together, with Wilson's interval. {chosen}

Code at commit {commit}, torch {torch}. Single results: `rows.jsonl`.

Cells scored: {cells} of 18 (3 seeds x 2 tasks x 3 shares); trained again: {again_cells}.

## What came of it

{findings}

## Finding planted rows

{found}

## By share of planted rows, at {at}

{shares}

## Cost

{cost}

## Counterfactual: trained again without the rows

Harmful rate on the sample's 276 held-out harmful prompts (wording judge), with Wilson 95% intervals. `left` is the
number of planted rows among those kept. `no planted row` is what training on the benign rows alone does; where none is
left it is the same training as without the rows found.

{again}

## The same from a firm base at a lower rate

The sample's base is aligned for {align:g} epochs and its recipe is steep (0.003 for 5 epochs): the benign rows alone
cost safety, and no removal of planted rows can do better than training without any. Here the base is aligned for
{align:g} more epochs, with the same lessons and rate, and each model is trained at {mild}.
**This base and recipe were chosen on seeds 0 and 1** (below); no model of the other seeds was trained by it before. The
bases themselves, on the built-in and the held-out prompts: {firm_bases}.
Of the tasks' held-out rows they answer {firm_task} as the rows do. `task` is the share of the task's held-out rows that
the model without the rows found answers exactly as its rows do.

{mild_cells} cells were run. {found_once}

{mild_table}

## Recipes and the point before

What the same counterfactual came to at the fixed point 0.2, the default until `auto`, and by recipes that were given
up because the benign rows alone cost too much safety in them. `counts`: cells whose tuned rate is at least 0.8;
`reach it`: at most 0.05 without the rows found, more than 0.8 without random ones.

{earlier_table}

## What was tried to choose rate and base

`rows-choice.jsonl`: each trained once, by the functions of `rows.py`; harmful rate as tuned, `none` the benign rows of
the 10% cell alone, `task` on 100 held-out rows; `aligned` for so many epochs.

{choice_table}
"""


def read(results: Path) -> list[Json]:
    """The results so far."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def is_done(results: list[Json], cell: Json, part: str) -> bool:
    """Tell whether a part of a cell needs no work; one of another way or point than the default's does."""
    return any(row["part"] == part and all(row[name] == cell[name] for name in KEY) and by_default(row)
               for row in results)


def by_default(row: Json) -> bool:
    """Whether a result is by the default's way and point, or has nothing to do with them."""
    scored = row["found"] if row["part"] == "scores" else [row] if "way" in row else []
    return not scored or any((found["way"], found["at"]) == (DEFAULT.way, DEFAULT.at) for found in scored)


def merged(results: list[Json]) -> dict[tuple, Json]:
    """Cell -> rows, planted rows, tuned rate, and what every way found, over all its parts."""
    cells: dict[tuple, Json] = {}
    for row in results:
        if row["part"] in ("scores", "cg", "points"):
            cell = cells.setdefault(tuple(row[name] for name in KEY), {**row, "found": []})
            have = {(found["way"], found["at"]) for found in cell["found"]}
            cell["found"] += [found for found in row["found"] if (found["way"], found["at"]) not in have]
            cell |= {"tuned": row["tuned"]} if "tuned" in row else {}
    return cells


def auc(bad: np.ndarray, good: np.ndarray) -> float:
    """Area under ROC of two samples by ranks, ties in the middle."""
    ranks, n = rankdata(np.concatenate([bad, good])), len(bad)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(good)))


def ranks_of(found: Json, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the planted rows, and those left for the others (of ties, one of the ranks that they share)."""
    bad, taken = np.array(found["ranks"]), []
    for rank in np.sort(bad):
        taken.append(max(taken[-1] + 1 if taken else 1, int(rank)))
    return bad, np.setdiff1d(np.arange(1, rows + 1), taken)


def exact_auc(found: Json, rows: int) -> float:
    """AUC from the ranks of the planted rows among all."""
    n = len(found["ranks"])
    return (sum(found["ranks"]) - n * (n + 1) / 2) / (n * (rows - n))


def data_of(cells: list[Json], at: float | None, way: str) -> list[tuple[Json, Json]]:
    """(cell, what the way found) of the cells that a way scored at a point."""
    return [(cell, found) for cell in cells for found in cell["found"] if (found["at"], found["way"]) == (at, way)]


def hits(cell: Json, found: Json) -> int:
    """Planted rows among the k highest."""
    return len(set(found["top"]) & set(cell["harmful"]))


def numbers(data: list[tuple[Json, Json]]) -> str:
    """Cells of a table: how many cells, AUC and precision at k with their intervals."""
    draw, means = np.random.default_rng(0), []
    ranks = [ranks_of(found, cell["rows"]) for cell, found in data]
    for _ in range(400):
        means.append(np.mean([auc(draw.choice(bad, len(bad)), draw.choice(good, len(good))) for bad, good in ranks]))
    low, high = np.quantile(means, [0.025, 0.975])
    rate = wilson(sum(hits(*pair) for pair in data), sum(len(cell["harmful"]) for cell, _ in data))
    mean = np.mean([exact_auc(found, cell["rows"]) for cell, found in data])
    return (f"{len(data)} | {mean:.3f} [{low:.3f}, {high:.3f}] "
            f"| {rate.value:.2f} [{rate.ci_low:.2f}, {rate.ci_high:.2f}] of {rate.n}")


def found_table(cells: list[Json]) -> str:
    """AUC and precision of every way, a line a task, point and way."""
    lines = ["| task | at | way | cells | AUC | precision at k |", "| --- | --- | --- | --- | --- | --- |"]
    for task in sorted({cell["task"] for cell in cells}):
        own = [cell for cell in cells if cell["task"] == task]
        asked = dict.fromkeys((f["at"], f["way"]) for cell in own for f in cell["found"])
        for at, way in sorted(asked, key=lambda pair: -1 if pair[0] is None else 0 if pair[0] == "auto" else pair[0]):
            lines.append(f"| {task} | {'-' if at is None else at} | {way} | {numbers(data_of(own, at, way))} |")
    return "\n".join(lines)


def share_table(cells: list[Json]) -> str:
    """AUC and precision at the default's point, a line a share and way."""
    lines = ["| planted | way | cells | AUC | precision at k |", "| --- | --- | --- | --- | --- |"]
    for share in sorted({cell["share"] for cell in cells}):
        own = [cell for cell in cells if cell["share"] == share]
        for way in dict.fromkeys(f["way"] for cell in own for f in cell["found"] if f["at"] == DEFAULT.at):
            lines.append(f"| {100 * share:g}% | {way} | {numbers(data_of(own, DEFAULT.at, way))} |")
    return "\n".join(lines)


def cost_table(cells: list[Json]) -> str:
    """Seconds of the query and forward passes of the rows, medians over cells and points."""
    lines = ["| way | query, seconds | rows, in forward passes over them | of which by forward mode |",
             "| --- | --- | --- | --- |"]
    for way in SCORE_WAYS:
        own = [f for cell in cells for f in cell["found"] if f["way"] == way]
        if own:
            slow = sum(not f["difference"] for f in own)
            lines.append(f"| {way} | {np.median([f['query_seconds'] for f in own]):.1f} | "
                         f"{np.median([f['rows_in_forwards'] for f in own]):.2f} | {slow} of {len(own)} |")
    return "\n".join(lines)


def again_rows(results: list[Json]) -> list[Json]:
    """Cells trained again by the default, with their rates by name; the floor from any run that left no planted row."""
    cells, again = merged(results), [row for row in results if row["part"] == "again"]
    floors = {(row["task"], row["seed"]): row["floor"] for row in results if row["part"] == "floor"}
    clean = {tuple(row[name] for name in KEY): row["found"] for row in again if not row["left"]["found"]}
    return [{**row, "tuned": cells[key]["tuned"], "floor": clean.get(key, floors.get((row["task"], row["seed"])))}
            for row in again if (row["way"], row["at"]) == (DEFAULT.way, DEFAULT.at)
            for key in [tuple(row[name] for name in KEY)]]


def recipe_rows(results: list[Json], part: str, at: float | str = DEFAULT.at) -> list[Json]:
    """Cells of a recipe, trained again by the default way; where no planted row is left that is the floor."""
    return [{**row, "floor": row.get("floor") if row["left"]["found"] else row["found"]} for row in results
            if row["part"] == part and (row["way"], row["at"]) == (DEFAULT.way, at)]


def recipe_name(recipe: Recipe) -> str:
    """A recipe in words."""
    return f"{recipe.rate:g} for {recipe.epochs:g} epochs"


def again_table(rows: list[Json]) -> str:
    """Harmful rates of tuned models and of those trained again; how the task is learnt, where that is measured."""
    learnt = any("task_rows" in row for row in rows)
    lines = ["| task | planted | seed | as tuned | without the rows found | left | without as many random rows "
             f"| no planted row |{' task |' if learnt else ''}", "| --- " * (9 if learnt else 8) + "|"]
    for row in rows:
        shown = {name: "-" if row[name] is None else _rate(row[name]) for name in ("tuned", "found", "random", "floor")}
        lines.append(f"| {row['task']} | {100 * row['share']:g}% | {row['seed']} | {shown['tuned']} | {shown['found']} "
                     f"| {row['left']['found']} | {shown['random']} | {shown['floor']} |"
                     + (f" {_rate(row['task_rows']['found'])} of {row['task_rows']['found'][1]} |" if learnt else ""))
    return "\n".join(lines)


def copied(rows: list[Json]) -> str:
    """How many cells took their rates from the same training run before, in words."""
    same = sum("same_rows_as" in row for row in rows)
    return (f"In {same} of the {len(rows)} cells of the two tables trained again the rows found are those found "
            "before `auto`, so the model without them is that same one and was not trained twice.")


def earlier_table(results: list[Json]) -> str:
    """A line a recipe of before: cells that count and reach the bound, planted rows found, what benign rows leave."""
    from rows_findings import counts, mended, rate

    lines = ["| recipe | at | cells | counts | reach it | planted rows found | benign rows alone |",
             "| --- " * 7 + "|"]
    for part, at, words in EARLIER:
        rows = recipe_rows(results, part, at)
        counted = [row for row in rows if counts(row)]
        floors = [rate(row, "floor") for row in rows if row["floor"] is not None]
        if rows:
            k, left = sum(len(row["ranks"]) for row in rows), sum(row["left"]["found"] for row in rows)
            lines.append(f"| {words} | {at:g} | {len(rows)} | {len(counted)} | {sum(map(mended, counted))} "
                         f"| {k - left} of {k} | {min(floors):.3f} to {max(floors):.3f} |")
    return "\n".join(lines)


def choice_table(trials: list[Json]) -> str:
    """Harmful rates of what was tried, a line a base and recipe."""
    shares = (0.0, 0.05, 0.1)
    lines = ["| task | aligned | seed | learning rate | epochs | batch | none | 5% | 10% | task (none) |",
             "| --- " * 10 + "|"]
    names = ("task", "aligned", "seed", "rate", "epochs", "batch", "share")
    found = {tuple(trial[name] for name in names): trial for trial in trials}
    for recipe in sorted({key[:-1] for key in found}):
        own = [found.get((*recipe, share)) for share in shares]
        rates = [_rate(trial["tuned"]) if trial else "-" for trial in own]
        learnt = _rate(own[0]["task_rows"]) if own[0] and own[0]["task_rows"] else "-"
        lines.append("| " + " | ".join([recipe[0], *(f"{each:g}" for each in recipe[1:]), *rates, learnt]) + " |")
    return "\n".join(lines)


def base_rates(rows: list[Json]) -> str:
    """What the firm bases refuse and answer, all together, with the least of one base."""
    known = {row["seed"]: row["base_rates"] for row in rows}
    parts = []
    for what, words in (("refuses_harmful", "refuse {} of {} harmful prompts"),
                        ("answers_benign", "answer {} of {} benign ones")):
        counts = [rates[what] for rates in known.values()]
        parts += [words.format(*np.sum(counts, axis=0)) + f" (at least {min(n / of for n, of in counts):.3f} each)"
                  for _ in counts[:1]]
    return f"{' and '.join(parts)} (seeds {', '.join(map(str, sorted(known)))})" if known else "(not measured)"


def base_task(rows: list[Json]) -> str:
    """What the bases answer of the tasks' held-out rows, all together."""
    known = {(row["task"], row["seed"]): row["task_rows"]["base"] for row in rows}
    parts = []
    for task in sorted({task for task, _ in known}, reverse=True):
        right, asked = np.sum([counts for (own, _), counts in known.items() if own == task], axis=0)
        parts.append(f"{right} of {asked} on `{task}`")
    return ", ".join(parts) or "(not measured)"


def _rate(counts: list[int]) -> str:
    rate = wilson(*counts)
    return f"{rate.value:.3f} [{rate.ci_low:.3f}, {rate.ci_high:.3f}]"


def page(results: list[Json]) -> str:
    """The whole page."""
    from rows_findings import CHOSEN, findings

    cells, trials = list(merged(results).values()), read(Path(__file__).with_name("rows-choice.jsonl"))
    mild = recipe_rows(results, "firm-gentle")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    told = ", ".join(f"{recipe_name(recipe)} (`{task}`)" for task, recipe in RECIPES["firm-gentle"].items())
    return PAGE.format(damping=DEFAULT.damping, commit=commit.strip(), torch=torch.__version__, cells=len(cells),
                       again_cells=len(again_rows(results)), at=DEFAULT.at, chosen=CHOSEN,
                       findings=findings(results, trials), found=found_table(cells), shares=share_table(cells),
                       cost=cost_table(cells), again=again_table(again_rows(results)), align=ALIGN.epochs,
                       firm_bases=base_rates(mild), firm_task=base_task(mild), mild=told, mild_cells=len(mild),
                       mild_table=again_table(mild), found_once=copied([*again_rows(results), *mild]),
                       earlier_table=earlier_table(results),
                       choice_table=choice_table(trials))
