"""How surprised a system is by given texts or answers: exp of the mean loss per token, every token of one weight."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.batches import Batch, Row, make_batches
from ..data.chat import ChatFormat
from ..errors import NumericalError, UsageError
from ..losses import row_losses
from .verdict import mean_per_token


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with its BCa 95% interval over rows, None for one row alone and where rows hardly differ.

    Attributes:
        value: exp of the loss per token.
        rows: Texts or answers.
        tokens: Tokens predicted.
        ci_low: Lower end.
        ci_high: Upper end.
    """

    value: float
    rows: int
    tokens: int
    ci_low: float | None
    ci_high: float | None


def perplexity(model: Any, batches: Sequence[Batch], *, seed: int,
               clusters: Sequence[Hashable] | None = None) -> Perplexity:
    """Return the perplexity of a system on answers (or texts) after what stands before them.

    The interval is that of the loss per token, put through exp: BCa respects a monotone transformation.

    Args:
        model: A causal language model.
        batches: Rows whose numbers run from 0; several rows of one number are one text.
        seed: Of the bootstrap.
        clusters: The cluster of each row; None: every row is its own.

    Returns:
        The perplexity.

    Raises:
        UsageError: No rows.
        NumericalError: A loss that is not finite.
    """
    if not batches:
        raise UsageError("no rows - a perplexity needs at least one", hint="give a set with answers")
    sums, tokens = row_losses(model, batches)
    if not torch.isfinite(sums).all():
        raise NumericalError("the loss behind a perplexity is not finite", hint="use --dtype float32")
    mean = mean_per_token(sums.tolist(), tokens.tolist(), seed=seed, clusters=clusters)
    low, high = (None if end is None or math.isnan(end) else _exp(end) for end in (mean.ci_low, mean.ci_high))
    return Perplexity(_exp(mean.value), len(sums), int(tokens.sum()), low, high)


def text_batches(texts: Sequence[str], chat: ChatFormat, *, context: int, batch_size: int) -> list[Batch]:
    """Return batches of whole texts, without a chat template.

    A text that is longer than the context is cut into windows that do not overlap, so that no token is left out;
    what opens each (the first token, which nothing predicts) is the only one that is not counted.

    Args:
        texts: Not to be empty after tokenising; one of a single token is left out.
        chat: For its tokenizer.
        context: Tokens a row may have, at least 2.
        batch_size: Rows a batch.

    Returns:
        Batches whose row numbers are those of the texts that were kept, in order.
    """
    ids = [list(chat.tokenizer(text)["input_ids"]) for text in texts]  # type: ignore[arg-type]
    kept = [tokens for tokens in ids if len(tokens) > 1]
    rows = [Row(i, (tokens[at],), tuple(tokens[at + 1:at + context])) for i, tokens in enumerate(kept)
            for at in range(0, len(tokens) - 1, context - 1)]
    return make_batches(rows, batch_size=batch_size, pad_id=chat.pad_id)


def _exp(nats: float) -> float:
    """Return exp, as large as a number can be: a perplexity of infinity could not be written as JSON."""
    return math.exp(min(nats, 700.0))
