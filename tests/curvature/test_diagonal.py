"""The diagonal engine against mean squared scores, one backward a row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from saferestore.core.curvature.diagonal import diagonal_fisher
from saferestore.core.losses import cross_entropy
from torch import nn

from .. import dense
from ..cases import FAMILIES, live_model, ragged_batches, vector_like
from .test_fisher import _drawn, _one_backward_a_row


@pytest.mark.parametrize("family", FAMILIES)
def test_the_diagonal_is_the_mean_squared_score_of_the_same_labels(family: str):
    live, batches = live_model(family), ragged_batches(7, batch_size=3)
    found = diagonal_fisher(live, [cross_entropy("ce", batches)], seed=5)
    scores = _one_backward_a_row(live, batches, _drawn(live, batches, 5))
    wanted = scores.square().sum(0) / sum(batch.answer_tokens for batch in batches)
    assert dense.relative_error(dense.flat(found.f), wanted) < 1e-10
    assert found.mean_diagonal == pytest.approx(float(wanted.mean()), rel=1e-10)


@pytest.mark.parametrize("damping", [1e-4, 1.0])
def test_a_solve_equals_the_dense_solve_with_the_diagonal_matrix(damping: float):
    live = live_model()
    operator = diagonal_fisher(live, [cross_entropy("ce", ragged_batches())], seed=5)
    v = vector_like(live.leaves, seed=1)
    wanted = dense.damped_solve(torch.diag(dense.flat(operator.f)), damping, dense.flat(v))
    assert dense.relative_error(dense.flat(operator.solve(v, damping).x), wanted) < 1e-10


def test_a_parameter_that_no_row_reaches_has_a_zero_diagonal():
    live = live_model()
    idle = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    live.model.add_module("idle", idle)
    live = replace(live, leaves={**live.leaves, "idle.lora_A.weight": idle.weight})
    operator = diagonal_fisher(live, [cross_entropy("ce", ragged_batches())], seed=0)
    assert list(operator.f) == list(live.leaves)
    assert float(operator.f["idle.lora_A.weight"].abs().max()) == 0
