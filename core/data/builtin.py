"""The prompt sets that ship with the package, in the project's own words."""

from __future__ import annotations

from importlib import resources

from ..config import nearest
from ..errors import UsageError
from . import sets

SETS = ("harmful", "benign", "general")


def builtin_bytes(name: str) -> bytes:
    """Return the file of a shipped set (JSON lines with `prompt`, `category`, `subject`, `wording`).

    Raises:
        UsageError: No set of this name.
    """
    if name not in SETS:
        raise UsageError(f"no built-in set - builtin:{name}", hint=nearest(name, SETS))
    return (resources.files(sets) / f"{name}.jsonl").read_bytes()
