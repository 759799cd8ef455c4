"""EK-FAC: its basis and eigenvalues against dense Kronecker products, its solves against LU."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from saferestore.core.curvature.fisher import score_rows
from saferestore.core.curvature.kfac import EigenKronecker, ekfac, kronecker_factors
from saferestore.core.losses import cross_entropy
from torch import Tensor

from .. import dense
from ..cases import FAMILIES, live_model, ragged_batches, vector_like
from .test_fisher import _drawn

SEED = 3


@cache
def _made(family: str = "llama") -> EigenKronecker:
    return ekfac(live_model(family), [cross_entropy("ce", ragged_batches(4))], seed=SEED)


def _dense(operator: EigenKronecker) -> Tensor:
    """F [d, d] as a block diagonal of (Q_out (x) Q_in) diag(values) (Q_out (x) Q_in)'."""
    blocks = []
    for name, (out, inner) in operator.bases.items():
        basis = torch.kron(out, inner)
        blocks.append(basis @ torch.diag(operator.values[name].reshape(-1)) @ basis.T)
    return torch.block_diag(*blocks)


def _sampled_fisher(family: str = "llama") -> Tensor:
    """R'R [d, d] of the same sampled labels."""
    live, losses = live_model(family), [cross_entropy("ce", ragged_batches(4))]
    rows = [torch.cat([block.flatten(1) for block in scores.values()], 1)
            for _, scores in score_rows(live, losses, seed=SEED)]
    return sum(r.T @ r for r in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_and_solves_are_those_of_the_dense_kronecker_matrix(family: str):
    operator, matrix = _made(family), _dense(_made(family))
    v = vector_like(live_model(family).leaves, seed=1)
    assert dense.relative_error(dense.flat(operator.matvec(v)), matrix @ dense.flat(v)) < 1e-12
    for damping in (1e-4, 1e-2, 1.0):
        solution, wanted = operator.solve(v, damping), dense.damped_solve(matrix, damping, dense.flat(v))
        assert dense.relative_error(dense.flat(solution.x), wanted) < 1e-10
        assert dense.relative_error(dense.flat(solution.image), matrix @ wanted) < 1e-10


def test_its_eigenvalues_are_the_diagonal_of_the_sampled_fisher_matrix_in_its_basis():
    operator, fisher, at = _made(), _sampled_fisher(), 0
    for name, (out, inner) in operator.bases.items():
        basis, count = torch.kron(out, inner), out.shape[0] * inner.shape[0]
        block = fisher[at:at + count, at:at + count]
        torch.testing.assert_close(operator.values[name].reshape(-1), (basis.T @ block @ basis).diagonal())
        at += count


def test_of_all_matrices_diagonal_in_its_basis_it_is_the_nearest_to_the_sampled_fisher_matrix():
    operator, fisher = _made(), _sampled_fisher()
    best = float((_dense(operator) - fisher).norm())
    for seed in range(3):
        moved = {n: t * (1 + 0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(seed)))
                 for n, t in operator.values.items()}
        assert float((_dense(EigenKronecker(operator.bases, moved, 0.0)) - fisher).norm()) > best


def test_its_factors_are_sums_over_tokens_of_outer_products_of_inputs_and_score_gradients():
    """By the gradient of a bias that is added to a map's output at one token alone: one token after another."""
    live, batches = live_model(), ragged_batches(3, batch_size=1)
    found = kronecker_factors(live, [cross_entropy("ce", batches)], seed=SEED)
    weight = 1 / sum(batch.answer_tokens for batch in batches)
    drawn, name = _drawn(live, batches, SEED), next(iter(live.leaves))
    module = next(m for m in live.model.modules() if getattr(m, "weight", None) is live.leaves[name])
    wanted = [torch.zeros_like(t) for t in found[name]]
    for batch, labels in zip(batches, drawn, strict=True):
        kept = {}

        def shifted(_: object, args: tuple[Tensor], output: Tensor, kept: dict = kept) -> Tensor:
            kept["x"], kept["shift"] = args[0].detach(), torch.zeros_like(output, requires_grad=True)
            return output + kept["shift"]

        handle = module.register_forward_hook(shifted)
        log_p = torch.log_softmax(dense.logits_of(live, dense.flat(live.leaves), batch), 1)
        handle.remove()
        value = sum(log_p[n, label] for n, label in enumerate(labels))
        grads = torch.autograd.grad(value, kept["shift"])[0]
        for x, g in zip(kept["x"][0], grads[0], strict=True):
            if bool(g.any()):
                wanted[0] += weight * torch.outer(g, g)
                wanted[1] += torch.outer(x, x)
    torch.testing.assert_close(found[name][0], wanted[0])
    torch.testing.assert_close(found[name][1], wanted[1])


def test_the_mean_diagonal_is_the_trace_a_parameter():
    assert _made().mean_diagonal == pytest.approx(float(_dense(_made()).diagonal().mean()), rel=1e-12)
