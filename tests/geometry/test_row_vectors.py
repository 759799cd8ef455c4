"""Vectors of rows against gradients of one row at a time, and shares of them against dense eigenvectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from saferestore.core.data.batches import make_batches
from saferestore.core.geometry.alignment import gradient_shares, halves
from saferestore.core.geometry.directions import module_shapes
from saferestore.core.geometry.row_vectors import RowVectors, fisher_rows, gradient_rows, inner
from saferestore.core.geometry.subspace import in_subspace
from saferestore.core.geometry.unrelated import UNRELATED, make_unrelated
from saferestore.core.losses import answer_tokens, cross_entropy, gradient
from torch import Tensor, nn

from .. import dense
from ..cases import FAMILIES, live_model, ragged_batches, ragged_rows


def flat(vectors: RowVectors) -> np.ndarray:
    return torch.cat(list(vectors.blocks.values()), dim=1).double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_s_gradient_is_that_of_the_row_alone(family: str) -> None:
    model, batches = live_model(family).model, ragged_batches(5, batch_size=3)
    with in_subspace(model, module_shapes(model), rank=2, seed=0) as live:
        found = gradient_rows(live, batches)
        for row in ragged_rows(5):
            alone = make_batches([row.__class__(0, row.prompt, row.answer)], batch_size=1, pad_id=0)
            _, wanted = gradient(live, cross_entropy("row", alone))
            own = {name: found.blocks[name][row.index] for name in wanted}
            assert found.weights[row.index] == len(row.answer)
            assert all(torch.allclose(own[name], len(row.answer) * wanted[name].flatten(), atol=1e-10)
                       for name in wanted)


def test_inner_products_and_choices_are_those_of_whole_vectors() -> None:
    model, batches = live_model().model, ragged_batches(6)
    with in_subspace(model, module_shapes(model), rank=2, seed=0) as live:
        grads, scores = gradient_rows(live, batches), fisher_rows(live, batches, draws=3, seed=1)
    assert flat(scores).shape == (18, scores.dimension) and list(scores.weights) == 3 * list(grads.weights)
    assert not np.allclose(flat(scores)[:6], flat(scores)[6:12])  # other labels
    assert np.allclose(inner(grads, scores, columns=7), flat(grads) @ flat(scores).T)
    assert np.array_equal(flat(scores.only([4, 1])), flat(scores)[[4, 1]])


def test_draws_average_to_the_dense_fisher_matrix() -> None:
    model, batches = live_model().model, ragged_batches(4)
    with in_subspace(model, dict(list(module_shapes(model).items())[:2]), rank=1, seed=0) as live:
        scores = fisher_rows(live, batches, draws=400, seed=0)
        wanted = answer_tokens(batches) * dense.gauss_newton(live, batches).detach().numpy()
    found = flat(scores).T @ flat(scores) / 400
    assert np.trace(found) == pytest.approx(np.trace(wanted), rel=0.1)
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)


def test_shares_are_those_of_dense_eigenvectors_on_the_other_half_of_the_task_rows() -> None:
    rng = np.random.default_rng(0)

    def vectors(rows: int) -> RowVectors:
        return RowVectors({"a": torch.from_numpy(rng.normal(size=(rows, 40)))}, np.ones(rows))

    scores, gradients = vectors(2 * 16), {"task": vectors(12), "safety": vectors(5)}
    found = gradient_shares(scores, gradients, range(4, 16), 2, seed=0)
    curvature, _ = halves(range(4, 16))
    rows = flat(scores)[[*curvature, *(16 + row for row in curvature)]]
    basis = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :5]
    for name, own in (("safety", flat(gradients["safety"])), ("task", flat(gradients["task"])[1::2])):
        share = next(row.found.value for row in found.rows if (row.gradient, row.k) == (name, 5))
        mean = own.mean(axis=0)
        assert share == pytest.approx(np.square(basis.T @ mean).sum() / np.square(mean).sum())
    assert found.dimension == 40 and found.fisher_rows == 6 and {row.k for row in found.rows} == {1, 2, 5}


def test_without_curvature_there_are_no_shares() -> None:
    nothing = RowVectors({"a": torch.zeros(20, 4)}, np.ones(20))
    assert not gradient_shares(nothing, {"task": nothing}, range(20), 1, seed=0).rows


@pytest.mark.parametrize("how", UNRELATED)
def test_an_unrelated_model_has_other_experts_too(how: str) -> None:
    experts = nn.ParameterDict({"down_proj": nn.Parameter(torch.randn(4, 9, 8, generator=torch.Generator()))})
    before = experts["down_proj"].detach().clone()
    make_unrelated(experts, how, seed=0)
    found = experts["down_proj"].detach()
    assert all(not torch.allclose(expert, old) for expert in found for old in before)
    if how == "shuffled":
        values = (torch.linalg.svdvals(each).sort(dim=0).values for each in (found, before))
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("how", UNRELATED)
def test_an_unrelated_model_has_weights_of_the_same_size_in_other_places(how: str) -> None:
    model = live_model().model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    make_unrelated(model, how, seed=0)
    for name, p in model.named_parameters():
        if p.dim() < 2:
            assert torch.equal(p, before[name])
        elif p.numel() > 100:
            assert not torch.allclose(p, before[name]) and _norm(p) == pytest.approx(_norm(before[name]), rel=0.3)
            if how == "shuffled":
                assert torch.allclose(torch.linalg.svdvals(p.detach()), torch.linalg.svdvals(before[name]))


def test_both_the_rows_and_the_columns_of_a_matrix_are_shuffled() -> None:
    p = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    found = UNRELATED["shuffled"](p, torch.Generator().manual_seed(0))
    for old, new in ((p, found), (p.T, found.T)):  # a row is another one's numbers in another order
        assert {tuple(sorted(row.tolist())) for row in old} == {tuple(sorted(row.tolist())) for row in new}
        assert not {tuple(row.tolist()) for row in old} & {tuple(row.tolist()) for row in new}


def _norm(p: Tensor) -> float:
    return float(p.detach().norm())
