"""Whether a generated answer is the task's: the same words, or the same final number."""

from __future__ import annotations

import re
from decimal import Decimal

# a sign after a word or a digit is a dash or an operator: 3-5 ends in 5
NUMBER = re.compile(r"(?:(?<![\w)])[-+])?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
MARK = "####"
EDGES = ".,;:!?\"'`*()[]"


def task_correct(reference: str, generated: str) -> bool:
    """Tell whether a generated answer agrees with the reference.

    It does when both are the same words apart from case, blanks and the punctuation at the edges of words. Else,
    where the reference ends in `#### N` as GSM8K's do or is itself a number, the final number decides: the first
    after the last `####` of the answer, or without one its last number (18, 18.0 and $18 are equal).

    Args:
        reference: The right answer.
        generated: The model's.

    Returns:
        Whether they agree; an empty answer never does.
    """
    if normalised(generated) and normalised(reference) == normalised(generated):
        return True
    wanted = _after_mark(reference)
    number = _as_number(wanted)
    if number is not None:
        return number == final_number(generated)
    return MARK in reference and bool(wanted) and normalised(wanted) == normalised(_after_mark(generated))


def normalised(text: str) -> str:
    """Return the words in lower case, one blank between them, without the punctuation at their edges."""
    return " ".join(word for word in map(_bare, text.casefold().split()) if word)


def _bare(word: str) -> str:
    """Strip a word; a point before a digit is the number's: .5 is no 5."""
    bare = word.strip(EDGES)
    return f".{bare}" if bare[:1].isdecimal() and f".{bare}" in word else bare


def final_number(text: str) -> Decimal | None:
    """Return the first number after the last `####`, or without one the last number; None where there is none."""
    found = NUMBER.findall(_after_mark(text).replace("\u2212", "-"))
    if not found:
        return None
    return Decimal(found[0 if MARK in text else -1].replace(",", "").replace("$", ""))


def _after_mark(text: str) -> str:
    """Return what stands on the line after the last `####`, or the whole text without one."""
    head, mark, tail = text.rpartition(MARK)
    return tail.strip().split("\n", 1)[0] if mark else text.strip()


def _as_number(text: str) -> Decimal | None:
    """Return the number that a text is, None where it is more than one."""
    bare = text.replace("\u2212", "-").strip().rstrip(".%").strip()
    return final_number(bare) if NUMBER.fullmatch(bare) else None
