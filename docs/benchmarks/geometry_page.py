"""The page and the picture of `geometry.py` from its results."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from geometry_findings import findings
from geometry_models import DATA, EPOCHS, FAMILIES, METHODS
from geometry_picture import draw
from geometry_tables import Json, all_measures, measure_tables, share_table, stand_out, verdicts

HERE = Path(__file__).parent
SEEDS = 3
PAGE = """# Did fine-tuning keep the shape of the harmful-loss landscape?

Claims C1 and C2 of the [method](../method.md) on five fine-tuning methods, two kinds of data, {seeds} seeds and two
model families. **Measured: {count} of {all} cells** (one fine-tuned model each){missing}.

- Command: `python docs/benchmarks/geometry.py --pairs PAIRS --family llama --seed 0 --work WORK --results
  results.jsonl` for each family and seed, then `--results results.jsonl --write`; its docstring says the rest.
- Models: the sample's Llama base (4 layers, about a million parameters) and a GPT-2 of three layers (transposed
  weights, biases), each trained from every seed to know, then to refuse. They are small, and what holds for them need
  not hold for large ones.
- Fine-tuning, {epochs} epochs of AdamW each: {methods}.
- Data: `mixed`, the sample's task file with one tenth of harmful rows; `benign`, the same without them.
- Rows of each set: {rows}. Plane of {points} x {points} points, {directions} further directions, eigenspaces of {top}
  dimensions from {draws} drawn labels a row. Harmful answers are judged by wording.
- Controls: `shuffled`, the base with rows and columns of every matrix shuffled; `another base`, trained by the same
  recipe from another seed, where there is one; `itself`, the base with other labels drawn, which is the most an overlap
  can be (a correlation's is 1, as nothing is drawn).
- Intervals: mean ± half of a 95% interval by Student's t over seeds; cells of one seed share a base and are averaged
  first. With three seeds t is 4.3, so these are wide, and one may pass the end of its scale. No ±: one seed.
- Machine: {cpu}, one of {cores} cores, {minutes:.0f} minutes in all; Python {python}, torch {torch}, transformers
  {transformers}; the page was written at commit {commit}.

![how alike base and tuned model are](geometry.svg)

The picture: above, the mean over all cells of a family, with its interval; below, how much of a gradient lies in the
task's leading directions.

## What was found

A word is chosen by the numbers: one is said to be above another where the interval of their difference over seeds does
not hold 0 (of harmful and other rows of a single base: where it does not in most cells, by their own intervals).

{findings}

## Verdicts, and how far harm rose

As [`saferestore compare`](../compare.md) gives them, with the shuffled base as the unrelated model.

{verdicts}

## C1 by measure

Base against tuned on harmful, task and benign rows; then harmful rows of the base against the controls and itself.
`p / n / c`: cells that are preserved, not preserved, not distinguishable from the shuffled control.

{measures}

## Do harmful rows stand out?

The claim is about harm: a landscape that is kept for all rows alike is no property of harm. Differences of harmful rows
and others, and the cells whose own bootstrap interval lies above 0, below 0, or holds it.

{stand_out}

## C2: shares of gradients in the task's leading curvature

In percent of the gradient's energy, at the base and at the tuned model. Curvature and the task's gradient are taken on
different halves of the task rows.

{shares}

## All measures

Over all cells of a family.

{all_measures}
"""


def page(cells: Sequence[Json]) -> str:
    """Draw the picture beside this script, and return the page in Markdown."""
    draw(cells, HERE / "geometry.svg")
    return PAGE.format(**settings(), **counts(cells), findings=findings(cells), verdicts=verdicts(cells),
                       measures=measure_tables(cells), stand_out=stand_out(cells), shares=share_table(cells),
                       all_measures=all_measures(cells))


def settings() -> Json:
    """How the cells were made, and where the page is written."""
    from geometry import DIRECTIONS, DRAWS, POINTS, TOP  # the script that imports this page

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True,
                            check=False).stdout
    return {"seeds": SEEDS, "methods": "; ".join(METHODS), "epochs": EPOCHS, "points": POINTS, "top": TOP,
            "directions": DIRECTIONS, "draws": DRAWS, "cpu": cpu(), "cores": os.cpu_count(),
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "commit": commit.strip()}


def cpu() -> str:
    """The processor's name."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def counts(cells: Sequence[Json]) -> Json:
    """What was measured and what was not."""
    wanted = [(family, seed, method, data) for family in FAMILIES for seed in range(SEEDS) for method in METHODS
              for data in DATA]
    have = {tuple(cell[key] for key in ("family", "seed", "method", "data")) for cell in cells}
    left = [f"{family} seed {seed}" for family, seed in dict.fromkeys(each[:2] for each in wanted)
            if any(each not in have for each in wanted if each[:2] == (family, seed))]
    return {"count": len(have & set(wanted)), "all": len(wanted), "rows": row_counts(cells),
            "missing": f"; not complete: {', '.join(left)}" if left else "",
            "minutes": sum(cell["seconds"]["all"] for cell in cells) / 60}


def row_counts(cells: Sequence[Json]) -> str:
    """How many rows each set had, over the cells."""
    found: dict[str, set[int]] = {}
    for cell in cells:
        for name, count in cell["rows"].items():
            found.setdefault(name.replace("_rows", "").replace("_", " "), set()).add(count)
    return ", ".join(f"{name} {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "")
                     for name, counts in found.items()) or "none"
