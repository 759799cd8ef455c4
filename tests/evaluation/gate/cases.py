"""Measured systems made of counts."""

from __future__ import annotations

from typing import Any

from saferestore.core.evaluation.gate.known import Known
from saferestore.core.evaluation.gate.measure import Measured, rate_row
from saferestore.core.evaluation.gate.metrics import METRICS

KNOWN = Known(("base", "tuned", "restored"), {"harmful": "harmful", "desk": "task"}, ("refusal-wording",),
              ("prefill:5",), ("perplexity",))


def hits(count: int, n: int, errors: int = 0, first: int = 0) -> dict[str, int | None]:
    """So many hits of n prompts from the one with number `first` on, then errors."""
    return {**{f"p{i:04}": int(first <= i < first + count) for i in range(n)},
            **{f"p{n + i:04}": None for i in range(errors)}}


def verdict(system: str, outcome: dict[str, int | None], metric: str = "harmful_rate", **place: str) -> dict[str, Any]:
    kind = METRICS[metric]
    return {"system": system, "set": {"harmful": "harmful"}.get(kind.role or "", "desk"), "role": kind.role,
            "attack": "none", "metric": metric, "judge": kind.judge or "refusal-wording", **place, "hits": outcome}


def measured(*verdicts: dict[str, Any], rows: tuple[dict[str, Any], ...] = ()) -> Measured:
    return Measured((*map(rate_row, verdicts), *rows), verdicts)
