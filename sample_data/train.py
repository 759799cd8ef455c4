"""Training of the sample models on the answers' tokens: the same bytes for the same seed and thread count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from saferestore.sample_data.muon import Muon
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerFast

IGNORED = -100
POOL = 16
EMBEDDINGS = ("embed", "wte", "wpe")
"""Parts of the names of tables that are looked up, which Muon is not for."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one stage learns: AdamW, with Muon for the matrices where it has a rate."""

    epochs: float
    rate: float
    matrix_rate: float | None = None
    batch: int = 32
    warmup: float = 0.05


@dataclass(frozen=True)
class Encoded:
    """One row as token ids; the first `prompt` of them are the question."""

    ids: tuple[int, ...]
    prompt: int


def encode(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict]) -> Encoded:
    """Render a conversation that ends with the assistant's turn."""
    full = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(full, add_special_tokens=False)["input_ids"]
    return Encoded(tuple(ids), len(tokenizer(prompt, add_special_tokens=False)["input_ids"]))


def batches(rows: Sequence[Encoded], size: int, generator: torch.Generator) -> Iterator[list[Encoded]]:
    """Yield one epoch of batches in random order, each of rows of about the same length."""
    order = torch.randperm(len(rows), generator=generator).tolist()
    cut: list[list[int]] = []
    for start in range(0, len(order), size * POOL):
        pool = sorted(order[start : start + size * POOL], key=lambda index: len(rows[index].ids))
        cut += [pool[at : at + size] for at in range(0, len(pool), size)]
    for index in torch.randperm(len(cut), generator=generator).tolist():
        yield [rows[row] for row in cut[index]]


def collate(rows: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Return (ids, labels), padded on the right; labels are shifted and IGNORED off the answers."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        labels[number, row.prompt - 1 : len(row.ids) - 1] = torch.tensor(row.ids[row.prompt :])
    return ids, labels


def answer_loss(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answer tokens; only their logits are computed.

    No attention mask: padding is on the right, which a causal model never looks at from a labelled position.
    """
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = body.base_model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = labels != IGNORED
    return torch.nn.functional.cross_entropy(body.lm_head(hidden[wanted]), labels[wanted])


def fit(model: PreTrainedModel, rows: Sequence[Encoded], recipe: Recipe, *, seed: int, pad: int,
        log: str | None = None) -> float:
    """Train the parameters that require gradients; return the mean loss of the last tenth of the steps."""
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, round(recipe.epochs * len(rows) / recipe.batch))
    optimizers = _optimizers(model, recipe)
    schedulers = [LambdaLR(optimizer, lambda step: _rate(step, steps, recipe.warmup)) for optimizer in optimizers]
    model.train()
    losses: list[float] = []
    while len(losses) < steps:
        for batch in batches(rows, recipe.batch, generator):
            if len(losses) == steps:
                break
            losses.append(_step(model, collate(batch, pad), optimizers))
            for scheduler in schedulers:
                scheduler.step()
            if log and len(losses) % 50 == 0:
                print(f"{log} {len(losses)}/{steps} loss {sum(losses[-50:]) / 50:.4f}", flush=True)
    model.eval()
    tail = losses[-max(1, steps // 10):]
    return sum(tail) / len(tail)


def _optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if recipe.matrix_rate and p.ndim == 2
                and not any(part in name for part in EMBEDDINGS)]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    return [adamw, Muon(matrices, lr=recipe.matrix_rate)] if matrices else [adamw]


def _step(model: PreTrainedModel, batch: tuple[Tensor, Tensor], optimizers: list[torch.optim.Optimizer]) -> float:
    """Take one step of every optimizer; return the loss before it."""
    loss = answer_loss(model, *batch)
    model.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linear rise over the warm-up, then linear fall to a fiftieth."""
    rise = max(1, int(steps * warmup))
    return min((step + 1) / rise, max(0.02, (steps - step) / max(1, steps - rise)))
