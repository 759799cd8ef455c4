"""Losses on lines and planes through a checkpoint, by forward passes over rows that are tokenised and batched once.

Every point gives the loss of every row, so that means, their intervals and what is partialled out of them are all taken
from the same passes. A loss that is not finite is a gap: it is counted and never filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..config import Progress, no_progress
from ..data.batches import Batch
from ..errors import MismatchError
from ..losses import row_losses
from .directions import Direction, along

Floats = np.ndarray


@dataclass(frozen=True)
class Rows:
    """The rows of all sets of a slice in shared batches.

    Attributes:
        batches: Rows numbered 0, 1, ... through all sets.
        sets: Set name -> the numbers of its rows.
    """

    batches: Sequence[Batch]
    sets: Mapping[str, range]


@dataclass(frozen=True)
class Slice:
    """Losses at the points of a line or plane.

    Attributes:
        axes: [n] steps along each direction: one axis is a line, two are a plane.
        sums: [*axes, rows] each row's summed -log p (nats), float64; nan where it is not finite.
        tokens: [rows] answer tokens.
        sets: Set name -> the numbers of its rows.
    """

    axes: tuple[tuple[float, ...], ...]
    sums: Floats
    tokens: Floats
    sets: Mapping[str, range]

    def surface(self, name: str) -> Floats:
        """Return the loss of a set at every point, nats per answer token, [*axes]; nan at gaps."""
        rows = list(self.sets[name])
        return self.sums[..., rows].sum(axis=-1) / self.tokens[rows].sum()

    def row_losses(self, name: str) -> Floats:
        """Return the mean loss of every row of a set at every point, nats per answer token, [*axes, rows]."""
        rows = list(self.sets[name])
        return self.sums[..., rows] / self.tokens[rows]

    def gaps(self, name: str) -> int:
        """Return how many points have no finite loss of a set."""
        return int(np.isnan(self.surface(name)).sum())


def axis(points: int, reach: float) -> tuple[float, ...]:
    """Return `points` steps (odd, so that 0 is one of them) from -reach to reach."""
    half = points // 2
    return tuple(reach * i / half if half else 0.0 for i in range(-half, half + 1))


def take_slice(model: nn.Module, directions: Sequence[Direction], axes: Sequence[Sequence[float]], rows: Rows, *,
               stage: str = "slice", progress: Progress = no_progress) -> Slice:
    """Measure the loss of every row at every point of a line or plane around a model's own weights.

    Args:
        model: In evaluation mode; it is the same afterwards.
        directions: One an axis.
        axes: Steps along each.
        rows: What is measured.
        stage: What progress calls it.
        progress: Told of every point.

    Returns:
        The slice.
    """
    shape = tuple(len(each) for each in axes)
    points = list(np.ndindex(shape))
    sums, tokens = None, None
    with along(model, directions) as move:
        for done, point in enumerate(points):
            progress(stage, done, len(points))
            move([axes[i][place] for i, place in enumerate(point)])
            found, tokens = row_losses(model, rows.batches)
            sums = np.empty((*shape, len(found))) if sums is None else sums
            sums[point] = torch.where(torch.isfinite(found), found, torch.nan).numpy()
        progress(stage, len(points), len(points))
    assert sums is not None and tokens is not None
    return Slice(tuple(map(tuple, axes)), sums, tokens.numpy(), rows.sets)


def check_deterministic(model: nn.Module, rows: Rows) -> None:
    """Refuse a model whose losses are not a function of its weights: a slice of it would be noise.

    Args:
        model: What is to be measured.
        rows: Whose first batch is run twice.

    Raises:
        MismatchError: Dropout or another layer in training mode, or two losses of the same rows.
    """
    active = next((name for name, module in model.named_modules() if module.training and _is_random(module)), None)
    if active is not None:
        raise MismatchError(f"dropout is active - {active}", hint="call model.eval() first")
    first, second = (row_losses(model, rows.batches[:1])[0] for _ in range(2))
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise MismatchError("the model gives the same rows two different losses - it is not deterministic",
                            hint="switch off what is random in it, or set torch.use_deterministic_algorithms(True)")


def _is_random(module: nn.Module) -> bool:
    return float(getattr(module, "p", 0) or 0) > 0 if "dropout" in type(module).__name__.lower() else False
