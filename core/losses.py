"""Losses over answer tokens: sums over batches that are already divided by the whole set's size.

A `Loss` is a set of batches and what one batch contributes; the sum of the contributions is the loss, in nats per
answer token (or per row where a row says so), whatever the batch size. Weighting by sequences instead of labelled
tokens is wrong by 5% on ragged batches, so the normaliser is always the whole set's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint.session import LiveModel
from .data.batches import Batch
from .data.scratch import is_small, scratch_tensor
from .errors import NumericalError
from .params import Params, axpy, is_finite, zeros


@dataclass(frozen=True)
class AnswerLogits:
    """Logits at the N answer tokens of a batch, in row order.

    Attributes:
        logits: [N, V], at least float32.
        labels: [N], the answer tokens themselves.
        rows: [N], the row number each token belongs to (as in `Batch.rows`).
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor


@lru_cache(maxsize=64)
def _takes_positions(forward: Callable[..., object]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


def _causal_lm(model: nn.Module) -> nn.Module:
    """Return the transformers model under a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model


def answer_positions(batch: Batch) -> Tensor:
    """Return the positions, ascending, whose logits predict an answer token of some row: what `answer_logits` needs."""
    return (batch.labels[:, 1:] != -100).any(dim=0).nonzero().squeeze(1)


def answer_logits(model: nn.Module, batch: Batch) -> AnswerLogits:
    """Run the model and keep the logits that predict answer tokens.

    The vocabulary projection is computed only at positions where some row of the batch has an answer token, where
    the model's forward allows it (`logits_to_keep`).

    Args:
        model: A causal language model of transformers, plain or under PEFT.
        batch: Right-padded rows; `labels[b, t]` is the token at position t or -100.

    Returns:
        The logits that predict each labelled token, its label and its row.
    """
    batch = batch.to(next(model.parameters()).device)
    wanted, positions = batch.labels[:, 1:] != -100, answer_positions(batch)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if _takes_positions(type(_causal_lm(model)).forward):
        # A list: a tensor would be moved to the first device, and the last hidden states may be on another.
        logits = model(**inputs, logits_to_keep=positions.tolist()).logits
    else:
        logits = model(**inputs).logits[:, positions]
    kept = wanted[:, positions].to(logits.device)
    labels = batch.labels[:, 1:][:, positions].to(logits.device)[kept]
    rows = batch.rows.to(logits.device).unsqueeze(1).expand_as(kept)[kept]
    logits = logits[kept]
    return AnswerLogits(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, rows)


def token_losses(out: AnswerLogits) -> Tensor:
    """Return -log p(label) of each answer token, [N], nats."""
    return functional.cross_entropy(out.logits, out.labels, reduction="none")


@dataclass(frozen=True)
class Loss:
    """A loss over a fixed set of batches; lower is better.

    Attributes:
        name: What the loss is called in reports.
        batches: The rows it runs over.
        contribution: (number of the batch, its logits) -> its share of the loss, a scalar; shares add up.
        token_weight: Weight of one answer token in the loss's Gauss-Newton matrix, whose block at a token is
            `token_weight (diag p - p p')`; exact for cross-entropy and for KL to a fixed distribution, 0 for a
            loss that is not of this kind.
        temperature: By which logits are divided in p, of that block and of labels sampled for it.
        target: Value of the aligned base model, nats per token (or per row); None where there is none.
    """

    name: str
    batches: Sequence[Batch]
    contribution: Callable[[int, AnswerLogits], Tensor]
    token_weight: float
    target: float | None = None
    temperature: float = 1.0

    def shares(self, model: nn.Module) -> Iterator[Tensor]:
        """Yield each batch's contribution at the model's present parameters, with its graph."""
        for number, batch in enumerate(self.batches):
            yield self.contribution(number, answer_logits(model, batch))

    def value(self, model: nn.Module) -> float:
        """Return the loss without a graph (forward passes only)."""
        with torch.no_grad():
            return sum(float(share) for share in self.shares(model))


@torch.no_grad()
def values(model: nn.Module, losses: Sequence[Loss]) -> tuple[float, ...]:
    """Return the values of losses over the same batches, from one forward pass over them."""
    found = [0.0] * len(losses)
    for number, batch in enumerate(losses[0].batches):
        out = answer_logits(model, batch)
        found = [value + float(loss.contribution(number, out)) for value, loss in zip(found, losses, strict=True)]
    return tuple(found)


def gradient(live: LiveModel, loss: Loss) -> tuple[float, Params]:
    """Return a loss and its gradient by the adapter parameters, one micro-batch in memory at a time.

    Args:
        live: The model whose adapter is differentiated, at its present parameters.
        loss: The loss.

    Returns:
        The value (nats per token) and the gradient, keyed like `live.leaves`.

    Raises:
        NumericalError: The value or the gradient is not finite.
    """
    value, _, found = gradient_beside(live, loss, ())
    return value, found


def gradient_beside(live: LiveModel, loss: Loss, beside: Sequence[Loss]) -> tuple[float, tuple[float, ...], Params]:
    """Return a loss, the values of others over the same batches, and the gradient of the first, as `gradient` does.

    The others are taken from the same forward pass, and cost next to nothing.

    Raises:
        NumericalError: The value or the gradient is not finite.
    """
    names, leaves = list(live.leaves), list(live.leaves.values())
    total, value, others, up = zeros(dict(live.leaves)), 0.0, [0.0] * len(beside), upscale(answer_tokens(loss.batches))
    for number, batch in enumerate(loss.batches):
        out = answer_logits(live.model, batch)
        share = loss.contribution(number, out)
        with torch.no_grad():
            others = [v + float(other.contribution(number, out)) for v, other in zip(others, beside, strict=True)]
        parts = torch.autograd.grad(share, leaves, torch.full_like(share, up), allow_unused=True,
                                    materialize_grads=True)
        total = axpy(1 / up, dict(zip(names, parts, strict=True)), total)
        value += float(share.detach())
    if not (torch.isfinite(torch.tensor(value)) and is_finite(total)):
        raise NumericalError(f"the loss `{loss.name}` or its gradient is not finite - {value}",
                             hint="use --dtype float32, or a lower --max-drift")
    return value, tuple(others), {name: t.detach() for name, t in total.items()}


def answer_tokens(batches: Sequence[Batch]) -> int:
    """Return the number of answer tokens of a set."""
    return sum(batch.answer_tokens for batch in batches)


def upscale(tokens: float) -> float:
    """Return what a gradient is multiplied by on its way back through the model, and divided by at its end.

    A loss is divided by the answer tokens of its whole set; a part of its gradient that is so small is 0 in float16. A
    power of two about as large rounds nothing in the other types.

    Args:
        tokens: What a token's part is divided by.
    """
    return 2.0 ** int(math.log2(max(1.0, tokens)))


def cross_entropy(name: str, batches: Sequence[Batch], *, target: float | None = None) -> Loss:
    """Mean of -log p(token) over all answer tokens, nats per token."""
    weight = 1.0 / answer_tokens(batches)
    return Loss(name, batches, lambda _, out: token_losses(out).sum() * weight, weight, target)


@torch.no_grad()
def log_probabilities(model: nn.Module, batches: Sequence[Batch], *, on_disk: bool = False) -> list[Tensor]:
    """Return log p at every answer token, a tensor [N, V] a batch, on the CPU or in vanishing files.

    They are exact: a top-k cache would bias every divergence from them. Size: answer tokens x V x 4 bytes. Where that
    would fill a quarter of the free memory they are in files anyway.
    """
    kept: list[Tensor] = []
    for batch in batches:
        log_p = torch.log_softmax(answer_logits(model, batch).logits, dim=-1)
        if not kept:
            on_disk = on_disk or not is_small(answer_tokens(batches) * log_p.shape[1] * log_p.element_size())
        store = scratch_tensor(log_p.shape, log_p.dtype, on_disk=on_disk)
        kept.append(store.copy_(log_p))
    return kept


Reference = Callable[[int], Tensor]
"""Number of a batch -> log-probabilities [N, V] of the distribution held fixed."""


def kl_divergence(name: str, batches: Sequence[Batch], reference: Reference, *, target: float | None = None,
                  temperature: float = 1.0) -> Loss:
    """Mean of KL(reference || model) over all answer tokens, nats per token.

    Zero with zero gradient where the model equals the reference; its Hessian there is the Fisher matrix. With a
    temperature T both distributions have their logits divided by T, and the divergence is multiplied by T^2, which
    keeps the size of its gradient (Hinton et al. 2015, section 2.1): where answers are all but certain, it still feels
    how the rest of the vocabulary moves.

    Args:
        name: What the loss is called.
        batches: The rows.
        reference: Log-probabilities of the fixed distribution, in the order of `answer_logits`.
        target: Value of the base model.
        temperature: T.

    Returns:
        The loss.
    """
    weight = 1.0 / answer_tokens(batches)

    def contribution(number: int, out: AnswerLogits) -> Tensor:
        fixed = reference(number).to(out.logits)
        if temperature != 1.0:
            fixed = torch.log_softmax(fixed / temperature, dim=-1)
        log_p = torch.log_softmax(out.logits / temperature, dim=-1)
        return functional.kl_div(log_p, fixed, log_target=True, reduction="sum") * (weight * temperature ** 2)

    return Loss(name, batches, contribution, weight, target, temperature)


def row_count(batches: Sequence[Batch]) -> int:
    """Return the number of rows of a set whose row numbers run from 0."""
    return 1 + max(int(batch.rows.max()) for batch in batches)


@torch.no_grad()
def _row_sums(model: nn.Module, batches: Sequence[Batch],
              per_token: Callable[[int, AnswerLogits], Tensor]) -> tuple[Tensor, Tensor]:
    """Return each row's sum of a per-token quantity and its number of answer tokens, both [rows], float64."""
    sums, tokens = torch.zeros(2, row_count(batches), dtype=torch.float64).unbind()
    for number, batch in enumerate(batches):
        out = answer_logits(model, batch)
        sums.index_add_(0, out.rows.cpu(), per_token(number, out).cpu().double())  # mps has no float64
        tokens.index_add_(0, out.rows.cpu(), torch.ones(len(out.rows), dtype=torch.float64))
    return sums, tokens


def row_losses(model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Return each row's summed -log p over its answer tokens (nats) and their number, [rows] in row order, float64."""
    return _row_sums(model, batches, lambda _, out: token_losses(out))


def row_divergences(model: nn.Module, batches: Sequence[Batch], reference: Reference) -> tuple[Tensor, Tensor]:
    """Return each row's summed KL(reference || model) (nats) and its number of answer tokens, [rows], float64."""

    def per_token(number: int, out: AnswerLogits) -> Tensor:
        log_p = torch.log_softmax(out.logits, dim=-1)
        fixed = reference(number).to(log_p)
        return functional.kl_div(log_p, fixed, log_target=True, reduction="none").sum(dim=-1)

    return _row_sums(model, batches, per_token)


def hinge(name: str, batches: Sequence[Batch], base_losses: Tensor) -> Loss:
    """Mean over rows of max(0, base's loss - the model's loss): how far harmful answers are below the base's.

    The aim is to restore the base's harmful loss, not to raise it without bound, so a row that has reached it
    contributes nothing.

    Args:
        name: What the loss is called.
        batches: Harmful rows.
        base_losses: [rows], the base's mean loss of each row, nats per token.

    Returns:
        The loss, with target 0 and no Gauss-Newton weight.
    """
    lengths = torch.zeros(len(base_losses), dtype=torch.float64)
    for batch in batches:
        lengths.index_add_(0, batch.rows.cpu(), (batch.labels[:, 1:] != -100).sum(dim=1).double().cpu())

    def contribution(_: int, out: AnswerLogits) -> Tensor:
        rows, place = torch.unique(out.rows, return_inverse=True)
        per_row = torch.zeros(len(rows), dtype=out.logits.dtype, device=rows.device)
        per_row = per_row.index_add(0, place, token_losses(out)) / lengths.to(per_row)[rows]
        return torch.relu(base_losses.to(per_row)[rows] - per_row).sum() / len(base_losses)

    return Loss(name, batches, contribution, 0.0, 0.0)


def total(name: str, losses: Sequence[Loss]) -> Loss:
    """Return the sum of losses over the concatenation of their batches; the Gauss-Newton weight is not defined."""
    owner = [(loss, number) for loss in losses for number in range(len(loss.batches))]
    batches = [batch for loss in losses for batch in loss.batches]
    return Loss(name, batches, lambda i, out: owner[i][0].contribution(owner[i][1], out), 0.0)
