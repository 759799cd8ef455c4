"""Refusals of values that could only fail later; each names the flag."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from ..errors import UsageError


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value of a setting that is none of those allowed, naming the nearest; raises UsageError."""
    if value not in allowed:
        raise UsageError(f"unknown value - --{name.replace('_', '-')} {value}", hint=nearest(value, allowed))


def positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0 or not finite; raises UsageError."""
    if not 0 < value < math.inf:
        raise UsageError(f"must be positive - --{name.replace('_', '-')} {value}", hint="give a number above 0")


def not_negative(name: str, value: int) -> None:
    """Refuse a number below 0; raises UsageError."""
    if value < 0:
        raise UsageError(f"must not be negative - --{name.replace('_', '-')} {value}", hint="give 0 or more")


def share_or_rows(name: str, value: float | None) -> None:
    """Refuse what is neither a share of rows below 1 nor a whole number of them; None is all. Raises UsageError."""
    if value is None:
        return
    positive(name, value)
    if value > 1 and value != int(value):
        raise UsageError(f"must be a whole number of rows or a share below 1 - --{name.replace('_', '-')} {value}",
                         hint=f"give {int(value)} or {int(value) + 1}, or such as 0.1 for a tenth")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `did you mean X?` for the closest allowed name, else the list of them."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(allowed)}"


def rows_a_batch(text: int | str) -> int | str:
    """Return `auto`, or the number that was typed.

    Raises:
        UsageError: Anything else.
    """
    if text == "auto" or isinstance(text, int):
        return text
    if not str(text).isdigit():
        raise UsageError(f"must be auto or a number above 0 - --batch-size {text}", hint="give --batch-size auto")
    return int(text)
