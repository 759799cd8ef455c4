"""Our side of `run.py`, in the project's environment: `ours.py prepare|rows|ekfac|products FOLDER`.

`prepare` writes what all sides read: the adapter at the point where rows are scored by default (with the scale of LoRA
folded into its factors, by which gradients are taken), rows of the sample's training file in batches of like length,
the rows that S is made of, grad S, lambda, and the vector of the products.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from measure import PRODUCTS, alternated, finish
from saferestore.core.checkpoint.adapter import KEY_PREFIX, WEIGHTS_FILE
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import LiveModel, open_session, read_params, write_params
from saferestore.core.checkpoint.writer import write_adapter
from saferestore.core.config import ScoreConfig, no_progress
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.data.batches import Row, make_batches
from saferestore.core.data.readers import read_records
from saferestore.core.data.selection import select
from saferestore.core.evaluation.scoring import prepare_score, safety_point, score_examiner
from saferestore.core.evaluation.training_rows import evenly, training_rows
from saferestore.core.influence.queries import QUERIES, QueryInputs
from saferestore.core.influence.rows import choose_derivative, row_sums
from saferestore.core.losses import cross_entropy, gradient, total
from safetensors.torch import load_file, save_file

SAMPLE = Path(__file__).parents[3] / "sample_data"
ROWS, BATCH, FACTOR_ROWS = 512, 32, 256


def prepare(folder: Path) -> None:
    """Write the inputs of all sides."""
    config = ScoreConfig(base=str(SAMPLE / "base"), tuned=str(SAMPLE / "tuned"), train=str(SAMPLE / "train.jsonl"),
                         max_new_tokens=48, batch_size=BATCH, curvature_rows=FACTOR_ROWS)
    session = open_session(open_pair(config.base, config.tuned))
    examiner = score_examiner(session, config, no_progress)
    training = training_rows(read_records(str(config.train)), examiner.chat, examiner.context)
    safety = prepare_score(session, examiner, select(config.as_restore()), config).problem.safety
    pad = examiner.chat.pad_id
    rows = sorted(evenly(training.rows, ROWS), key=lambda row: (-len(row), row.index))
    rows = [Row(number, row.prompt, row.answer) for number, row in enumerate(rows)]
    (folder / "adapter").mkdir()
    with session.blend(1 - safety_point(session, safety, no_progress).at) as live:
        write_adapter(folder / "adapter", read_params(live), session.pair)
        _, g = gradient(live, total("S", safety))
        factors = make_batches(evenly(rows, FACTOR_ROWS), batch_size=BATCH, pad_id=pad)
        query = QUERIES["ekfac"](QueryInputs(live, g, cross_entropy("training", factors), config.damping, 0))
        generator = torch.Generator().manual_seed(0)
        vector = {name: torch.randn(t.shape, generator=generator) for name, t in live.leaves.items()}
    save_file({name: t.contiguous() for name, t in g.items()}, folder / "gradient.safetensors")
    save_file(vector, folder / "vector.safetensors")
    asked = [(ids[mask.bool()].tolist(), labels[mask.bool()].tolist()) for loss in safety for batch in loss.batches
             for ids, labels, mask in zip(batch.input_ids, batch.labels, batch.attention_mask, strict=True)]
    (folder / "input.json").write_text(json.dumps({
        "base": str(SAMPLE / "base"), "adapter": str(folder / "adapter"), "batch": BATCH, "pad": pad,
        "lambda": query.damping,
        "rows": [([*row.prompt, *row.answer], [-100] * len(row.prompt) + list(row.answer)) for row in rows],
        "factor_rows": [at * len(rows) // FACTOR_ROWS for at in range(FACTOR_ROWS)], "query": asked}))


def opened(folder: Path) -> tuple[dict, LiveModel, list[Row]]:
    """The inputs, the model at its point, and the rows.

    Opening a pair balances A and B, which changes what gradients are taken by: the factors are put back as they were.
    """
    given = json.loads((folder / "input.json").read_text())
    live = open_session(open_pair(given["base"], given["adapter"])).adapter()
    stored = load_file(Path(given["adapter"]) / WEIGHTS_FILE)
    write_params(live, {name.removeprefix(KEY_PREFIX): t for name, t in stored.items()})
    rows = [Row(number, tuple(i for i, label in zip(ids, labels, strict=True) if label == -100),
                tuple(label for label in labels if label != -100))
            for number, (ids, labels) in enumerate(given["rows"])]
    return given, live, rows


def rows(folder: Path, way: str) -> None:
    """u'grad l of every row, and how long a pass over the rows takes; the length of the difference is chosen once."""
    given, live, found = opened(folder)
    batches = make_batches(found, batch_size=given["batch"], pad_id=given["pad"])
    g, began = load_file(folder / "gradient.safetensors"), time.perf_counter()
    factors = make_batches(evenly(found, FACTOR_ROWS), batch_size=given["batch"], pad_id=given["pad"])
    query = QUERIES[way](QueryInputs(live, g, cross_entropy("training", factors), ScoreConfig("-", "-").damping, 0))
    asked = time.perf_counter() - began
    how = choose_derivative(live, batches[len(batches) // 2], query.u)
    order = torch.arange(len(found))
    seconds = alternated({"rows": lambda: how(live, batches, query.u),
                          "forward": lambda: cross_entropy("rows", batches).value(live.model),
                          "gradient": lambda: gradient(live, cross_entropy("rows", batches))})
    finish({"scores": row_sums(how(live, batches, query.u), order)[1].tolist(), "query_seconds": asked, **seconds})


def products(folder: Path) -> None:
    """Gauss-Newton products of the longest batch, graph kept, in gradients; its making is spread over all products."""
    given, live, found = opened(folder)
    batches = make_batches(found[:given["batch"]], batch_size=given["batch"], pad_id=given["pad"])
    loss, v = cross_entropy("batch", batches), load_file(folder / "vector.safetensors")

    def run() -> None:
        operator = GaussNewton(live, [loss], keep_graph=True)
        for _ in range(PRODUCTS):
            operator.matvec(v)

    image = GaussNewton(live, [loss], keep_graph=True).matvec(v)
    finish({"product": {name: t.flatten()[:8].tolist() for name, t in image.items()},
            "norm": sum(float(t.double().square().sum()) for t in image.values()) ** 0.5,
            **alternated({"products": run, "gradient": lambda: [gradient(live, loss) for _ in range(PRODUCTS)]}, 2)})


def main() -> None:
    """Do one thing."""
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    {"prepare": prepare, "rows": lambda f: rows(f, "identity"), "ekfac": lambda f: rows(f, "ekfac"),
     "products": products}[what](folder)


if __name__ == "__main__":
    main()
