"""How surprised a system is by given answers: exp of the mean loss per token, every token of one weight."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.batches import Batch
from ..errors import NumericalError, UsageError
from ..losses import row_losses
from .verdict import mean_per_token


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with its BCa 95% interval over rows, None for one row alone and where rows hardly differ.

    Attributes:
        value: exp of the loss per token.
        rows: Answers.
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
    """Return the perplexity of a system on answers after what stands before them.

    The interval is that of the loss per token, put through exp: BCa respects a monotone transformation.

    Args:
        model: A causal language model.
        batches: Rows whose numbers run from 0.
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


def _exp(nats: float) -> float:
    """Return exp, as large as a number can be: a perplexity of infinity could not be written as JSON."""
    return math.exp(min(nats, 700.0))
