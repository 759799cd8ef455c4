"""One step on two losses: lower S toward its goal within a bound on P, by a quadratic model of P.

With H = F + lambda I, P is taken to change by grad P'd + 1/2 s d'H d and S by grad S'd. The d that lowers S by a given
amount with the least P lies on the line d(nu) = -H^-1 (grad P + nu grad S) / s (sequential quadratic programming;
Nocedal and Wright 2006, chapter 18): nu = 0 wins P back, a larger nu lowers S more. Where S bends more than it should,
less is won back: d(nu) = -H^-1 (w grad P + nu grad S) / s. All it takes are two solves and three products of vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """What both losses do along d(nu), in numbers.

    Attributes:
        pp: grad P'H^-1 grad P.
        sp: grad S'H^-1 grad P.
        ss: grad S'H^-1 grad S.
        scale: s: how many times as much as H says P was measured to bend.
        back: w, the share of P's own step that is taken: 1 is the best of the model.
    """

    pp: float
    sp: float
    ss: float
    scale: float
    back: float = 1.0

    def safety_change(self, nu: float) -> float:
        """Return grad S'd(nu)."""
        return -(self.back * self.sp + nu * self.ss) / self.scale

    def penalty_slope(self, nu: float) -> float:
        """Return grad P'd(nu)."""
        return -(self.back * self.pp + nu * self.sp) / self.scale

    def bend(self, nu: float) -> float:
        """Return 1/2 d(nu)'H d(nu), the model's bend before `scale`."""
        return 0.5 * (self.back**2 * self.pp + 2 * self.back * nu * self.sp + nu * nu * self.ss) / self.scale**2

    def penalty_change(self, nu: float) -> float:
        """Return the predicted change of P: grad P'd + 1/2 s d'H d."""
        return self.penalty_slope(nu) + self.scale * self.bend(nu)

    def measured_scale(self, nu: float, change: float) -> float:
        """Return the s with which the model would have foretold a measured change of P; infinite where it cannot."""
        bend = self.bend(nu)
        return (change - self.penalty_slope(nu)) / bend if bend > 0 and math.isfinite(change) else math.inf


def safety_weight(model: Model, *, gap: float, room: float) -> float:
    """Return nu: as much of grad S as brings S down by `gap`, or as P has room for where that is less; 0 at least.

    The first is Polyak's length: S, a cross-entropy, flattens on its way down, so that its slope never overshoots.

    Args:
        model: The quadratic model.
        gap: Fall of S that is wanted.
        room: Rise of P that is allowed, negative where P has to fall.
    """
    if model.ss <= 0:
        return 0.0
    wanted = (model.scale * gap - model.back * model.sp) / model.ss
    # The larger root of penalty_change(nu) = room; where there is none P comes down too little at any nu.
    middle = (1 - model.back) * model.sp / model.ss
    square = middle**2 + 2 * model.scale * (room - model.penalty_change(0.0)) / model.ss
    return max(0.0, min(wanted, middle + math.sqrt(square) if square > 0 else 0.0))


def tail_fall(here: float, goal: float, most: float) -> float:
    """Return the fall that the slope of S has to foretell for S to come to a goal where S falls exponentially.

    Where every row is all but refused, the cross-entropy of a margin m is exp(-m) to first order, and margins grow
    evenly along a step: one whose slope foretells a fall by x leaves S exp(-x / S). Polyak's length, x = S - goal, then
    leaves S / e however low the goal is.

    Args:
        here: S, nats per token.
        goal: What it is to come to.
        most: As many times S at most.

    Returns:
        Nats per token, S ln(S / goal); S - goal where the goal is not above 0, as of objectives without a tail, and 0
        where S is there.
    """
    if here <= goal or goal <= 0:
        return max(0.0, here - goal)
    return here * min(most, math.log(here / goal))
