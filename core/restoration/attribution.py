"""Which parameters brought safety back and what each cost: integrated gradients along the path of steps."""

from __future__ import annotations

from dataclasses import dataclass

from ..params import Params, axpy, dot


@dataclass(frozen=True)
class Point:
    """Values and gradients at accepted parameters; `safety` has a value a term, `penalty` is P."""

    params: Params
    safety: tuple[float, ...]
    drift: float
    penalty: float
    safety_gradient: Params
    penalty_gradient: Params


@dataclass(frozen=True)
class Attribution:
    """Account of the path: parameter name -> fall of S and rise of D that its own change explains.

    Gradient times change summed along the steps (integrated gradients along the path taken). The gradient of a step
    is the mix of those at its ends that explains the measured change, so that the parts add up to it; an even mix
    (the trapezoid) is off by half where one step removes most of S. The rise of D is shared out by the gradient of P.
    """

    gain: dict[str, float]
    cost: dict[str, float]

    def extended(self, here: Point, there: Point) -> Attribution:
        """Return the account with one more step of the path."""
        change = axpy(-1.0, here.params, there.params)
        gain = _explained(change, here.safety_gradient, there.safety_gradient, sum(there.safety) - sum(here.safety))
        cost = _explained(change, here.penalty_gradient, there.penalty_gradient, there.drift - here.drift)
        return Attribution({name: self.gain.get(name, 0.0) - gain[name] for name in gain},
                           {name: self.cost.get(name, 0.0) + cost[name] for name in cost})


def _explained(change: Params, here: Params, there: Params, rise: float) -> dict[str, float]:
    """Split the measured rise of a function over the parameters that changed.

    Its mean slope lies between the slopes at both ends where it curves one way. Elsewhere the nearer end is taken,
    and what that leaves is shared out by the size of the parts.

    Returns:
        Parameter name -> its part; the parts add up to `rise`.
    """
    first, last = ({name: dot({name: part[name]}, {name: change[name]}) for name in change} for part in (here, there))
    low, high = sum(first.values()), sum(last.values())
    share = 0.5 if low == high else min(1.0, max(0.0, (high - rise) / (high - low)))
    parts = {name: share * first[name] + (1 - share) * last[name] for name in change}
    left, whole = rise - sum(parts.values()), sum(abs(part) for part in parts.values())
    return {name: part + left * abs(part) / whole if whole else 0.0 for name, part in parts.items()}
