"""Gauss-Newton products against the whole matrix J'HJ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel, write_params
from saferestore.core.curvature import ggn
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.data.batches import Batch
from saferestore.core.losses import AnswerLogits, cross_entropy, hinge, kl_divergence, log_probabilities
from torch import nn

from .. import dense
from ..cases import FAMILIES, live_model, moved, ragged_batches, vector_like


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_equal_the_dense_matrix_times_the_vector(family: str, keep_graph: bool):
    live, batches = live_model(family), ragged_batches()
    operator = GaussNewton(live, [cross_entropy("ce", batches)], keep_graph=keep_graph)
    exact = dense.gauss_newton(live, batches)
    for seed in range(3):
        v = vector_like(live.leaves, seed=seed)
        found = operator.matvec(v)
        assert list(found) == list(live.leaves)
        assert dense.relative_error(dense.flat(found), exact @ dense.flat(v)) < 1e-8
    assert operator.products == 3


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_products_do_not_depend_on_the_batch_size(batch_size: int, keep_graph: bool):
    live = live_model()
    v = vector_like(live.leaves, seed=1)
    exact = dense.gauss_newton(live, ragged_batches())
    operator = GaussNewton(live, [cross_entropy("ce", ragged_batches(batch_size=batch_size))], keep_graph=keep_graph)
    assert dense.relative_error(dense.flat(operator.matvec(v)), exact @ dense.flat(v)) < 1e-8


def test_away_from_the_reference_the_divergence_has_the_same_products_as_cross_entropy():
    live, batches = live_model(), ragged_batches()
    reference = log_probabilities(live.model, batches)
    write_params(live, moved(live, by=0.3, seed=4))
    drift, v = kl_divergence("D", batches, reference.__getitem__), vector_like(live.leaves, seed=1)
    found = GaussNewton(live, [drift], keep_graph=False).matvec(v)
    assert dense.relative_error(dense.flat(found), dense.gauss_newton(live, batches) @ dense.flat(v)) < 1e-8


@pytest.mark.parametrize("keep_graph", [True, False])
def test_at_a_temperature_the_products_are_those_of_the_softened_distribution(keep_graph: bool):
    live, batches = live_model(), ragged_batches()
    soft = kl_divergence("D", batches, log_probabilities(live.model, batches).__getitem__, temperature=3.0)
    v = vector_like(live.leaves, seed=1)
    found, exact = GaussNewton(live, [soft], keep_graph=keep_graph).matvec(v), dense.gauss_newton(live, batches, 3.0)
    assert dense.relative_error(dense.flat(found), exact @ dense.flat(v)) < 1e-8
    assert dense.relative_error(exact, dense.gauss_newton(live, batches)) > 0.1
    reference = dense.probabilities(live, batches)
    bend = dense.hessian(lambda t: dense.divergence(live, t, batches, reference, 3.0), dense.flat(live.leaves))
    assert dense.relative_error(exact, bend) < 1e-9  # at the reference it is the Hessian, too


def test_a_sum_of_losses_has_the_sum_of_their_matrices_by_weight():
    live, first, second = live_model(), ragged_batches(5, seed=1), ragged_batches(4, seed=2)
    a, b = cross_entropy("a", first), cross_entropy("b", second)
    operator = GaussNewton(live, [replace(a, token_weight=0.5 * a.token_weight), b], keep_graph=True)
    v = vector_like(live.leaves, seed=1)
    wanted = (0.5 * dense.gauss_newton(live, first) + dense.gauss_newton(live, second)) @ dense.flat(v)
    assert dense.relative_error(dense.flat(operator.matvec(v)), wanted) < 1e-8


def test_a_loss_without_a_gauss_newton_weight_adds_nothing():
    live = live_model()
    flat_loss = hinge("ascent", ragged_batches(), torch.zeros(6, dtype=torch.float64))
    found = GaussNewton(live, [flat_loss], keep_graph=True).matvec(vector_like(live.leaves, seed=1))
    assert float(dense.flat(found).abs().max()) == 0


def _with_an_unused_leaf(live: LiveModel) -> LiveModel:
    """The model with a linear layer that no row passes through, as an expert that is never chosen."""
    idle = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    live.model.add_module("idle", idle)
    return replace(live, leaves={**live.leaves, "idle.lora_A.weight": idle.weight})


@pytest.mark.parametrize("keep_graph", [True, False])
def test_a_parameter_that_no_row_reaches_has_zero_curvature(keep_graph: bool):
    live, batches = _with_an_unused_leaf(live_model()), ragged_batches()
    v = vector_like(live.leaves, seed=1)
    found = GaussNewton(live, [cross_entropy("ce", batches)], keep_graph=keep_graph).matvec(v)
    assert float(found["idle.lora_A.weight"].abs().max()) == 0
    assert float(found["model.layers.0.self_attn.q_proj.lora_A.weight"].abs().max()) > 0


@pytest.mark.parametrize("keep_graph", [True, False])
def test_the_matrix_stays_that_of_its_point_while_the_model_moves(keep_graph: bool):
    live, batches = live_model(), ragged_batches()
    exact, v = dense.gauss_newton(live, batches), vector_like(live.leaves, seed=1)
    operator = GaussNewton(live, [cross_entropy("ce", batches)], keep_graph=keep_graph)
    write_params(live, moved(live, by=0.5, seed=4))
    assert dense.relative_error(dense.flat(operator.matvec(v)), exact @ dense.flat(v)) < 1e-8


def test_a_graph_that_is_rebuilt_holds_a_quarter_of_the_rows(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, ...]] = []
    plain = ggn.answer_logits

    def noted(model: nn.Module, batch: Batch) -> AnswerLogits:
        seen.append(tuple(batch.input_ids.shape))
        return plain(model, batch)

    monkeypatch.setattr(ggn, "answer_logits", noted)
    live, batches = live_model(), ragged_batches(10, batch_size=10)
    GaussNewton(live, [cross_entropy("ce", batches)], keep_graph=False).matvec(vector_like(live.leaves, seed=1))
    whole = tuple(batches[0].input_ids.shape)
    assert [rows for rows, _ in seen] == [3, 3, 3, 1]
    assert seen[0][1] == whole[1] and seen[-1][1] < whole[1]  # the shortest rows lose their padding
