"""A subspace's coordinates against weights moved by hand."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer
from saferestore.core.checkpoint.session import read_params, write_params
from saferestore.core.curvature.fisher import fisher
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.curvature.hessian import Hessian
from saferestore.core.geometry.directions import Shape, module_shapes, movable_modules
from saferestore.core.geometry.subspace import in_subspace
from saferestore.core.losses import cross_entropy, row_losses
from saferestore.core.params import norm
from torch import nn
from transformers.pytorch_utils import Conv1D

from .. import dense
from ..cases import FAMILIES, live_model, ragged_batches, vector_like


def two(model: nn.Module) -> dict[str, Shape]:
    return dict(list(module_shapes(model).items())[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_coordinates_move_every_row_of_a_weight_by_its_own_norm(family: str) -> None:
    model, batches = live_model(family).model, ragged_batches()
    before, _ = row_losses(model, batches)
    with in_subspace(model, two(model), rank=3, seed=1) as live:
        at_zero, _ = row_losses(live.model, batches)
        write_params(live, {name: 0.1 * v for name, v in vector_like(live.leaves, seed=2).items()})
        away, _ = row_losses(live.model, batches)
        paths = list(live.model.paths)  # type: ignore[attr-defined]
    after, _ = row_losses(model, batches)
    assert torch.equal(at_zero, before) and torch.equal(after, before) and not torch.allclose(away, before)
    with torch.no_grad():
        for (name, shape), path in zip(two(model).items(), paths, strict=True):
            module = movable_modules(model)[name]
            inner = module.get_base_layer() if isinstance(module, LoraLayer) else module
            moved = torch.diag(shape.norms) @ path.coordinates.weight @ path.basis
            inner.weight += moved.T if isinstance(inner, Conv1D) else moved  # type: ignore[operator]
            assert torch.allclose(path.basis @ path.basis.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(row_losses(model, batches)[0], away, rtol=1e-9)


def test_every_curvature_operator_works_on_them() -> None:
    model, losses = live_model().model, [cross_entropy("ce", ragged_batches())]
    with in_subspace(model, two(model), rank=2, seed=1) as live:
        v = vector_like(live.leaves, seed=3)
        exact = dense.gauss_newton(live, ragged_batches()) @ dense.flat(v)
        assert dense.relative_error(dense.flat(GaussNewton(live, losses, keep_graph=True).matvec(v)), exact) < 1e-8
        kept, difference = (Hessian(live, losses, way=way).matvec(v) for way in ("kept", "difference"))
        assert dense.relative_error(dense.flat(difference), dense.flat(kept)) < 1e-6
        assert norm(fisher(live, losses, seed=0).matvec(v)) > 0 and norm(read_params(live)) == 0


def test_a_module_that_is_not_there_is_refused() -> None:
    shapes = {"nowhere": Shape(torch.ones(3), 4)}
    with pytest.raises(KeyError), in_subspace(live_model().model, shapes, rank=2, seed=1):
        pass


def test_a_seed_has_one_subspace_and_another_seed_another() -> None:
    model, batches = live_model().model, ragged_batches()
    away = []
    for seed in (1, 1, 2):
        with in_subspace(model, two(model), rank=1, seed=seed) as live:
            write_params(live, {name: 0.3 * v for name, v in vector_like(live.leaves, seed=2).items()})
            away.append(row_losses(live.model, batches)[0])
    assert torch.equal(away[0], away[1]) and not torch.allclose(away[0], away[2], rtol=1e-3)
