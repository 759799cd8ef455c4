"""What the results of `rows.py` say, and which of the numbers to reach are reached."""

from __future__ import annotations

from typing import Any

CHOSEN = ""


def findings(results: list[dict[str, Any]]) -> str:
    """Nothing yet."""
    return f"{len(results)}"
