"""The table of similarities, of landscapes made of random numbers, against each measure written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from saferestore.core.geometry.comparison import compare_landscapes, itself
from saferestore.core.geometry.landscape import Landscape
from saferestore.core.geometry.row_vectors import RowVectors
from saferestore.core.geometry.slices import Slice
from saferestore.core.geometry.verdict import LABELS
from scipy import stats

SETS = {"harmful": range(12), "task": range(12, 24)}
TOKENS = np.random.default_rng(9).integers(1, 9, 24).astype(float)
DRAWS, TOP = 2, 3


def _landscape(seed: int) -> Landscape:
    rng = np.random.default_rng(seed)

    def slice_of(*axes: int) -> Slice:
        return Slice(tuple(tuple(map(float, range(n))) for n in axes), rng.gamma(2.0, size=(*axes, 24)) * TOKENS,
                     TOKENS, SETS)

    def scores() -> RowVectors:
        blocks = {name: torch.from_numpy(rng.normal(size=(DRAWS * 24, 20))) for name in ("a", "b")}
        return RowVectors(blocks, np.tile(TOKENS, DRAWS))

    return Landscape(slice_of(), slice_of(3, 3), slice_of(15, 2), scores(), scores(), None)


def _leading(scores: RowVectors, rows: range) -> np.ndarray:
    """Eigenvectors [d, TOP] of the Fisher matrix of a set's rows, all draws of them."""
    kept = [draw * 24 + row for draw in range(DRAWS) for row in rows]
    r = np.hstack([block.numpy()[kept] for block in scores.blocks.values()])
    return np.linalg.eigh(r.T @ r)[1][:, -TOP:]


def _overlap(first: RowVectors, second: RowVectors, rows: range) -> float:
    cosines = np.linalg.svd(_leading(first, rows).T @ _leading(second, rows))[1]
    return float(np.mean(cosines**2))


@pytest.mark.parametrize("name", SETS)
def test_every_measure_is_that_of_the_rows_of_its_set_at_both_models(name: str) -> None:
    base, other, rows = _landscape(0), _landscape(1), SETS[name]
    found = compare_landscapes(base, other, top=TOP, draws=DRAWS, seed=0)[name]
    planes, centres, fans = ([s.sums[..., rows].sum(-1) / TOKENS[rows].sum() for s in pair] for pair in (
        (base.plane, other.plane), (base.centre, other.centre), (base.fan, other.fan)))
    alone = [each.centre.sums[rows] / TOKENS[rows] for each in (base, other)]
    moved = [(fan - centre).ravel() for fan, centre in zip(fans, centres, strict=True)]
    ranks = [stats.rankdata(each) for each in (*alone, TOKENS[rows])]
    slopes = [stats.linregress(ranks[2], each) for each in ranks[:2]]
    left = [each - line.intercept - line.slope * ranks[2] for each, line in zip(ranks[:2], slopes, strict=True)]
    assert tuple(found) == tuple(LABELS)
    for key, wanted in {"surface_pearson": stats.pearsonr(*map(np.ravel, planes))[0],
                        "change_spearman": stats.spearmanr(*moved)[0], "row_pearson": stats.pearsonr(*alone)[0],
                        "row_partial_spearman": stats.pearsonr(*left)[0],
                        "eigenspace_overlap": _overlap(base.scores, other.scores, rows)}.items():
        assert found[key].value == pytest.approx(wanted, rel=1e-9), key


def test_the_base_beside_itself_is_its_curvature_with_other_labels_drawn() -> None:
    base = _landscape(0)
    assert base.again is not None
    found = itself(base, top=TOP, draws=DRAWS, seed=0)
    for name, rows in SETS.items():
        assert found[name]["eigenspace_overlap"].value == pytest.approx(_overlap(base.scores, base.again, rows))
