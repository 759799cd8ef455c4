"""Ways to make a query against dense references, and influence as the minimiser moved by a row's weight."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel
from saferestore.core.curvature.datainf import row_losses_gradients
from saferestore.core.curvature.diagonal import diagonal_fisher
from saferestore.core.curvature.kfac import factor_bytes, kronecker_factors
from saferestore.core.influence.queries import QUERIES, QueryInputs
from saferestore.core.influence.rows import by_forward_mode, row_sums
from saferestore.core.losses import cross_entropy
from saferestore.core.params import Params
from torch import Tensor

from .. import dense
from ..cases import live_model, ragged_batches, vector_like

ROWS = 6


@cache
def _inputs(way_damping: float = 0.1) -> QueryInputs:
    live = live_model()
    training = cross_entropy("training", ragged_batches(ROWS))
    return QueryInputs(live, vector_like(live.leaves, seed=5), training, way_damping, seed=1, max_products=400)


def _gradients(live: LiveModel) -> Tensor:
    """grad l_i [rows, d], scaled so that their mean is the gradient of the mean over tokens."""
    theta, batches = dense.flat(live.leaves).requires_grad_(), ragged_batches(ROWS)
    tokens, found = sum(b.answer_tokens for b in batches), torch.zeros(ROWS, len(theta), dtype=torch.float64)
    for batch in batches:
        log_p = torch.log_softmax(dense.logits_of(live, theta, batch), 1)
        for n, (place, _, label) in enumerate(dense.answer_positions(batch)):
            found[int(batch.rows[place])] -= torch.autograd.grad(log_p[n, label], theta, retain_graph=True)[0]
    return found * ROWS / tokens


def test_row_gradients_average_to_the_gradient_of_the_loss():
    inputs = _inputs()
    found = row_losses_gradients(inputs.live, inputs.training)
    blocks = [torch.cat([b.flatten(1) for b in rows.values()], 1) for rows in found]
    mean = torch.cat(blocks).mean(0)
    theta = dense.flat(inputs.live.leaves)
    wanted = dense.gradient(lambda t: dense.cross_entropy(inputs.live, t, ragged_batches(ROWS)), theta)
    torch.testing.assert_close(mean, wanted)


def test_datainf_is_the_mean_of_the_inverses_a_parameter():
    inputs = _inputs()
    u, gradients, at = QUERIES["datainf"](inputs).u, _gradients(inputs.live), 0
    for name, v in inputs.gradient.items():
        g = gradients[:, at:at + v.numel()]
        damping = inputs.damping * float(g.square().mean())
        each = [dense.damped_solve(torch.outer(row, row), damping, v.reshape(-1)) for row in g]
        assert dense.relative_error(u[name].reshape(-1), torch.stack(each).mean(0)) < 1e-8
        at += v.numel()


def test_the_bytes_of_kronecker_factors_are_those_that_are_made():
    live = _inputs().live
    factors = kronecker_factors(live, [_inputs().training], seed=0)
    needed = factor_bytes(leaf.shape for leaf in live.leaves.values())
    assert needed == 4 * sum(t.numel() for pair in factors.values() for t in pair)


def test_every_way_states_what_it_inverted():
    for way, make in QUERIES.items():
        query = make(_inputs())
        assert (query.damping is None) == (way == "datainf")
        assert (query.relative_residual is not None) == (way == "cg") == (query.products > 0)


def _minimiser(matrix: Tensor, gradients: Tensor, weights: Tensor, damping: float) -> Tensor:
    """Minimiser of 1/2 d'(F + damping I)d + mean of weights_i grad l_i'd: the quadratic model of training."""
    return -dense.damped_solve(matrix, damping, (weights[:, None] * gradients).mean(0))


def _along(inputs: QueryInputs, u: Params) -> Tensor:
    """-u'grad l_i of every row by the library, scaled as `_gradients`."""
    _, derivatives, tokens = row_sums(by_forward_mode(inputs.live, inputs.training.batches, u), torch.arange(ROWS))
    return -derivatives * ROWS / tokens.sum()


def test_influence_is_the_derivative_of_safety_at_the_quadratic_models_minimiser_by_a_rows_weight():
    inputs = _inputs()
    query = QUERIES["cg"](QueryInputs(inputs.live, inputs.gradient, inputs.training, 1.0, seed=1, max_products=2000,
                                      tolerance=1e-9))
    assert query.damping is not None
    matrix, gradients, s = dense.gauss_newton(inputs.live, ragged_batches(ROWS)), _gradients(inputs.live), \
        dense.flat(inputs.gradient)
    weights = torch.ones(ROWS, dtype=torch.float64, requires_grad=True)
    safety = s @ _minimiser(matrix, gradients, weights, query.damping)
    wanted = torch.autograd.grad(safety, weights)[0]  # of I(z)/N
    assert dense.relative_error(_along(inputs, query.u) / ROWS, wanted) < 1e-6


def test_the_damping_of_an_engine_is_a_share_of_the_mean_diagonal_of_its_own_matrix():
    inputs = _inputs()
    f = dense.flat(diagonal_fisher(inputs.live, (inputs.training,), seed=1).f)
    query = QUERIES["diagonal"](inputs)
    assert query.damping == pytest.approx(0.1 * float(f.mean()))
    torch.testing.assert_close(dense.flat(query.u), dense.flat(inputs.gradient) / (f + 0.1 * f.mean()))
