"""The rivals' side of `run.py`, in their environment: `theirs.py WHAT FOLDER`.

WHAT is bergson, kronfluence, kronfluence-ekfac or curvlinops. Each is used as its own documentation shows, on the same
base, adapter, rows, batches and query as ours; nothing of this project is imported.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import PRODUCTS, alternated, finish
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def opened(folder: Path, attention: str = "sdpa") -> tuple[dict, PeftModel]:
    """The inputs, and the base under its adapter."""
    given = json.loads((folder / "input.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(given["base"], dtype=torch.float32, attn_implementation=attention)
    return given, PeftModel.from_pretrained(base, given["adapter"]).eval()


def padded(rows: list, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and mask of a batch, padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    return tuple(torch.tensor([part + [fill] * (width - len(part)) for part in parts]) for parts, fill in (
        ([ids for ids, _ in rows], pad), ([labels for _, labels in rows], -100), ([[1] * len(ids) for ids, _ in rows],
                                                                                 0)))


def token_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy over labelled tokens."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100,
                                       reduction="sum")


def bergson(folder: Path) -> None:
    """The in-memory collector with its scorer, streaming: per-row gradients against one query, none kept."""
    from bergson import InMemoryCollector
    from bergson.collector.collector import CollectorComputer
    from bergson.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.score.scorer import Scorer
    from bergson.utils.worker_utils import extract_peft_target_modules
    from datasets import Dataset

    given, model = opened(folder)
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)  # as its worker does
    data = Dataset.from_dict({"input_ids": [ids for ids, _ in given["rows"]],
                              "labels": [labels for _, labels in given["rows"]]})
    batches = [list(range(at, min(at + given["batch"], len(data)))) for at in range(0, len(data), given["batch"])]
    query = {f"model.{name.removesuffix('.weight')}.default": t.reshape(1, -1)
             for name, t in load_file(folder / "gradient.safetensors").items()}
    names = extract_peft_target_modules(model)
    assert names == set(query), names ^ set(query)
    with tempfile.TemporaryDirectory() as made:
        config = IndexConfig(run_path=made + "/run", loss_reduction="sum")
        config.partial_run_path.mkdir(parents=True)

        def run() -> Tensor:
            writer = InMemorySequenceScoreWriter(len(data), 1)
            scorer = Scorer(query, sorted(query), writer, torch.device("cpu"), torch.float32)
            collector = InMemoryCollector(model=model.base_model, data=data, cfg=config, target_modules=names,
                                          processor=GradientProcessor(), scorer=scorer)
            CollectorComputer(model=model, data=data, collector=collector, batches=batches,
                              cfg=config).run_with_collector_hooks()
            return writer.scores[:, 0]

        finish({"scores": run().tolist(), **alternated({"rows": run})})


def kronfluence(folder: Path, strategy: str) -> None:
    """Pairwise scores of one aggregated query; the time of a pass over rows is a whole call less one of one batch."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    given, model = opened(folder)
    tokens = sum(label != -100 for _, labels in given["query"] for label in labels)

    class Rows(Task):
        def compute_train_loss(self, batch, model, sample=False):
            ids, labels, mask = batch
            logits = model(input_ids=ids, attention_mask=mask).logits
            if sample:
                drawn = torch.multinomial(logits.detach().flatten(0, 1).softmax(-1), 1).view(ids.shape).roll(1, 1)
                labels = torch.where(labels != -100, drawn, labels)
            return token_sum(logits, labels)

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model) / tokens

        def get_influence_tracked_modules(self):
            return [name for name, module in model.named_modules()
                    if isinstance(module, nn.Linear) and ".lora_" in name]

        def get_attention_mask(self, batch):
            return batch[2]

    loader = DataLoaderKwargs(collate_fn=lambda rows: padded(rows, given["pad"]))
    factor_rows = [given["rows"][at] for at in given["factor_rows"]]
    task = Rows()
    model = prepare_model(model, task)
    with tempfile.TemporaryDirectory() as made:
        analyzer = Analyzer("rows", model, task, cpu=True, output_dir=made, disable_tqdm=True, log_level=logging.ERROR)
        began = time.perf_counter()
        analyzer.fit_all_factors("factors", factor_rows, per_device_batch_size=given["batch"],
                                 dataloader_kwargs=loader, factor_args=FactorArguments(strategy=strategy))
        fitted = time.perf_counter() - began
        # Its F is per row and sums over the row's tokens, ours is per token.
        answer = sum(label != -100 for _, labels in factor_rows for label in labels) / len(factor_rows)
        settings = ScoreArguments(aggregate_query_gradients=True, damping_factor=given["lambda"] * answer)

        def run(rows: list) -> Tensor:
            analyzer.compute_pairwise_scores("scores", "factors", given["query"], rows,
                                             per_device_query_batch_size=given["batch"],
                                             per_device_train_batch_size=given["batch"], dataloader_kwargs=loader,
                                             score_args=settings, overwrite_output_dir=True)
            return analyzer.load_pairwise_scores("scores")["all_modules"][0]

        seconds = alternated({"all": lambda: run(given["rows"]), "one": lambda: run(given["rows"][:given["batch"]])})
        share = len(given["rows"]) / (len(given["rows"]) - given["batch"])
        finish({"scores": run(given["rows"]).tolist(), "query_seconds": fitted,
                "rows_seconds": share * (seconds["all_seconds"] - seconds["one_seconds"])})


