"""`manyshot:N`: N invented turns in which the assistant complied stand before the request.

The requests are those of the built-in set and the answers are affirmative openings with placeholder steps: it is the
pattern that is learnt from, not the content (Anil et al. 2024, "Many-shot jailbreaking").
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from dataclasses import replace

from ...data.readers import read_records
from ...data.records import Message, Record
from ...errors import UsageError
from .attempts import Attack, Attempt, Setting, asked
from .wording import compliant


@functools.cache
def _pool(seed: int) -> tuple[Record, ...]:
    """Return the built-in harmful prompts in an order that the seed decides."""
    return tuple(sorted(read_records("builtin:harmful").records,
                        key=lambda record: hashlib.sha256(f"{seed}\n{record.id}".encode()).hexdigest()))


def manyshot(value: str) -> Attack:
    """Return the attack with N turns, the first of which are the same for fewer turns and one seed.

    Args:
        value: N, from 1 to what the built-in set holds besides a record's own subject.

    Returns:
        The attack.

    Raises:
        UsageError: N is no such number.
    """
    most = len(_pool(0)) - max(Counter(record.group for record in _pool(0)).values())
    if not value.isdecimal() or not 1 <= int(value) <= most:
        raise UsageError(f"no number from 1 to {most} - --attack manyshot:{value}",
                         hint="give for example --attack manyshot:16")
    count = int(value)
    return Attack(f"manyshot:{count}", lambda record, setting: [_shown(record, setting, count)])


def _shown(record: Record, setting: Setting, count: int) -> Attempt:
    """Put the turns after the record's system turn; none of them is the record or about its subject."""
    prompt = record.prompt.casefold()
    others = (shot for shot in _pool(setting.seed)
              if shot.prompt.casefold() != prompt and (record.group is None or shot.group != record.group))
    shots = [shot for shot, _ in zip(others, range(count), strict=False)]
    turns = tuple(message for shot in shots
                  for message in (Message("user", shot.prompt), Message("assistant", compliant(shot.prompt))))
    first = sum(message.role == "system" for message in record.messages[:1])
    return asked(replace(record, messages=(*record.messages[:first], *turns, *record.messages[first:])), setting.chat)
