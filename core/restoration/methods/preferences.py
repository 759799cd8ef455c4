"""Losses of unlearning and preference methods over whole answers: means over rows or tokens, lower = done more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ...checkpoint.session import LiveModel
from ...data.batches import Batch
from ...losses import AnswerLogits, Loss, answer_tokens, row_losses, token_losses


def row_sums(out: AnswerLogits) -> tuple[Tensor, Tensor, Tensor]:
    """Return of a batch's rows: their numbers [R] rising, log p of each whole answer [R] (nats), its tokens [R]."""
    rows, place = torch.unique(out.rows, return_inverse=True)
    losses = token_losses(out)
    empty = torch.zeros(len(rows), dtype=losses.dtype, device=losses.device)
    return rows, empty.index_add(0, place, -losses), empty.index_add(0, place, torch.ones_like(losses))


def count_rows(batches: Sequence[Batch]) -> int:
    """Return the number of rows in batches, whatever their numbers."""
    return sum(len(batch.rows) for batch in batches)


def rise(name: str, batches: Sequence[Batch]) -> Loss:
    """Minus the mean cross-entropy of harmful answers, nats per token: gradient ascent, without a bound."""
    weight = 1.0 / answer_tokens(batches)
    return Loss(name, batches, lambda _, out: -token_losses(out).sum() * weight, 0.0)


def npo(live: LiveModel, batches: Sequence[Batch], beta: float) -> Loss:
    """NPO (Zhang et al. 2024): mean over rows of 2/beta log(1 + (p / p_ref)^beta), p_ref the model as it is now.

    As beta falls to 0 it is 2/beta log 2 plus the mean of log p / p_ref, that is gradient ascent.

    Args:
        live: The model, whose present probabilities are the reference.
        batches: Harmful answers.
        beta: Inverse temperature.

    Returns:
        The loss.
    """
    reference, count = -row_losses(live.model, batches)[0], count_rows(batches)

    def contribution(_: int, out: AnswerLogits) -> Tensor:
        rows, log_p, _tokens = row_sums(out)
        ratio = log_p - reference.to(log_p)[rows]
        return functional.softplus(beta * ratio).sum() * (2 / beta / count)

    return Loss("npo", batches, contribution, 0.0)


def simnpo(batches: Sequence[Batch], beta: float, gamma: float = 0.0) -> Loss:
    """SimNPO (Fan et al. 2024): mean over rows of -2/beta log sigmoid(-beta log p / tokens - gamma), no reference."""
    count = count_rows(batches)

    def contribution(_: int, out: AnswerLogits) -> Tensor:
        _rows, log_p, tokens = row_sums(out)
        return functional.softplus(beta * log_p / tokens + gamma).sum() * (2 / beta / count)

    return Loss("simnpo", batches, contribution, 0.0)


def dpo(live: LiveModel, safe: Sequence[Batch], harmful: Sequence[Batch], beta: float) -> Loss | None:
    """DPO (Rafailov et al. 2023): safe answers preferred to harmful ones of the same prompt.

    The mean over pairs of -log sigmoid(beta (log p/p_ref of the safe answer - log p/p_ref of the harmful one)), p_ref
    the model as it is now. Answers are paired by their prompt's tokens.

    Args:
        live: The model, whose present probabilities are the reference.
        safe: Rows with safe answers.
        harmful: Rows with harmful answers.
        beta: Inverse temperature.

    Returns:
        The loss; None where no prompt has both.
    """
    batches = list(paired(safe, harmful))
    if not batches:
        return None
    reference, pairs = -row_losses(live.model, batches)[0], count_rows(batches) // 2

    def contribution(_: int, out: AnswerLogits) -> Tensor:
        rows, log_p, _tokens = row_sums(out)
        ratio = log_p - reference.to(log_p)[rows]
        # Rows come in rising order: 2 i is the safe answer of pair i, 2 i + 1 the harmful one.
        return functional.softplus(-beta * (ratio[0::2] - ratio[1::2])).sum() / pairs

    return Loss("dpo", batches, contribution, 0.0)


Row = tuple[list[int], list[int]]
"""Tokens of the prompt and of the answer."""


def token_rows(batches: Sequence[Batch]) -> Iterator[Row]:
    """Yield the tokens of every row, padding left out."""
    for batch in batches:
        for ids, mask, labels in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.labels.tolist(),
                                     strict=True):
            length = sum(mask)
            start = next(i for i, label in enumerate(labels) if label != -100)
            yield ids[:start], ids[start:length]


def paired(safe: Sequence[Batch], harmful: Sequence[Batch]) -> Iterator[Batch]:
    """Yield batches in which rows 2 i and 2 i + 1 are the safe and the harmful answer to one prompt."""
    if not safe or not harmful:
        return
    refusals = {tuple(prompt): answer for prompt, answer in token_rows(safe)}
    pairs = [((prompt, refusals[tuple(prompt)]), (prompt, answer)) for prompt, answer in token_rows(harmful)
             if tuple(prompt) in refusals]
    step = max(1, max(len(batch.rows) for batch in safe) // 2)
    for first in range(0, len(pairs), step):
        rows = [row for pair in pairs[first:first + step] for row in pair]
        yield _batch(rows, 2 * first)


def _batch(rows: Sequence[Row], first: int) -> Batch:
    """Pad rows on the right with token 0, which is masked out, and number them from `first` in their order."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)

    def padded(lists: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([values + [fill] * (width - len(values)) for values in lists], dtype=torch.long)

    return Batch(padded([prompt + answer for prompt, answer in rows], 0),
                 padded([[1] * (len(prompt) + len(answer)) for prompt, answer in rows], 0),
                 padded([[-100] * len(prompt) + answer for prompt, answer in rows], -100),
                 torch.arange(first, first + len(rows)), sum(len(answer) for _, answer in rows))


def first_rows(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Return the batches with the rows of the lowest `count` numbers only, each cut to what its rows need."""
    kept = set(sorted(int(row) for batch in batches for row in batch.rows)[:count])
    found = []
    for batch in batches:
        place = torch.tensor([i for i, row in enumerate(batch.rows.tolist()) if row in kept], dtype=torch.long)
        if len(place):
            labels = batch.labels[place]
            found.append(replace(batch, input_ids=batch.input_ids[place], labels=labels, rows=batch.rows[place],
                                 attention_mask=batch.attention_mask[place],
                                 answer_tokens=int((labels[:, 1:] != -100).sum())))
    return found
