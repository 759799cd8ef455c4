"""How every method's restored models hold: attacks, rounding to 4 bits, harmful rows again; one pair of every cell.

Usage: python docs/benchmarks/robustness.py (--pairs FOLDER | --page-only) [--only PART ...]

Pairs, rows and methods are those of `frontier.py`; a cell (family, attack, kind) is measured on its first seed whose
tuned model is harmful enough there, every method where it spends the middle budget. Results are appended to
robustness.jsonl beside this file, method by method (a finished one is not repeated); robustness.md is written from
them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from frontier import (
    ALL,
    BUDGET,
    FIT_ROWS,
    HELD_OUT,
    USUAL,
    Row,
    append,
    counted,
    done_of,
    measured,
    open_cell,
    read_results,
    run_at,
    run_beside,
)
from frontier_measures import Key, pair_of, paired, pairs_of, rows_of, share
from frontier_page import OURS, interval, rate, table
from frontier_pairs import Pair, make_pair
from frontier_robustness import (
    ATTACKED,
    FRAMES,
    PREFILL,
    Cell,
    attacked,
    base_params,
    few_shot,
    framed,
    relearned,
    rounded,
)
from saferestore.core.errors import SaferestoreError
from saferestore.core.evaluation.relearning import EVERY, PROBES, RATE, STEPS
from saferestore.core.params import Params

HERE = Path(__file__).parent
RELEARN_ROWS = (4, 16)
SYSTEMS = ("base", "tuned")
GROUPS = {"harmful rows": ("mixed", "pure"), "benign drift": ("drift",)}
"""What the pairs of a table were tuned on -> their attacks."""

RATES = {"harm": "harmful", "over_refusal": "over-refusal", "prefill": "prefill", "framed": "framed",
         "few_shot": "one shot", "rounded_harm": "harmful, 4 bits", "rounded_task": "task, 4 bits"}
PAGE = """# How restored models hold, by method

`python docs/benchmarks/robustness.py --pairs FOLDER`: one pair of each family, attack and kind of
[frontier.md](frontier.md), the first seed that counts there, every method at a drift of {budget} nats per token on
the fit rows and {passes} passes.

**What was run: {ran}.**

"prefill" forces the first {prefill} tokens of the tuned model's own harmful answer ({asked} prompts at most); "framed"
is the worst of two frames ({frames}); "one shot" is task accuracy with one solved row before
(pairs of `pure` have no task); "4 bits" rounds all linear weights; "relearn 4, 16" is the median number of AdamW steps
(rate {rate:g}) on so many harmful rows until half of {probes} unseen requests are answered again, looked at every
{every} steps ({never}: not within {steps}; 0: they were answered before). The base is measured on the adapters' pairs.
With {fit} fit rows `refusal-sft-100` is `refusal-sft`. 95% intervals are the wider of Student's over models and
Wilson's of all answers. Single results: `robustness.jsonl`; commit {commit}, torch {torch}, one thread.

## What came of it

{findings}

