"""Token rows and right-padded batches of them, for losses on the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UsageError

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """A tokenised prompt and answer.

    Attributes:
        index: The number batches call this row by.
        prompt: Token ids before the answer, at least one: the first answer token needs something to follow.
        answer: Token ids of the answer, at least one.
    """

    index: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse rows on which a loss per answer token is undefined.

        Raises:
            UsageError: An empty prompt or answer.
        """
        for part in ("prompt", "answer"):
            if not getattr(self, part):
                raise UsageError(f"empty {part} - row {self.index}", hint="leave such rows out")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """B rows padded on the right to T tokens.

    Attributes:
        input_ids: [B, T] token ids.
        attention_mask: [B, T] 1 on tokens, 0 on padding.
        labels: [B, T] the token at the same position on answers, -100 elsewhere (not shifted).
        rows: [B] `Row.index` of each row.
        answer_tokens: Answer tokens in the batch, the weight of its mean in a mean over all tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    rows: Tensor
    answer_tokens: int

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on a device."""
        return replace(self, input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device),
                       labels=self.labels.to(device), rows=self.rows.to(device))


def make_batches(rows: Sequence[Row], *, batch_size: int, pad_id: int) -> list[Batch]:
    """Batch rows of similar length, the longest first so that memory runs out at once or not at all.

    Args:
        rows: Any order; the batches depend on their lengths and indices alone.
        batch_size: Rows a batch, at most.
        pad_id: Any token id; it is masked out.

    Returns:
        Batches that hold each row once.

    Raises:
        UsageError: `batch_size` below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1 - {batch_size}", hint="try --batch-size 8")
    order = sorted(rows, key=lambda row: (-len(row), row.index))
    return [_batch(order[i:i + batch_size], pad_id) for i in range(0, len(order), batch_size)]


def _batch(rows: Sequence[Row], pad_id: int) -> Batch:
    width = max(len(row) for row in rows)

    def padded(lists: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([values + [fill] * (width - len(values)) for values in lists], dtype=torch.long)

    labels = [[IGNORED] * len(row.prompt) + list(row.answer) for row in rows]
    return Batch(padded([[*row.prompt, *row.answer] for row in rows], pad_id),
                 padded([[1] * len(row) for row in rows], 0), padded(labels, IGNORED),
                 torch.tensor([row.index for row in rows]), sum(len(row.answer) for row in rows))


def truncate(rows: Sequence[Row], context: int) -> tuple[list[Row], int]:
    """Cut rows that exceed the model's context.

    The answer loses its end first, but keeps half of the context where it has that much; then the prompt
    loses its beginning, because the request stands at its end.

    Args:
        rows: The rows.
        context: Tokens a row may have, at least 2.

    Returns:
        The rows in their order, and how many were cut.

    Raises:
        UsageError: `context` below 2.
    """
    if context < 2:
        raise UsageError(f"context too short - {context} tokens",
                         hint="a row needs a prompt token and an answer token")
    cut = [_cut(row, context) for row in rows]
    return cut, sum(len(new) != len(old) for new, old in zip(cut, rows, strict=True))


def _cut(row: Row, context: int) -> Row:
    kept = min(len(row.answer), max(context // 2, context - len(row.prompt)))
    return replace(row, answer=row.answer[:kept], prompt=row.prompt[-(context - kept):])
