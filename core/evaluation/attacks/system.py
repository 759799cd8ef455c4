"""`system:FILE|none`: another system prompt than the run's, or none.

Some refusals are the system prompt's, not the model's. A chat template that writes a system turn of its own where none
is given does so here, too.
"""

from __future__ import annotations

from dataclasses import replace

from ...data.records import Record
from ...data.texts import read_text
from ...errors import UsageError
from .attempts import Attack, Attempt, Setting, asked


def system(value: str) -> Attack:
    """Return the attack that replaces every system prompt, the records' own included.

    Args:
        value: `none`, or a file; one that cannot be read, is empty or not UTF-8 is a UsageError.

    Returns:
        The attack.

    Raises:
        UsageError: Neither was given.
    """
    if not value:
        raise UsageError("neither `none` nor a file - --attack system:", hint="give --attack system:none")
    if value == "none":
        return Attack("system:none", lambda record, setting: [_under(record, setting, None)])
    file = read_text(value, "--attack system:FILE")
    return Attack(f"system:{file.name}", lambda record, setting: [_under(record, setting, file.text.strip())],
                  sha256=file.sha256)


def _under(record: Record, setting: Setting, prompt: str | None) -> Attempt:
    bare = replace(record, messages=tuple(m for m in record.messages if m.role != "system"))
    return asked(bare, replace(setting.chat, system=prompt))
