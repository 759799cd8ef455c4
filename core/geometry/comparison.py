"""Two models by every measure on every set: the table of similarities."""

from __future__ import annotations

from collections.abc import Mapping

from .eigenspace import compare_eigenspaces
from .landscape import Landscape
from .row_vectors import RowVectors, inner
from .similarity import Alike, change_correlation, changes, row_correlation, surfaces
from .verdict import LABELS

Measures = dict[str, Alike]
RANKS = {"pearson": False, "spearman": True}


def compare_landscapes(base: Landscape, other: Landscape, *, top: int, draws: int,
                       seed: int) -> dict[str, Measures]:
    """Return every measure on every set.

    Args:
        base: What is compared with.
        other: Along the same directions, on the same rows.
        top: Dimensions of the eigenspaces.
        draws: Draws of every row of the Fisher matrices.
        seed: Of the resamples.

    Returns:
        Set name -> key of `verdict.LABELS` -> the measure.
    """
    return {name: {**_losses(base, other, name, seed), **_curvature(base.scores, other.scores, rows, top, draws, seed)}
            for name, rows in base.plane.sets.items()}


def itself(base: Landscape, *, top: int, draws: int, seed: int) -> dict[str, Measures]:
    """Return the measures of curvature between the base and itself with other labels drawn: the most there can be."""
    assert base.again is not None
    return {name: _curvature(base.scores, base.again, rows, top, draws, seed)
            for name, rows in base.plane.sets.items()}


def _losses(base: Landscape, other: Landscape, name: str, seed: int) -> Measures:
    moved = (changes(base.fan, base.centre, name), changes(other.fan, other.centre, name))
    rows = (base.centre.row_losses(name), other.centre.row_losses(name))
    lengths = base.centre.tokens[list(base.centre.sets[name])]
    found = {}
    for word, ranked in RANKS.items():
        found[f"surface_{word}"] = surfaces(base.plane, other.plane, name, ranked=ranked, seed=seed)
        found[f"change_{word}"] = change_correlation(*moved, ranked=ranked, seed=seed)
        for kind, partial in ((f"row_{word}", False), (f"row_partial_{word}", True)):
            found[kind] = row_correlation(*rows, lengths, ranked=ranked, partial=partial, seed=seed)
    return {name: found[name] for name in LABELS if name in found}


def _curvature(first: RowVectors, second: RowVectors, rows: range, top: int, draws: int, seed: int) -> Measures:
    count = len(first.weights) // draws
    numbers = [draw * count + row for draw in range(draws) for row in rows]
    a, b = first.only(numbers), second.only(numbers)
    space, spectrum = compare_eigenspaces(inner(a, a), inner(b, b), inner(a, b), rows=len(rows), k=top, seed=seed)
    return {"eigenspace_overlap": space, "spectral_distance_decades": spectrum}


def losses(landscapes: Mapping[str, Landscape]) -> list[tuple[str, str, float, int]]:
    """Return (system, set, loss in nats per token, rows) at each model's own weights."""
    return [(system, name, float(each.centre.surface(name)), len(rows))
            for system, each in landscapes.items() for name, rows in each.centre.sets.items()]
