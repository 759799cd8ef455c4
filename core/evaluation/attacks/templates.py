"""`template:NAME|FILE`: the request inside a frame that asks for it in another way.

The frames that ship are few and of our own words: role play, a forced beginning asked for in words, refusals forbidden,
a story, and a second task (compare Wei et al. 2023, "Jailbroken: how does LLM safety training fail?").
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import yaml

from ...config import nearest
from ...data.records import Message, Record
from ...data.texts import TextFile, read_text
from ...errors import UsageError
from .attempts import Attack, Attempt, Setting, asked

HOLE = "{prompt}"


@functools.cache
def frames() -> dict[str, str]:
    """Return the frames that ship, by name; not to be changed."""
    content = (resources.files(str(__package__)) / "frames.yaml").read_text(encoding="utf-8")
    return {name: text.strip() for name, text in yaml.safe_load(content).items()}


def template(value: str) -> Attack:
    """Return the attack that puts the user's last turn into a frame, every `{prompt}` of it.

    Args:
        value: Name of a frame that ships, or a file.

    Returns:
        The attack.

    Raises:
        UsageError: Neither a frame nor a file, or a frame without `{prompt}`.
    """
    frame = _frame(value)
    if HOLE not in frame.text:
        raise UsageError(f"no {HOLE} in the frame - --attack template:{value}",
                         hint=f"write {HOLE} where the request is to stand")
    return Attack(f"template:{frame.name}",
                  lambda record, setting: [reworded(record, setting, frame.text.replace(HOLE, record.prompt))],
                  sha256=frame.sha256)


def reworded(record: Record, setting: Setting, text: str, variant: str = "") -> Attempt:
    """Return the attempt whose last turn is another text."""
    messages = (*record.messages[:-1], Message("user", text))
    return asked(replace(record, messages=messages), setting.chat, variant)


def _frame(value: str) -> TextFile:
    if value in frames():
        text = frames()[value]
        return TextFile(text, value, hashlib.sha256(text.encode()).hexdigest())
    if not Path(value).is_file():
        raise UsageError(f"neither a frame nor a file - --attack template:{value}", hint=nearest(value, frames()))
    return read_text(value, "--attack template:FILE")
