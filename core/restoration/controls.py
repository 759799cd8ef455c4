"""Null controls of a restoration: other ways to spend the same drift on the same rows (method, section 7)."""

from __future__ import annotations

from collections.abc import Callable

from ..params import Params, axpy, gaussian, norm, scale


def strength_at_drift(drift_at: Callable[[float], float], target: float, *, largest: float, rounds: int = 12) -> float:
    """Return the largest strength in [0, largest] whose drift is at most `target`, by bisection.

    Drift is taken to rise with the strength, which holds near 0; the strength returned was measured to fit.

    Args:
        drift_at: Strength -> measured drift (forward passes only), 0 at 0.
        target: Drift to spend, nats per token.
        largest: Upper end of the search.
        rounds: Halvings; the result is within `largest` / 2^rounds of the crossing.
    """
    if drift_at(largest) <= target:
        return largest
    low, high = 0.0, largest
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if drift_at(middle) <= target else (low, middle)
    return low


def random_direction(params: Params, seed: int) -> Params:
    """Return a Gaussian direction with the norm of `params`, so that strength 1 is a change as large as the adapter."""
    z = gaussian(params, seed)
    return scale(norm(params) / norm(z), z)


def along(params: Params, direction: Params) -> Callable[[float], Params]:
    """Return the map strength -> params + strength x direction."""
    return lambda strength: axpy(strength, direction, params)
