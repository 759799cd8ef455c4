"""Errors a user can act on: what went wrong and where, the way out, and the exit code."""

from __future__ import annotations

from collections.abc import Iterable

PRECEDENCE = (130, 1, 2, 5, 3, 4, 0)
"""Exit codes, the one that wins first."""


def strongest(codes: Iterable[int]) -> int:
    """Return the exit code that wins over the others.

    Args:
        codes: Exit codes of the parts of a run; none at all counts as 0.

    Returns:
        The one that comes first in `PRECEDENCE`; a code that is not listed there counts as 1.
    """
    known = [code if code in PRECEDENCE else 1 for code in codes]
    return min(known, key=PRECEDENCE.index, default=0)


class SaferestoreError(Exception):
    """A failure with a remedy, shown as two lines (`error:` and `hint:`) and an exit code.

    Attributes:
        what: What went wrong, with the file, flag or value at fault.
        hint: The command or change that mends it.
        exit_code: The process exit code of this kind of failure.
    """

    exit_code = 1

    def __init__(self, what: str, *, hint: str) -> None:
        """Keep both lines; `str(error)` is the first."""
        super().__init__(what)
        self.what = what
        self.hint = hint


class UsageError(SaferestoreError):
    """Wrong usage, configuration or an empty set (exit code 2)."""

    exit_code = 2


class TakenError(UsageError):
    """OUT was taken by somebody else while a run worked (exit code 2); what the run did so far is still good."""


class MismatchError(SaferestoreError):
    """Inputs that do not fit together or cannot be read as what they claim to be (exit code 5)."""

    exit_code = 5


class NumericalError(SaferestoreError):
    """A loss, gradient or solve that is not finite (exit code 1, verdict `refused`)."""
