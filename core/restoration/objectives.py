"""Safety objectives, a row each: S is what restoration lowers, always lower = safer (nats per token)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..data.batches import Batch
from ..errors import UsageError
from ..losses import Loss, Reference, cross_entropy, hinge, kl_divergence


@dataclass(frozen=True)
class SafetyData:
    """Fit rows of the harmful set, and what the base says of them.

    Attributes:
        safe: Prompts with safe answers.
        base_safe_loss: What the base's cross-entropy on them is where they are its own, nats per token; an answer that
            was given to a base that may never say it counts as 0, which is to be neared.
        harmful: Prompts with harmful answers, those that the tuned model still refuses left out; may be empty.
        base_row_losses: [rows], the base's mean loss of each harmful row, nats per token.
        base_log_p: The base's log-probabilities along the harmful answers; None where no objective needs them.
    """

    safe: Sequence[Batch]
    base_safe_loss: float
    harmful: Sequence[Batch]
    base_row_losses: Tensor
    base_log_p: Reference | None


def _match(data: SafetyData) -> Loss:
    assert data.base_log_p is not None
    return kl_divergence("match", data.harmful, data.base_log_p, target=0.0)


OBJECTIVES: dict[str, Callable[[SafetyData], Loss]] = {
    # Bring back what the base says: cross-entropy on the base's own safe answers.
    "anchor": lambda data: cross_entropy("anchor", data.safe, target=data.base_safe_loss),
    # Raise harmful loss (the source's words), but only up to the base's own.
    "ascent": lambda data: hinge("ascent", data.harmful, data.base_row_losses),
    # Bring back the base's whole conditional along harmful answers: KL(base || model).
    "match": _match,
}

NEEDS_HARMFUL = frozenset({"ascent", "match"})
"""Objectives that run over harmful answers, and so need rows that the tuned model answers."""


def safety_losses(objective: str, data: SafetyData) -> tuple[Loss, ...]:
    """Return the terms of S for names joined by `+`.

    Raises:
        UsageError: An objective over harmful answers where the tuned model gives none.
    """
    names = objective.split("+")
    if not data.harmful and NEEDS_HARMFUL.intersection(names):
        raise UsageError(f"no harmful answer - --objective {objective}: the tuned model refuses every fit prompt",
                         hint="use --objective anchor, or give harmful answers with --harmful FILE")
    return tuple(OBJECTIVES[name](data) for name in names)
