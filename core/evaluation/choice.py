"""Multiple choice by likelihood: which of the given answers a system finds likeliest; nothing is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from ..data.batches import Row, make_batches
from ..data.chat import ChatFormat
from ..data.records import Record
from ..errors import NumericalError, UsageError
from ..losses import row_losses

SCORERS: dict[str, Callable[[float, str], float]] = {
    "choice-normalised": lambda log_p, text: log_p / len(text),
    "choice-sum": lambda log_p, text: log_p,
}
"""How a choice is scored from its log-probability and its text, the first being the headline. Per character as
`acc_norm` of lm-evaluation-harness does, since a longer answer is less likely for being longer; summed as its `acc`."""


@dataclass(frozen=True)
class Chosen:
    """What a system chose.

    Attributes:
        right: Scorer -> record id -> whether the highest score is the right choice's; the first at a tie.
        too_long: Ids of records that do not fit into the context with every choice; they are not scored.
    """

    right: Mapping[str, Mapping[str, bool]]
    too_long: tuple[str, ...]


def has_choices(record: Record) -> bool:
    """Tell whether a record is a multiple-choice question."""
    return "choices" in record.meta and "right" in record.meta


def choose(model: Any, records: Sequence[Record], chat: ChatFormat, *, context: int, batch_size: int) -> Chosen:
    """Return what a system chooses.

    The tokens of a choice are those it has as an answer, without the end of the turn.

    Args:
        model: A causal language model.
        records: Of format `choice`, of different ids.
        chat: The conversation format.
        context: Tokens a row may have.
        batch_size: Choices a batch.

    Returns:
        Right or wrong by each scorer.

    Raises:
        UsageError: A record without choices, or two of one id.
        NumericalError: A log-probability that is not a number.
    """
    _check(records)
    asked = {record.id: [_tokens(record, text, chat) for text in _choices(record)] for record in records}
    fitting = [r for r in records if all(len(prompt) + len(answer) <= context for prompt, answer in asked[r.id])]
    pairs = [pair for record in fitting for pair in asked[record.id]]
    log_p = iter(_log_p(model, pairs, chat, batch_size))
    scores = {record.id: [(next(log_p), text) for text in _choices(record)] for record in fitting}
    right = {name: {r.id: int(numpy.argmax([score(*pair) for pair in scores[r.id]])) == r.meta["right"]
                    for r in fitting} for name, score in SCORERS.items()}
    kept = set(scores)
    return Chosen(right, tuple(record.id for record in records if record.id not in kept))


def _check(records: Sequence[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        if not has_choices(record):
            raise UsageError(f"no choices - row {record.id}", hint="a multiple-choice row has `choices` and `answer`")
        if record.id in seen:
            raise UsageError(f"two rows of one id - {record.id}", hint="give each row an `id` of its own")
        seen.add(record.id)


def _choices(record: Record) -> Sequence[str]:
    return record.meta["choices"]  # type: ignore[return-value]


def _tokens(record: Record, text: str, chat: ChatFormat) -> tuple[tuple[int, ...], tuple[int, ...]]:
    answer = chat.answer_ids(record, text)
    while answer and answer[-1] in chat.stop_ids:
        answer = answer[:-1]
    return tuple(chat.prompt_ids(record)), tuple(answer)


def _log_p(model: Any, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], chat: ChatFormat,
           batch_size: int) -> list[float]:
    if not pairs:
        return []
    rows = [Row(i, prompt, answer) for i, (prompt, answer) in enumerate(pairs)]
    sums, _ = row_losses(model, make_batches(rows, batch_size=batch_size, pad_id=chat.pad_id))
    if torch.isnan(sums).any():
        raise NumericalError("the log-probability of a choice is not a number", hint="use --dtype float32")
    return (-sums).tolist()
