"""Few-shot prompts: K solved rows stand before a row, the same for every row and system.

A restoration may leave accuracy as it is and yet cost the ability to learn from examples; zero-shot accuracy does not
show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data.records import Message, Record
from ..data.selection import sample
from ..errors import UsageError


@dataclass(frozen=True)
class Shots:
    """A set in two parts that share no conversation.

    Attributes:
        scored: Rows that are asked, the same for every number of shots.
        solved: Rows that are shown, in the order in which they are; fewer shots are the last of more.
    """

    scored: tuple[Record, ...]
    solved: tuple[Record, ...]


def parse_shots(text: str) -> tuple[int, ...]:
    """Return the numbers of shots of `--shots`, such as `0,1,4`, each once and in order.

    Raises:
        UsageError: Something else than whole numbers joined by commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"no numbers of shots - --shots {text}", hint="give for example --shots 0,1,4")
    return tuple(sorted({int(part) for part in parts}))


def hold_shots(records: Sequence[Record], shots: Sequence[int], seed: int,
               pool: Sequence[Record] = ()) -> Shots:
    """Choose the rows to show, by seed, so that none of them is asked.

    Args:
        records: The task set.
        shots: Numbers of shots; the largest decides how many rows are shown.
        seed: Of the choice.
        pool: Rows to choose from instead of the set itself.

    Returns:
        Both parts.

    Raises:
        UsageError: Too few solved rows, or none left to ask.
    """
    asked, most = {record.messages for record in records}, max(shots, default=0)
    solved = {r.messages: r for r in (pool or records) if r.answer and (not pool or r.messages not in asked)}
    chosen = sample(tuple(solved.values()), most, seed)
    shown = {record.messages for record in chosen}
    scored = tuple(record for record in records if record.messages not in shown)
    if len(chosen) < most or not scored:
        raise UsageError(f"too few rows - --shots {most}: {len(solved)} solved rows to show, {len(scored)} left to ask",
                         hint="give more task rows, or fewer shots")
    return Shots(scored, chosen)


def with_shots(record: Record, solved: Sequence[Record], count: int) -> Record:
    """Return a record with the last `count` solved rows before it, as turns of the conversation.

    They stand after the record's system turn and leave out their own. Without a chat template every turn is on lines of
    its own, so that they are plain text there.
    """
    shown = solved[len(solved) - count:]
    turns = tuple(message for shot in shown
                  for message in (*_spoken(shot), Message("assistant", shot.answer or "")))
    first = len(record.messages) - len(_spoken(record))
    return replace(record, messages=(*record.messages[:first], *turns, *_spoken(record)))


def _spoken(record: Record) -> tuple[Message, ...]:
    return tuple(message for message in record.messages if message.role != "system")
