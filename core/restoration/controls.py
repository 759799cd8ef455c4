"""Null controls of a restoration: other ways to spend the same drift on the same rows (method, section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..params import Params, axpy, gaussian, norm, scale


def strength_at_drift(drift_at: Callable[[float], float], target: float, *, largest: float, rounds: int = 12,
                      within: float = 0.02) -> float:
    """Return a strength in [0, largest] whose drift is at most `target` and, where rounds suffice, nearly all of it.

    Drift grows like a power of the strength (the second near 0), so each try is where the power through the last two
    measurements meets the target, kept inside what is already bracketed: three to six measurements where halving
    takes a dozen. Drift is taken to rise with the strength; the strength returned was measured to fit.

    Args:
        drift_at: Strength -> measured drift (forward passes only), 0 at 0.
        target: Drift to spend, nats per token.
        largest: Upper end of the search.
        rounds: Measurements after the first.
        within: Part of the target that may be left unspent.
    """
    last, drift, power = largest, drift_at(largest), 2.0
    if drift <= target:
        return largest
    low, high = 0.0, largest
    for _ in range(rounds):
        aim = last * ((1 - within / 2) * target / drift) ** (1 / power) if 0 < drift < math.inf else high
        following = aim if low < aim < high else (low + high) / 2
        before, drift = drift, drift_at(following)
        if 0 < drift < math.inf and 0 < before < math.inf:
            power = min(8.0, max(0.5, math.log(drift / before) / math.log(following / last)))
        last = following
        low, high = (last, high) if drift <= target else (low, last)
        if (1 - within) * target <= drift <= target:
            break
    return low


def random_direction(params: Params, seed: int) -> Params:
    """Return a Gaussian direction with the norm of `params`, so that strength 1 is a change as large as the adapter."""
    z = gaussian(params, seed)
    return scale(norm(params) / norm(z), z)


def along(params: Params, direction: Params) -> Callable[[float], Params]:
    """Return the map strength -> params + strength x direction."""
    return lambda strength: axpy(strength, direction, params)
