"""What a method is given, the one knob it has, and what it hands back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...checkpoint.pair import CheckpointPair
from ...config import Progress, no_progress
from ...params import Params
from ..objectives import SafetyData
from ..trust_region import Cost, Outcome, Problem


@dataclass(frozen=True)
class Inputs:
    """The same for every method.

    Attributes:
        problem: The model at the tuned parameters, S and D; S is what every method is measured by.
        data: Safe and harmful rows.
        pair: The checkpoints on disk.
        unaligned: Folder of the model that the base was before it was aligned; None where it was not given.
        max_drift: Budget for D on the fit rows, nats per token.
        max_passes: Gradient passes a run may take: as many as our own steps may.
        seed: Of random directions, masks, labels and the order of batches.
        progress: Told of every pass or knob value tried.
        cost: Work done so far; a method adds to it.
    """

    problem: Problem
    data: SafetyData
    pair: CheckpointPair
    unaligned: Path | None = None
    max_drift: float = 0.01
    max_passes: int = 12
    seed: int = 0
    progress: Progress = no_progress
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Knob:
    """The one number of a method, from where it does least to where it does most.

    Attributes:
        name: What its paper calls it.
        weakest: End of the sweep where it does least; a search for the drift budget that ends there makes no edit.
        strongest: The other end.
        logarithmic: Whether the sweep is even in the logarithm.
        tried: Values tried where none is stated, for methods that train; empty: searched by drift.
    """

    name: str
    weakest: float
    strongest: float
    logarithmic: bool = False
    tried: tuple[float, ...] = ()

    def at(self, share: float) -> float:
        """Return the value `share` of the way from the weakest to the strongest end, exact at both ends."""
        if share in (0, 1):
            return self.strongest if share else self.weakest
        if self.logarithmic:
            return math.exp((1 - share) * math.log(self.weakest) + share * math.log(self.strongest))
        return self.weakest + share * (self.strongest - self.weakest)

    def sweep(self, count: int) -> list[float]:
        """Return `count` values from the weakest to the strongest end, both included (2 or more)."""
        return [self.at(i / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Edited:
    """Adapter parameters at one value of the knob.

    Attributes:
        params: The parameters.
        lost: Share of the squared norm of the wanted weight change that the adapter's rank could not hold, in [0, 1].
    """

    params: Params
    lost: float = 0.0


@dataclass(frozen=True)
class Applied:
    """What a method came to.

    Attributes:
        outcome: As of our own steps; `stopped_because` says what bounded the method.
        strength: Value of its knob.
        lost: As in `Edited`.
        note: What was searched, in words.
    """

    outcome: Outcome
    strength: float
    lost: float
    note: str


Edit = Callable[[float], Edited]
"""Value of the knob -> adapter parameters."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        about: What it does, in a line.
        source: Where its formula stands.
        differs: What is otherwise here than there.
        knob: Its one number.
        run: (inputs, knob, stated value or None) -> what it came to.
        needs: Names of requirements, rows of `requirements.REQUIREMENTS`.
    """

    about: str
    source: str
    differs: str
    knob: Knob
    run: Callable[[Inputs, Knob, float | None], Applied]
    needs: tuple[str, ...] = ()
