"""The rows that a model was trained on, as tokens, and everything about the file that is not as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.batches import Row, truncate
from ..data.chat import ChatFormat
from ..data.readers import ReadResult
from ..errors import MismatchError, UsageError


@dataclass(frozen=True)
class TrainingRows:
    """A training file.

    Attributes:
        result: As it was read.
        rows: Usable rows; `Row.index` is the number of the record.
        truncated: Lines of rows that exceed the context and were cut.
        not_used: (line, reason) of rows that are not scored.
    """

    result: ReadResult
    rows: tuple[Row, ...]
    truncated: tuple[int, ...]
    not_used: tuple[tuple[int, str], ...]

    def line(self, row: int) -> int:
        """Return the line of the file on which a record begins."""
        return self.result.places[row][1]

    @property
    def answer_tokens(self) -> int:
        """The answer tokens of all rows."""
        return sum(len(row.answer) for row in self.rows)


def training_rows(result: ReadResult, chat: ChatFormat, context: int) -> TrainingRows:
    """Write a file's rows as tokens, as training would.

    Args:
        result: The file; only the last answer of a conversation counts.
        chat: The conversation format.
        context: Tokens a row may have.

    Returns:
        The rows.

    Raises:
        UsageError: No row has an answer.
        MismatchError: The chat template can write none of them.
    """
    bad = [*result.rejected, *result.left_out]
    made: list[Row] = []
    refusal: MismatchError | None = None
    for number, record in enumerate(result.records):
        line = result.places[number][1]
        try:
            answer = chat.answer_ids(record, record.answer) if record.answer and record.answer.strip() else []
            if answer:
                made.append(Row(number, tuple(chat.prompt_ids(record)), tuple(answer)))
            else:
                bad.append((line, "no answer"))
        except MismatchError as error:
            refusal = error
            bad.append((line, error.what))
    if refusal is not None and not made:
        raise refusal
    if not made:
        raise UsageError(f"no row with an answer - --train {result.name}",
                         hint="give the file that the model was fine-tuned on: prompts with their answers")
    cut, _ = truncate(made, context)
    lines = tuple(result.places[old.index][1] for new, old in zip(cut, made, strict=True) if len(new) != len(old))
    return TrainingRows(result, tuple(cut), lines, tuple(sorted(bad)))


def evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """Return at most `count` rows at equal distances, numbered from 0."""
    picked = [rows[at * len(rows) // min(count, len(rows))] for at in range(min(count, len(rows)))]
    return [Row(number, row.prompt, row.answer) for number, row in enumerate(picked)]