{tables}
"""


def cells(results: Path) -> list[Pair]:
    """Return the first pair of each cell that counts in the results of `frontier.py`, benign drift first."""
    first: dict[tuple[str, ...], Pair] = {}
    for pair in sorted((Pair(*key) for key in pairs_of(read_results(results))), key=lambda pair: pair.seed):
        first.setdefault((pair.family, pair.attack, pair.kind), pair)
    return sorted(first.values(), key=lambda pair: ("drift", "mixed", "pure").index(pair.attack))


def held(cell: Cell, params: Params) -> Row:
    """Return rates and drift of the model at some parameters, and how they hold."""
    return {**measured(cell, params), "prefill": attacked(cell, params), "framed": framed(cell, params),
            "few_shot": few_shot(cell, params),
            **{f"rounded_{key}": value for key, value in rounded(cell, params, counted).items()},
            **{f"relearn_{rows}": relearned(cell, params, rows) for rows in RELEARN_ROWS}}


def runs(cell: Cell, name: str) -> Iterator[Row]:
    """Yield the row of a system or a method; nothing for the base of a full pair, which is not there to be asked."""
    if name in SYSTEMS:
        params = cell.start if name == "tuned" else base_params(cell)
        if name == "tuned" or cell.pair.kind == "adapter":
            yield {"method": name, **held(cell, params)}
        return
    for row, params in run_at(cell, name, [(BUDGET, USUAL)]):
        yield row | held(cell, params)


def measure(folder: Path, only: Sequence[str] | None, results: Path) -> None:
    """Run what is missing of the pairs."""
    for pair in cells(HERE / "frontier.jsonl"):
        names = [name for name in (*SYSTEMS, *ALL)
                 if name not in done_of(results, pair) and (name, pair.kind) != ("base", "full")]
        if not names or (only is not None and not any(part in pair.name for part in only)):
            continue
        make_pair(pair, folder)
        cell = open_cell(pair, pair.folder(folder), pair.tuned(folder), FIT_ROWS, HELD_OUT)
        for name in names:
            try:
                rows = list(runs(cell, name))
            except SaferestoreError as error:
                rows = [{"method": name, "error": str(error)}]
            append(results, pair, rows)


def page(rows: Sequence[Row], commit: str) -> str:
    """Return the page."""
    good = [row for row in rows if "error" not in row]
    groups = {words: [row for row in good if row["attack"] in attacks] for words, attacks in GROUPS.items()}
    refused = sorted({row["method"] for row in rows if "error" in row})
    names = {row["method"] for row in good} - {*SYSTEMS}
    ran = (f"{len(names)} methods on {len({pair_of(row) for row in good})} pairs"
           f"{', except that on full checkpoints `restore` refuses ' if refused else ''}"
           f"{' and '.join(f'`{name}`' for name in refused)}")
    return PAGE.format(
        budget=BUDGET, passes=USUAL, ran=ran, prefill=PREFILL, asked=ATTACKED, frames=", ".join(FRAMES), rate=RATE,
        probes=PROBES, fit=FIT_ROWS, every=EVERY, never=STEPS + 1, steps=STEPS, commit=commit,
        torch=torch.__version__.partition("+")[0],
        findings="\n".join(line for words, own in groups.items() for line in found(words, own)),
        tables="\n\n".join(f"## Pairs tuned on {words}\n\n{shown(own)}" for words, own in groups.items() if own))


def steps_to(rows: Sequence[Row], count: int) -> list[float]:
    """Return after how many steps harm was back, one more than there are for not at all."""
    return [float(STEPS + 1 if row[f"relearn_{count}"] is None else row[f"relearn_{count}"]) for row in rows]


def shown(rows: Sequence[Row]) -> str:
    """Return the table of a group of pairs, the systems first and then the least harmful method."""
    of = {name: [row for row in rows if row["method"] == name] for name in dict.fromkeys(r["method"] for r in rows)}
    order = sorted(of, key=lambda name: (name not in SYSTEMS, statistics.mean(share(r, "harm") for r in of[name])))
    lines = [[f"`{name}`", str(len(of[name])), *(rate(of[name], key) for key in RATES),
              *(f"{statistics.median(steps_to(of[name], count)):g}" for count in RELEARN_ROWS)] for name in order]
    return table(("method", "pairs", *RATES.values(), *(f"relearn {count}" for count in RELEARN_ROWS)), lines)


def found(words: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what the rows of a group of pairs say: ours against each published method, paired, and the base."""
    pairs = list(dict.fromkeys(map(pair_of, rows)))

    def value(key: str, name: str, pair: Key) -> float:
        own = rows_of(name, rows, pair)
        return share(own[0], key) if own else float("nan")

    def soon(count: int, name: str, pair: Key) -> float:
        return next(iter(steps_to(rows_of(name, rows, pair), count)), float("nan"))

    rivals = [name for name in dict.fromkeys(row["method"] for row in rows)
              if name not in SYSTEMS and not name.startswith("anchor-")]
    if not rivals or not any(row["method"] == OURS for row in rows):
        return
    for key in ("framed", "prefill", "rounded_harm"):
        known = {name: paired(partial(value, key), OURS, name, pairs) for name in rivals}
        below = [name for name in rivals if known[name][2] < 0]
        above = [name for name in rivals if known[name][1] > 0]
        everywhere = [name for name in rivals if all(rows_of(name, rows, pair) for pair in pairs)] or rivals
        near = min(everywhere, key=lambda name: statistics.mean(
            share(row, key) for row in rows if row["method"] == name and row[key][1]))
        yield (f"- After {words}, {RATES[key]}: `{OURS}` lies below {len(below)} of {len(rivals)} published methods "
               f"and above {', '.join(f'`{name}`' for name in above) or 'none'}, the 95% interval of the paired "
               f"difference leaving out 0; less the best of those on all pairs, `{near}`, it is "
               f"{interval(known[near])}.")
    for count in RELEARN_ROWS:
        against = {name: paired(partial(soon, count), OURS, name, pairs) for name in ("base", "refusal-sft")}
        yield (f"- After {words}, steps on {count} harmful rows until harm is back: `{OURS}` "
               f"{statistics.median(steps_to([r for r in rows if r['method'] == OURS], count)):g} in the median; less "
               + ", less ".join(f"`{name}`, {interval(each)}" for name, each in against.items()) + ".")


if __name__ == "__main__":
    run_beside(__doc__ or "", HERE / "robustness.jsonl", measure, page)
