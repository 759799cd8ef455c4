"""Where between the base and the tuned model rows are scored: where safety begins to be lost.

Influence linearises S and the rows' losses at one point. At the tuned model the rows are learnt and their gradients say
little of what they did; near the base S is flat and its gradient says as little. How soon along the way from one to the
other S rises depends on how the model was trained, so the point is found and not fixed: there S has made `RISE` of all
its rise (measured: docs/benchmarks/rows.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RISE = 0.007
"""Share of the whole rise of S that is made at the point."""

HALVINGS = 5
"""Of the way between base and tuned model; the point is known to half of the last."""

NO_RISE = 0.2
"""The point where S does not rise."""


@dataclass(frozen=True)
class Point:
    """A point on the line from the base to the tuned model.

    Attributes:
        at: 0 is the base, 1 the tuned model.
        base: S at the base, nats per token; None where the point was given.
        tuned: S at the tuned model; None where the point was given.
    """

    at: float
    base: float | None = None
    tuned: float | None = None

    @property
    def has_rise(self) -> bool:
        """Whether S is higher at the tuned model than at the base, or is not known to be otherwise."""
        return self.base is None or self.tuned is None or self.tuned > self.base


def where_safety_is_lost(safety: Callable[[float], float]) -> Point:
    """Return where S crosses `RISE` of the way up from its value at the base to that at the tuned model.

    Of several crossings one is found: below it S is under that height, above it over it.

    Args:
        safety: S by the point, 0 (base) to 1 (tuned model), nats per token; called `HALVINGS` + 2 times.

    Returns:
        The point, `NO_RISE` where S is not higher at 1 than at 0.
    """
    base, tuned = safety(0.0), safety(1.0)
    if not tuned > base:
        return Point(NO_RISE, base, tuned)
    height, below, above = base + RISE * (tuned - base), 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        if safety(middle) < height:
            below = middle
        else:
            above = middle
    return Point((below + above) / 2, base, tuned)
