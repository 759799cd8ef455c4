"""EK-FAC: its basis and eigenvalues against dense Kronecker products, its solves against LU."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from saferestore.core.checkpoint.session import read_params, write_params
from saferestore.core.curvature import kfac
from saferestore.core.curvature.fisher import score_rows
from saferestore.core.curvature.kfac import EigenKronecker, basis, columns, ekfac, kronecker_factors
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


SHORT, LEADING = 6, 3
"""Sides longer than 6 keep 3 eigenvectors: every map of the tiny models has such a side, its rank is shorter."""


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> EigenKronecker:
    monkeypatch.setattr(kfac, "OVERSAMPLED", 2)
    losses = [cross_entropy("ce", ragged_batches(4))]
    return ekfac(live_model(), losses, seed=SEED, whole=SHORT, leading=LEADING)


def _dense_sketched(operator: EigenKronecker) -> Tensor:
    """F [d, d] with a projector on what is outside the shorter basis."""
    blocks = []
    for name, (out, inner) in operator.bases.items():
        pair = torch.kron(out, inner)
        block = pair @ torch.diag(operator.values[name].reshape(-1)) @ pair.T
        if name in operator.rest:
            rest = torch.diag(operator.rest[name])
            if out.shape[0] == out.shape[1]:
                block += torch.kron(out @ rest @ out.T, torch.eye(len(inner)).double() - inner @ inner.T)
            else:
                block += torch.kron(torch.eye(len(out)).double() - out @ out.T, inner @ rest @ inner.T)
        blocks.append(block)
    return torch.block_diag(*blocks)


def test_products_and_solves_with_a_shortened_side_are_those_of_the_dense_matrix(sketched: EigenKronecker):
    assert {out.shape[0] == out.shape[1] for out, _ in sketched.bases.values()} == {True, False}
    assert set(sketched.rest) == set(sketched.bases)
    matrix, v = _dense_sketched(sketched), vector_like(live_model().leaves, seed=1)
    assert dense.relative_error(dense.flat(sketched.matvec(v)), matrix @ dense.flat(v)) < 1e-12
    for damping in (1e-4, 1e-2, 1.0):
        solution, wanted = sketched.solve(v, damping), dense.damped_solve(matrix, damping, dense.flat(v))
        assert dense.relative_error(dense.flat(solution.x), wanted) < 1e-10
        assert dense.relative_error(dense.flat(solution.image), matrix @ wanted) < 1e-10
    assert sketched.mean_diagonal == pytest.approx(float(matrix.diagonal().mean()), rel=1e-12)


def test_a_shortened_side_keeps_the_trace_by_every_direction_of_the_other_side(sketched: EigenKronecker):
    fisher, matrix, at = _sampled_fisher(), _dense_sketched(sketched), 0
    for out, inner in sketched.bases.values():
        count = out.shape[0] * inner.shape[0]
        block, own = (m[at:at + count, at:at + count].reshape(out.shape[0], inner.shape[0], *[out.shape[0],
                                                              inner.shape[0]]) for m in (fisher, matrix))
        if out.shape[0] == out.shape[1]:
            found, wanted = (torch.einsum("ka,kilj,lb,ij->ab", out, m, out, torch.eye(len(inner)).double())
                             for m in (own, block))
        else:
            found, wanted = (torch.einsum("ka,ikjl,lb,ij->ab", inner, m, inner, torch.eye(len(out)).double())
                             for m in (own, block))
        torch.testing.assert_close(found.diagonal(), wanted.diagonal())
        at += count


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_a_sketch_finds_the_leading_eigenvectors_of_a_decaying_matrix(dtype: torch.dtype, error: float):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0]
    matrix = (vectors @ torch.diag(0.3 ** torch.arange(60).double()) @ vectors.T).to(dtype)
    found = basis(matrix @ kfac._directions(60, 12).to(dtype), leading=4)
    assert float((found.T @ found - torch.eye(4).double()).abs().max()) < 1e-12
    assert float((vectors[:, :4].T @ found).det().abs()) == pytest.approx(1, abs=error)  # one and the same subspace


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("rank", [0, 2, 5])
def test_a_sketch_of_a_matrix_of_low_rank_or_of_none_has_an_orthonormal_basis_that_holds_it(
        rank: int, dtype: torch.dtype, error: float):
    factors = torch.randn(60, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = factors @ factors.T
    for leading in (max(1, rank), 8):  # no direction of rounding stands before one of the matrix
        found = basis(matrix.to(dtype) @ kfac._directions(60, 12).to(dtype), leading=leading)
        assert found.shape == (60, leading)
        assert float((found.T @ found - torch.eye(leading).double()).abs().max()) < 1e-12
        assert float((matrix - found @ (found.T @ matrix)).abs().max()) < error


def test_in_float32_it_is_that_of_float64_to_rounding():
    live, losses = live_model(), [cross_entropy("ce", ragged_batches(4))]
    v = vector_like(live.leaves, seed=1)
    wanted = dense.flat(ekfac(live, losses, seed=SEED).matvec(v))
    live.model.float()
    found = ekfac(live, losses, seed=SEED)
    assert {t.dtype for pair in found.bases.values() for t in pair} == {torch.float32}
    single = dense.flat(found.matvec({name: t.float() for name, t in v.items()})).double()
    assert dense.relative_error(single, wanted) < 1e-3


def test_a_fresh_adapter_whose_first_factor_has_no_scores_is_sketched_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kfac, "OVERSAMPLED", 2)
    live = live_model()
    write_params(live, {name: t * (".lora_A." in name) for name, t in read_params(live).items()})
    operator = ekfac(live, [cross_entropy("ce", ragged_batches(4))], seed=SEED, whole=SHORT, leading=LEADING)
    v = vector_like(live.leaves, seed=1)
    matrix = _dense_sketched(operator)
    assert dense.relative_error(dense.flat(operator.matvec(v)), matrix @ dense.flat(v)) < 1e-12
    assert operator.mean_diagonal > 0


def test_only_the_longer_side_of_a_large_map_is_shortened():
    kept = kfac.LEADING + kfac.OVERSAMPLED
    assert columns((16, 14336)) == (16, kept) and columns((14336, 16)) == (kept, 16)
    assert columns((16, 512)) == (16, 512) and columns((2048, 4096)) == (2048, kept)
    assert columns((16, 300), whole=100, leading=290) == (16, 300)  # the sketch would be no shorter