class Logits(nn.Module):
    """Logits of the positions that predict an answer token, a row a token."""

    def __init__(self, model: PeftModel, mask: Tensor, at: Tensor) -> None:
        super().__init__()
        self.model, self.mask, self.at = model, mask, at

    def forward(self, ids: Tensor) -> Tensor:
        inner = self.model.get_base_model()
        hidden = inner.model(input_ids=ids, attention_mask=self.mask, use_cache=False).last_hidden_state
        return inner.lm_head(hidden[:, :-1].flatten(0, 1)[self.at])


def curvlinops(folder: Path) -> None:
    """Its Gauss-Newton operator on the longest batch; eager attention, for others have no forward mode."""
    from curvlinops import GGNLinearOperator

    given, model = opened(folder, "eager")
    ids, labels, mask = padded(given["rows"][:given["batch"]], given["pad"])
    at = (labels[:, 1:].flatten() != -100).nonzero().squeeze(1)
    wanted = labels[:, 1:].flatten()[at]
    vector = load_file(folder / "vector.safetensors")
    by_name = dict(model.named_parameters())
    params = [by_name[f"base_model.model.{name.removesuffix('.weight')}.default.weight"] for name in sorted(vector)]
    for p in model.parameters():
        p.requires_grad_(any(p is each for each in params))
    logits = Logits(model, mask, at)
    operator = GGNLinearOperator(logits, nn.CrossEntropyLoss(), params, [(ids, wanted)], check_deterministic=False)
    v = [vector[name] for name in sorted(vector)]

    def grads() -> list:
        return [torch.autograd.grad(nn.functional.cross_entropy(logits(ids), wanted), params)
                for _ in range(PRODUCTS)]

    image = operator @ v
    finish({"product": {name: t.detach().flatten()[:8].tolist() for name, t in zip(sorted(vector), image, strict=True)},
            "norm": sum(float(t.detach().double().square().sum()) for t in image) ** 0.5,
            **alternated({"products": lambda: [operator @ v for _ in range(PRODUCTS)], "gradient": grads}, 2)})


def main() -> None:
    """Do one thing."""
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    {"bergson": bergson, "kronfluence": lambda f: kronfluence(f, "identity"),
     "kronfluence-ekfac": lambda f: kronfluence(f, "ekfac"), "curvlinops": curvlinops}[what](folder)


if __name__ == "__main__":
    main()
