"""How far to go along a step: the trust region and the drift that the quadratic model predicts."""

from __future__ import annotations

import math


def step_length(*, metric: float, bend: float, slope: float, drift: float, radius: float, budget: float) -> float:
    """Return the largest t in (0, 1] that keeps a step in the trust region and its predicted drift in the budget.

    Args:
        metric: d'(F + lambda I)d.
        bend: d'F d.
        slope: grad D'd.
        drift: D now.
        radius: tau: 1/2 t^2 metric <= tau.
        budget: Bound for D + t slope + 1/2 t^2 bend; ignored where D is over it already.
    """
    length = min(1.0, math.sqrt(2 * radius / metric)) if metric > 0 else 1.0
    room = budget - drift
    if room <= 0 or drift + length * slope + 0.5 * length * length * bend <= budget:
        return length
    root = (-slope + math.sqrt(slope * slope + 2 * bend * room)) / bend if bend > 0 else room / slope
    return min(length, root)
