"""Everything that is measured of one model, so that several can be compared with one at a time in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from ..checkpoint.session import LiveModel
from ..config import Progress, no_progress
from ..data.batches import Batch
from .alignment import Shares, gradient_shares
from .directions import Shape, draw_direction
from .row_vectors import RowVectors, fisher_rows, gradient_rows
from .slices import Rows, Slice, axis, check_deterministic, take_slice
from .subspace import in_subspace


@dataclass(frozen=True)
class Plan:
    """What is measured, the same at every model.

    Attributes:
        rows: Rows of all sets.
        safe: The base's refusals, whose gradient is the safety gradient; empty where it has none.
        shapes: Of the base's modules: its norms scale the directions of every model.
        seed: Of directions, labels and resamples.
        points: Points along each side of the plane, odd.
        reach: Its ends, in units of the base's own weights.
        directions: Further directions along which loss changes are compared.
        step: How far along these.
        rank: Of directions, and of the shared subspace in every module.
        draws: Labels drawn for every row of the Fisher matrix.
    """

    rows: Rows
    safe: Sequence[Batch]
    shapes: Mapping[str, Shape]
    seed: int
    points: int = 7
    reach: float = 1.0
    directions: int = 24
    step: float = 0.2
    rank: int = 2
    draws: int = 4


@dataclass(frozen=True)
class Landscape:
    """What was measured of one model.

    Attributes:
        centre: Losses at its own weights, a slice of one point.
        plane: Losses on the plane of the first two directions.
        fan: Losses at a step either way along further directions, axes (direction, step).
        scores: Rows of its Fisher matrix in the shared subspace; labels of the base and of the others are drawn apart.
        again: The same of the base with the labels' draws of the others: how alike a model is to itself.
        shares: Share of each gradient in the task's leading curvature; None where it was not asked for.
    """

    centre: Slice
    plane: Slice
    fan: Slice
    scores: RowVectors
    again: RowVectors | None
    shares: Shares | None


def measure(model: nn.Module, plan: Plan, name: str, *, again: bool = False, shares: bool = True,
            progress: Progress = no_progress) -> Landscape:
    """Measure a model around its own weights.

    Args:
        model: In evaluation mode, plain or under PEFT; it is the same afterwards.
        plan: What to measure.
        name: Of the model, for progress.
        again: Whether it is the base: labels are drawn for it, and a second time as for all others. Drawn as for the
            base, theirs would mostly be its own, and alike by that alone.
        shares: Measure gradients, too.
        progress: Told of every stage.

    Returns:
        The landscape. A model that is not deterministic is a `MismatchError`.
    """
    check_deterministic(model, plan.rows)
    centre = take_slice(model, (), (), plan.rows)
    lines = [draw_direction(plan.shapes, plan.seed + 1 + i, rank=plan.rank) for i in range(2)]
    steps = axis(plan.points, plan.reach)
    plane = take_slice(model, lines, (steps, steps), plan.rows, stage=f"landscape of {name}", progress=progress)
    fan = _fan(model, plan, name, progress)
    with in_subspace(model, plan.shapes, rank=plan.rank, seed=plan.seed) as live:
        scores, *second = (fisher_rows(live, plan.rows.batches, draws=plan.draws, seed=plan.seed + place)
                           for place in ((0, 1) if again else (1,)))
        found = _shares(live, plan, scores) if shares else None
    return Landscape(centre, plane, fan, scores, second[0] if second else None, found)


def _fan(model: nn.Module, plan: Plan, name: str, progress: Progress) -> Slice:
    steps, ends = (-plan.step, plan.step), []
    for done in range(plan.directions):
        progress(f"directions at {name}", done, plan.directions)
        # A direction is drawn when it is needed: sixteen of them are no small part of a large model.
        line = draw_direction(plan.shapes, plan.seed + 101 + done, rank=plan.rank)
        ends.append(take_slice(model, [line], [steps], plan.rows))
    progress(f"directions at {name}", plan.directions, plan.directions)
    number = tuple(float(i) for i in range(plan.directions))
    return Slice((number, steps), np.stack([end.sums for end in ends]), ends[0].tokens, plan.rows.sets)


def _shares(live: LiveModel, plan: Plan, scores: RowVectors) -> Shares:
    gradients = {name: gradient_rows(live, plan.rows.batches).only(rows) for name, rows in plan.rows.sets.items()}
    if plan.safe:
        gradients["safety"] = gradient_rows(live, plan.safe)
    return gradient_shares(scores, gradients, plan.rows.sets["task"], plan.draws, seed=plan.seed)
