"""How much of a gradient lies in the directions that matter most to the task: the test of claim C2.

The task's leading curvature is estimated on every second task row and the task's own gradient is taken on the others:
on the same rows a gradient would lie in it by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .eigenspace import energy_share, leading, spectrum
from .row_vectors import RowVectors, inner
from .similarity import Alike

DIMENSIONS = (1, 2, 5, 10, 20, 50)
"""Sizes of the eigenspace, as far as there are rows for them."""


@dataclass(frozen=True)
class Share:
    """Share of one gradient's energy in the top-k eigenspace of the task's Fisher matrix."""

    gradient: str
    k: int
    found: Alike


@dataclass(frozen=True)
class Shares:
    """All of them at one model.

    Attributes:
        rows: One a gradient and k.
        dimension: d of the space: a random vector has the share k/d.
        fisher_rows: Task rows behind the Fisher matrix.
    """

    rows: tuple[Share, ...]
    dimension: int
    fisher_rows: int


def halves(task: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the task rows for curvature and those for the gradient."""
    return list(task[::2]), list(task[1::2])


def gradient_shares(scores: RowVectors, gradients: Mapping[str, RowVectors], task: Sequence[int], draws: int, *,
                    seed: int) -> Shares:
    """Return the share of each gradient for every k.

    Args:
        scores: Rows of the Fisher matrix, all draws of all rows one after the other.
        gradients: Name -> gradients of rows; `task` has all task rows in the order of `task`.
        task: Numbers of the task rows among the rows of `scores`.
        draws: Draws of each row.
        seed: Of the bootstrap over gradient rows.

    Returns:
        The shares.
    """
    curvature, _ = halves(task)
    per_draw = len(scores.weights) // draws
    fisher = scores.only([draw * per_draw + row for draw in range(draws) for row in curvature])
    own = {**gradients, "task": gradients["task"].only(range(1, len(task), 2))}
    whole = spectrum(inner(fisher, fisher))
    sizes = [k for k in DIMENSIONS if k <= len(curvature)]
    basis = next((found for k in reversed(sizes) if (found := leading(whole, k)) is not None), None)
    if basis is None:
        return Shares((), scores.dimension, len(curvature))
    found = []
    for name, rows in own.items():
        space, grams = basis.T @ inner(fisher, rows), inner(rows, rows)
        found += [Share(name, k, energy_share(space[:k], grams, seed=seed)) for k in sizes if k <= len(space)]
    return Shares(tuple(found), scores.dimension, len(curvature))
