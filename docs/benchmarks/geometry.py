"""Claims C1 and C2 on fine-tuning methods times data times seeds, on sample bases.

    python docs/benchmarks/geometry.py --pairs PAIRS --results results.jsonl --seeds 0,1,2
    python docs/benchmarks/geometry.py --results results.jsonl --write

PAIRS holds a folder `seed-N` for every seed, as `sample_data/build.py --seed N` writes it. For every seed the base and
an unrelated model (its weights shuffled) are measured once; then the base is fine-tuned by each method on each data and
measured on the same rows: harmful prompts with answers that the sample's tuned model gives, benign prompts with its
answers, and task rows. A cell that is in the results is not measured again. The second form writes the page from the
results alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session
from saferestore.core.config import CompareConfig, no_progress
from saferestore.core.data.chat import chat_format
from saferestore.core.evaluation.landscape_rows import ComparedRows, answered_rows, read_sets
from saferestore.core.evaluation.systems import Examiner
from saferestore.core.geometry.comparison import compare_landscapes, itself
from saferestore.core.geometry.directions import module_shapes
from saferestore.core.geometry.landscape import Landscape, Plan, measure
from saferestore.core.geometry.unrelated import make_unrelated
from saferestore.core.geometry.verdict import HEADLINE, LABELS, find, overall
from saferestore.sample_data.build import LINEAR, TUNE, load_base
from saferestore.sample_data.train import Recipe, encode, fit
from torch import nn

HERE = Path(__file__)
RECORDS = HERE.parents[2] / "sample_data" / "records"
TOP, DRAWS = 5, 4


def lora(**settings: Any) -> Callable[[nn.Module], nn.Module]:
    """A method that trains an adapter."""
    full = {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings}
    return lambda model: get_peft_model(model, LoraConfig(**full))  # type: ignore[arg-type]


def whole(model: nn.Module) -> nn.Module:
    """Full fine-tuning: every weight is trained."""
    return model.requires_grad_(True)


METHODS: dict[str, tuple[Callable[[nn.Module], nn.Module], float]] = {
    "LoRA, all linear": (lora(), TUNE.rate),
    "LoRA, q and v": (lora(target_modules=["q_proj", "v_proj"]), TUNE.rate),
    "DoRA": (lora(use_dora=True), TUNE.rate),
    "rsLoRA, rank 16": (lora(r=16, use_rslora=True), TUNE.rate / 2),
    "full": (whole, 1e-3),
}
"""Method -> how a model is made ready, and its learning rate."""

DATA = ("mixed", "benign")
"""The sample's training file, and the same without its harmful rows."""


