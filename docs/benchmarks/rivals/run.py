"""Side by side with kronfluence, bergson and curvlinops: the same model, adapter, rows, batches and query.

Usage: python docs/benchmarks/rivals/run.py --theirs .venv-rivals/bin/python [--rounds 3] (`make bench-rivals` does both
environments). Every round starts one process a side in turn, so that a slow spell of the machine meets all of them.
Results are appended to rivals.jsonl beside this folder (remove it to begin anew), and rivals.md is written from all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import PRODUCTS
from scipy.stats import spearmanr

HERE = Path(__file__).parent
SIDES = {"rows": "ours.py", "bergson": "theirs.py", "kronfluence": "theirs.py", "ekfac": "ours.py",
         "kronfluence-ekfac": "theirs.py", "products": "ours.py", "curvlinops": "theirs.py"}
"""What is run, in the order of a round -> its script."""
PAGE = """# Side by side with other tools

`make bench-rivals` makes an environment of its own for kronfluence, bergson and curvlinops (versions in
`rivals/requirements.txt`), writes one set of inputs (the sample's base and adapter at the point where rows are scored
by default, {n} rows of its training file in batches of {batch} rows of like length, the rows that S is made of, grad
S) and starts one process a side in turn, {rounds} of them, one thread each, float32. A process measures its work
{repeats} times after one that does not count; figures are medians over all rounds, with the least and the largest
round. {machine}. Single results: `rivals.jsonl`.

## Rows against one query

Every side takes the product of each row's gradient with one query. `kronfluence`'s time is that of a whole call less
one on a single batch, so that its query pass is left out; `agreement` is Spearman's correlation with our scores of the
same query (for EK-FAC, which samples labels, of our own EK-FAC estimate from the same rows).
The rows of EK-FAC and the products below are of an earlier run, at 0.2 of the way from base to adapter; the
others are of one run at the point that `score` finds now.

{rows}

A row costs us {forwards} forward passes over its tokens and {gradients} gradient passes (bounds: 2.2 forward passes).

{verdicts}

## Gauss-Newton products

{products} products of one batch of {batch} rows; ours includes making the kept graph. Each side's gradient is measured
in the same process. The first entries of both sides' products of one vector differ by {difference}, relative to our
norm.

{table}

