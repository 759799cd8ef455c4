"""Verdicts, their exit codes, and which code wins where several apply: decided once, above every output."""

from __future__ import annotations

from ..errors import PRECEDENCE, strongest

__all__ = ["EXIT_CODES", "PRECEDENCE", "VERDICTS", "WRITTEN", "strongest"]

VERDICTS = {"restored": 0, "partial": 4, "unchanged": 3, "refused": 1}
"""Exit code of each verdict of `restore` where no gate is given."""

EXIT_CODES = {
    0: "done; the gate passed or none was asked for",
    1: "runtime error, or a verdict `refused`",
    2: "wrong usage or configuration, or an empty set",
    3: "the gate failed, or a verdict `unchanged`",
    4: "inconclusive, or a verdict `partial`",
    5: "the inputs do not fit together",
    130: "interrupted",
}
"""What each exit code means, as `--help` lists it."""

WRITTEN = (0, 3, 4)
"""Exit codes with which OUT is written; with any other nothing stands there."""