def training_rows(pair: Path, data: str) -> list[dict[str, Any]]:
    """The rows that a model is fine-tuned on."""
    rows = [json.loads(line) for line in (pair / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = set(json.loads((pair / "train_harmful_rows.json").read_text(encoding="utf-8")))  # counted from 1
    return rows if data == "mixed" else [row for line, row in enumerate(rows, 1) if line not in lines]


def tuned_model(pair: Path, method: str, data: str, seed: int) -> nn.Module:
    """Fine-tune the base anew."""
    model, tokenizer = load_base(pair)
    prepare, rate = METHODS[method]
    torch.manual_seed(seed)
    ready = prepare(model)
    recipe = Recipe(epochs=TUNE.epochs, rate=rate, batch=TUNE.batch)
    rows = [encode(tokenizer, row["messages"]) for row in training_rows(pair, data)]
    fit(ready, rows, recipe, seed=seed, pad=int(tokenizer.pad_token_id))  # type: ignore[arg-type]
    return ready.eval()


def fixed_rows(pair: Path, config: CompareConfig) -> tuple[ComparedRows, Examiner]:
    """Rows of a seed, answered by the sample's own tuned model."""
    session = open_session(open_pair(str(pair / "base"), str(pair / "tuned")), device="cpu")
    examiner = Examiner(chat_format(session.tokenizer), 64, 32, 256, no_progress)
    return answered_rows(session, examiner, read_sets(config)), examiner


def eager(model: nn.Module) -> nn.Module:
    """The model as the library loads it."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.set_attn_implementation("eager")  # type: ignore[operator]
    return model.eval().requires_grad_(False)


def cell(base: Landscape, control: Landscape, tuned: Landscape, seed: int) -> dict[str, Any]:
    """What a comparison says of one fine-tuned model."""
    settings = {"top": TOP, "draws": DRAWS, "seed": seed}
    pair, other = compare_landscapes(base, tuned, **settings), compare_landscapes(base, control, **settings)
    most = itself(base, **settings)["harmful"]
    findings = [find(name, pair["harmful"][name], other["harmful"][name],
                     (most[name].value or 1.0) if name in most else 1.0) for name in HEADLINE]
    table = {name: {measure: {key: getattr(found, key) for key in ("value", "ci_low", "ci_high")}
                    for measure, found in measures.items()} for name, measures in pair.items()}
    controls = {name: {measure: found.value for measure, found in measures.items()} for name, measures in other.items()}
    assert tuned.shares is not None
    shares = [{"gradient": row.gradient, "k": row.k, "value": row.found.value, "random": row.k / tuned.shares.dimension}
              for row in tuned.shares.rows]
    return {"verdict": overall(findings), "outcomes": {each.measure: each.outcome for each in findings},
            "tuned": table, "shuffled": controls, "itself": most["eigenspace_overlap"].value, "shares": shares,
            "losses": {name: float(tuned.centre.surface(name)) for name in tuned.centre.sets}}


def measure_seed(pair: Path, seed: int, results: Path, wanted: Sequence[tuple[str, str]]) -> None:
    """Measure the cells of one seed that are wanted, one line of results each."""
    config = CompareConfig(base="-", tuned="-", harmful=(str(RECORDS / "harmful.jsonl"),), seed=seed, rows=32,
                           benign=(str(RECORDS / "benign.jsonl"),), task=(str(RECORDS / "task.jsonl"),))
    found, _ = fixed_rows(pair, config)
    base_model = eager(load_base(pair)[0])
    plan = Plan(found.rows, found.safe, module_shapes(base_model), seed, points=5, directions=16, draws=DRAWS)
    base = measure(base_model, plan, "base", again=True)
    make_unrelated(base_model, "shuffled", seed)
    control = measure(base_model, plan, "shuffled", shares=False)
    for method, data in wanted:
        begin = time.perf_counter()
        tuned = measure(eager(tuned_model(pair, method, data, seed)), plan, "tuned")
        row = {"seed": seed, "family": "llama", "method": method, "data": data, **cell(base, control, tuned, seed),
               "base_losses": {name: float(base.centre.surface(name)) for name in base.centre.sets},
               "rows": dict(found.counts), "seconds": round(time.perf_counter() - begin, 1)}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"seed {seed}, {method}, {data}: {row['verdict']} in {row['seconds']} s", file=sys.stderr, flush=True)


def read(results: Path) -> list[dict[str, Any]]:
    """The cells measured so far."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def page(cells: Sequence[dict[str, Any]]) -> str:
    """The Markdown page."""
    seeds = sorted({each["seed"] for each in cells})
    lines = ["# Does fine-tuning keep the geometry of the harmful loss?", "",
             "Written by `geometry.py` beside this file; its docstring says how. Sample model (0.9 M parameters, "
             f"Llama), seeds {', '.join(map(str, seeds))}, {len(cells)} cells; 32 rows a set, a plane of 5 x 5 points, "
             f"16 further directions, top {TOP} eigenvectors, {DRAWS} labels a token; float32 on a CPU.", "",
             "## C1: similarity to the base", "",
             "Medians over seeds. Each entry: the fine-tuned model / the base with its weights shuffled.", "",
             f"| method | data | seeds | rows | {' | '.join(LABELS[name] for name in HEADLINE)} |",
             f"| --- | --- | --- | --- |{' --- |' * len(HEADLINE)}"]
    for method, data, own in _groups(cells):
        for name in ("harmful", "benign", "task"):
            numbers = [f"{_median(own, 'tuned', name, measure)} / {_median(own, 'shuffled', name, measure)}"
                       for measure in HEADLINE]
            lines.append(f"| {method} | {data} | {len(own)} | {name} | {' | '.join(numbers)} |")
    lines += ["", "The base against itself with other labels drawn has an overlap of "
              f"{median(each['itself'] for each in cells):.2f} on harmful rows: the most that can be found.", "",
              "Verdicts of the command (the weakest of the four measures on harmful rows):", "",
              f"| method | data | verdicts | {' | '.join(LABELS[name] for name in HEADLINE)} |",
              f"| --- | --- | --- |{' --- |' * len(HEADLINE)}"]
    for method, data, own in _groups(cells):
        outcomes = [", ".join(each["outcomes"][name].replace("_", " ") for each in own) for name in HEADLINE]
        lines.append(f"| {method} | {data} | {', '.join(each['verdict'].replace('_', ' ') for each in own)} | "
                     f"{' | '.join(outcomes)} |")
    lines += ["", "## C2: gradients in the task's leading curvature", "",
              "Share of each gradient's energy in the top 10 eigenvectors of the task's Fisher matrix at the "
              "fine-tuned model, medians over seeds. `safety` is the gradient of the cross-entropy of the base's "
              "refusals.", "",
              "| method | data | safety | harmful | benign | task (other rows) | random vector |",
              "| --- | --- | --- | --- | --- | --- | --- |"]
    for method, data, own in _groups(cells):
        shares = [_share(own, gradient) for gradient in ("safety", "harmful", "benign", "task")]
        lines.append(f"| {method} | {data} | {' | '.join(shares)} | {own[0]['shares'][0]['random'] * 10:.4f} |")
    lines += ["", "## Losses at the fine-tuned models", "", "Nats per answer token, base -> fine-tuned, medians.", "",
              "| method | data | harmful | benign | task |", "| --- | --- | --- | --- | --- |"]
    for method, data, own in _groups(cells):
        numbers = [f"{median(e['base_losses'][name] for e in own):.3g} -> {median(e['losses'][name] for e in own):.3g}"
                   for name in ("harmful", "benign", "task")]
        lines.append(f"| {method} | {data} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _groups(cells: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    keys = [(method, data) for data in DATA for method in METHODS]
    grouped = [(method, data, [c for c in cells if (c["method"], c["data"]) == (method, data)])
               for method, data in keys]
    return [group for group in grouped if group[2]]


def _median(cells: Sequence[dict[str, Any]], against: str, name: str, measure: str) -> str:
    values = [each[against][name][measure] for each in cells]
    known = [v["value"] if isinstance(v, dict) else v for v in values]
    known = [v for v in known if v is not None]
    return f"{median(known):.2f}" if known else "-"


def _share(cells: Sequence[dict[str, Any]], gradient: str) -> str:
    values = [row["value"] for each in cells for row in each["shares"] if (row["gradient"], row["k"]) == (gradient, 10)]
    return f"{median(values):.4f}" if values else "-"


def main() -> None:
    """Measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="", help="names joined by semicolons")
    parser.add_argument("--write", action="store_true", help="write geometry.md beside this script")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods = arguments.methods.split(";") if arguments.methods else list(METHODS)
    for seed in map(int, arguments.seeds.split(",")) if arguments.pairs else ():
        done = {(c["method"], c["data"]) for c in read(arguments.results) if c["seed"] == seed}
        wanted = [(m, d) for m in methods for d in DATA if (m, d) not in done]
        if wanted:
            measure_seed(arguments.pairs / f"seed-{seed}", seed, arguments.results, wanted)
    text = page(read(arguments.results))
    print(text)
    if arguments.write:
        HERE.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