{product_verdict}
"""


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--theirs", default=".venv-rivals/bin/python", help="Python of the rivals' environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--inputs", type=Path, help="folder of inputs to make, or made by an earlier run")
    parser.add_argument("--results", type=Path, default=HERE.parent / "rivals.jsonl")
    parser.add_argument("--page-only", action="store_true")
    return parser.parse_args()


def run(python: str, script: str, what: str, folder: Path) -> dict:
    """What one process prints as its last line, or its error."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
             "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([python, str(HERE / script), what, str(folder)], capture_output=True, text=True, env=alone,
                          check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return {"error": said[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(results: list[dict], side: str, name: str) -> list[float]:
    """A quantity over the rounds of a side."""
    return [row[name] for row in results if row["side"] == side and name in row]


def spread(values: list[float], digits: int = 3) -> str:
    """Median and range."""
    if not values:
        return "-"
    return f"{median(values):.{digits}g} ({min(values):.{digits}g}-{max(values):.{digits}g})"


def rate(results: list[dict], side: str, rows: int) -> list[float]:
    """Rows per second, a number a round."""
    return [rows / seconds for seconds in measured(results, side, "rows_seconds")]


def row_table(results: list[dict], rows: int) -> str:
    """A line a side."""
    lines = ["| side | rows per second | seconds before it (query or factors) | agreement | peak memory, MiB |",
             "| --- | --- | --- | --- | --- |"]
    mine = {"kronfluence-ekfac": "ekfac", "ekfac": "ekfac"}
    for side in ("rows", "bergson", "kronfluence", "ekfac", "kronfluence-ekfac"):
        errors = [row["error"] for row in results if row["side"] == side and "error" in row]
        scores, own = measured(results, side, "scores"), measured(results, mine.get(side, "rows"), "scores")
        if not scores:
            lines.append(f"| {side} | {'error: ' + errors[0] if errors else 'not run'} | | | |")
            continue
        agreement = spearmanr(scores[-1], own[-1]).statistic if own else float("nan")
        name = {"rows": "ours, identity", "ekfac": "ours, ekfac", "kronfluence": "kronfluence, identity",
                "kronfluence-ekfac": "kronfluence, ekfac"}.get(side, side)
        lines.append(f"| {name} | {spread(rate(results, side, rows))} | "
                     f"{spread(measured(results, side, 'query_seconds'))} | {agreement:.4f} | "
                     f"{spread(measured(results, side, 'peak_mib'))} |")
    return "\n".join(lines)


def product_table(results: list[dict]) -> str:
    """A line a side: a product in gradients."""
    lines = ["| side | product, seconds | gradient, seconds | product in gradients | peak memory, MiB |",
             "| --- | --- | --- | --- | --- |"]
    for side, name in (("products", "ours"), ("curvlinops", "curvlinops")):
        products, grads = measured(results, side, "products_seconds"), measured(results, side, "gradient_seconds")
        ratios = [a / b for a, b in zip(products, grads, strict=True)]
        errors = [row["error"] for row in results if row["side"] == side and "error" in row]
        lines.append(f"| {name} | {spread([s / PRODUCTS for s in products])} | {spread([s / PRODUCTS for s in grads])} "
                     f"| {spread(ratios)} | {spread(measured(results, side, 'peak_mib'))} |" if ratios else
                     f"| {name} | {'error: ' + errors[0] if errors else 'not run'} | | | |")
    return "\n".join(lines)


def against(results: list[dict], side: str, rows: int, least: float) -> str:
    """Whether our rate is at least so many times another's, in words."""
    ours, others = rate(results, "rows", rows), rate(results, side, rows)
    if not (ours and others):
        return f"- {side}: not measured."
    ratio = median(ours) / median(others)
    return (f"- {side}: ours scores {ratio:.2f} times as many rows per second; the aim of at least {least:g} is "
            f"{'reached' if ratio >= least else 'missed'}.")


def difference(results: list[dict]) -> str:
    """Distance of both sides' products, entry by entry over those kept, over the norm of ours."""
    ours, others = measured(results, "products", "product"), measured(results, "curvlinops", "product")
    if not (ours and others):
        return "-"
    apart = sum((a - b) ** 2 for name, kept in ours[-1].items() for a, b in zip(kept, others[-1][name], strict=True))
    return f"{apart ** 0.5 / measured(results, 'products', 'norm')[-1]:.1g}"


def page(results: list[dict]) -> str:
    """The page."""
    known = next(row for row in results if row["side"] == "inputs")
    passes = measured(results, "rows", "rows_seconds")
    ratios = [a / b for a, b in zip(measured(results, "products", "products_seconds"),
                                    measured(results, "products", "gradient_seconds"), strict=True)]
    return PAGE.format(
        n=known["rows"], batch=known["batch"], rounds="one round" if len(passes) == 1 else f"{len(passes)} rounds",
        repeats="5 (products: 2)", machine=known["machine"],
        rows=row_table(results, known["rows"]), products=PRODUCTS, table=product_table(results),
        forwards=spread([a / b for a, b in zip(passes, measured(results, "rows", "forward_seconds"), strict=True)]),
        gradients=spread([a / b for a, b in zip(passes, measured(results, "rows", "gradient_seconds"), strict=True)]),
        verdicts="\n".join([against(results, "bergson", known["rows"], 1.0),
                            against(results, "kronfluence", known["rows"], 2.0)]),
        difference=difference(results),
        product_verdict=f"The aim of at most 1.2 gradients is {'reached' if median(ratios) <= 1.2 else 'missed'}."
        if ratios else "Not measured.")


def main() -> None:
    """Prepare, run the rounds, write the page."""
    options = asked()
    with tempfile.TemporaryDirectory() as made:
        folder = options.inputs or Path(made) / "inputs"
        if not options.page_only:
            if not (folder / "input.json").exists():
                folder.mkdir(parents=True, exist_ok=True)
                subprocess.run([sys.executable, str(HERE / "ours.py"), "prepare", str(folder)], check=True)
            given = json.loads((folder / "input.json").read_text())
            add(options.results, {"side": "inputs", "rows": len(given["rows"]), "batch": given["batch"],
                                  "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
                                             f"{platform.python_version()}"})
        for _ in range(0 if options.page_only else options.rounds):
            for side in options.only:
                script = SIDES[side]
                found = run(sys.executable if script == "ours.py" else options.theirs, script, side, folder)
                print(side, {name: value for name, value in found.items() if name not in ("scores", "product")},
                      flush=True)
                add(options.results, {"side": side, **found})
    results = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
    (HERE.parent / "rivals.md").write_text(page(results), encoding="utf-8")


def add(results: Path, row: dict) -> None:
    """Append a result; scores with six digits."""
    if "scores" in row:
        row = {**row, "scores": [float(f"{value:.6g}") for value in row["scores"]]}
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
