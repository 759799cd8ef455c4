"""A subspace's coordinates against weights moved by hand."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.checkpoint.session import read_params, write_params
from saferestore.core.curvature.fisher import fisher
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.curvature.hessian import Hessian
from saferestore.core.geometry.directions import movable_modules
from saferestore.core.geometry.subspace import subspace
from saferestore.core.losses import cross_entropy, row_losses
from saferestore.core.params import norm

from .. import dense
from ..cases import FAMILIES, live_model, ragged_batches, vector_like

TOKENIZER = None


@pytest.mark.parametrize("family", FAMILIES)
def test_coordinates_move_the_weights_by_their_own_length(family: str) -> None:
    model, batches = live_model(family).model, ragged_batches()
    names = list(movable_modules(model))[:2]
    before, _ = row_losses(model, batches)
    with subspace(model, TOKENIZER, names, seed=1, rank=3) as live:  # type: ignore[arg-type]
        at_zero, _ = row_losses(live.model, batches)
        write_params(live, vector_like(live.leaves, seed=2))
        away, _ = row_losses(live.model, batches)
        bases = [movable_modules(model)[name].get_buffer("subspace.Q") for name in names]
    after, _ = row_losses(model, batches)
    assert torch.equal(at_zero, before) and torch.equal(after, before) and not torch.allclose(away, before)
    assert all(torch.allclose(q @ q.T, torch.eye(3, dtype=q.dtype), atol=1e-12) for q in bases)


def test_two_models_share_their_coordinates() -> None:
    found = []
    for seed in (0, 1):
        model = live_model(seed=seed).model
        with subspace(model, TOKENIZER, list(movable_modules(model))[:1], seed=4):  # type: ignore[arg-type]
            found.append(next(iter(movable_modules(model).values())).get_buffer("subspace.Q"))
    assert torch.equal(*found)


def test_every_curvature_operator_works_on_them() -> None:
    model, losses = live_model().model, [cross_entropy("ce", ragged_batches())]
    with subspace(model, TOKENIZER, list(movable_modules(model))[:2], seed=1, rank=2) as live:  # type: ignore[arg-type]
        v = vector_like(live.leaves, seed=3)
        exact = dense.gauss_newton(live, ragged_batches()) @ dense.flat(v)
        assert dense.relative_error(dense.flat(GaussNewton(live, losses, keep_graph=True).matvec(v)), exact) < 1e-8
        kept, difference = (Hessian(live, losses, way=way).matvec(v) for way in ("kept", "difference"))
        assert dense.relative_error(dense.flat(difference), dense.flat(kept)) < 1e-6
        assert norm(fisher(live, losses, seed=0).matvec(v)) > 0 and norm(read_params(live)) == 0


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(KeyError), subspace(live_model().model, TOKENIZER, ["nowhere"], seed=1):  # type: ignore[arg-type]
        pass
