"""Conjugate gradients and L-BFGS against a dense solve, on matrices given and on Gauss-Newton products."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
import torch
from saferestore.core.curvature.cg import ConjugateGradients
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.curvature.lbfgs import LBFGS, scaled_identity, two_loop
from saferestore.core.losses import cross_entropy
from saferestore.core.params import Params
from torch import Tensor

from .. import dense
from ..cases import FAMILIES, live_model, ragged_batches, vector_like

SHAPES = {"a": torch.zeros(4, 3, dtype=torch.float64), "b": torch.zeros(8, dtype=torch.float64)}


@dataclass
class _Given:
    """Products with a matrix, counted."""

    matrix: Tensor
    like: Params
    count: int = 0

    def matvec(self, v: Params) -> Params:
        self.count += 1
        return dense.unflat(self.matrix @ dense.flat(v), self.like)


def _ill_conditioned() -> _Given:
    """A singular matrix [20, 20] with eigenvalues from 0 to 100."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))
    values = torch.cat([torch.zeros(5), torch.logspace(-4, 2, 15)]).double()
    return _Given(q @ torch.diag(values) @ q.T, SHAPES)


SOLVERS = {
    "cg": lambda operator, limit, tolerance: ConjugateGradients(operator, None, 1.0, limit, tolerance),
    "lbfgs": lambda operator, limit, tolerance: LBFGS(operator, 1.0, limit, 200, tolerance),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("damping", [1e-2, 1.0, 100.0])
def test_enough_products_reach_the_dense_solve(name: str, damping: float):
    operator, v = _ill_conditioned(), vector_like(SHAPES, seed=1)
    solution = SOLVERS[name](operator, 200, 1e-10).solve(v, damping)
    wanted = dense.damped_solve(operator.matrix, damping, dense.flat(v))
    assert solution.status == "converged" and solution.products == operator.count
    assert dense.relative_error(dense.flat(solution.x), wanted) < 1e-6
    assert dense.relative_error(dense.flat(solution.image), operator.matrix @ wanted) < 1e-6


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solve_stops_at_its_limit_and_reports_the_true_residual(name: str):
    operator, v = _ill_conditioned(), vector_like(SHAPES, seed=1)
    solution = SOLVERS[name](operator, 4, 1e-10).solve(v, 1e-2)
    assert (solution.status, solution.products, operator.count) == ("limit", 4, 4)
    left = dense.flat(v) - operator.matrix @ dense.flat(solution.x) - 1e-2 * dense.flat(solution.x)
    assert solution.relative_residual == pytest.approx(float(left.norm() / dense.flat(v).norm()), rel=1e-6)
    torch.testing.assert_close(dense.flat(solution.image), operator.matrix @ dense.flat(solution.x))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_rough_solve_is_still_a_descent_direction_on_the_quadratic(name: str):
    operator, v = _ill_conditioned(), vector_like(SHAPES, seed=1)
    b, damped = dense.flat(v), operator.matrix + 1e-2 * torch.eye(20, dtype=torch.float64)
    values = []
    for limit in range(1, 8):
        x = dense.flat(SOLVERS[name](operator, limit, 1e-10).solve(v, 1e-2).x)
        assert float(x @ b) > 0
        values.append(float(0.5 * x @ damped @ x - b @ x))
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_zero_vector_is_solved_without_a_product(name: str):
    operator = _ill_conditioned()
    solution = SOLVERS[name](operator, 5, 1e-3).solve(SHAPES, 1.0)
    assert (solution.status, solution.products, operator.count) == ("exact", 0, 0)
    assert float(dense.flat(solution.x).abs().max()) == 0


@pytest.mark.parametrize("name", SOLVERS)
def test_a_product_is_that_of_the_operator(name: str):
    operator, v = _ill_conditioned(), vector_like(SHAPES, seed=1)
    found = SOLVERS[name](operator, 5, 1e-3).matvec(v)
    torch.testing.assert_close(dense.flat(found), operator.matrix @ dense.flat(v))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SOLVERS)
def test_gauss_newton_solves_equal_the_dense_solve(family: str, name: str):
    live, batches = live_model(family), ragged_batches(3)
    exact, v = dense.gauss_newton(live, batches), vector_like(live.leaves, seed=1)
    operator = GaussNewton(live, [cross_entropy("ce", batches)], keep_graph=True)
    solution = SOLVERS[name](operator, 300, 1e-8).solve(v, 0.1)
    assert dense.relative_error(dense.flat(solution.x), dense.damped_solve(exact, 0.1, dense.flat(v))) < 1e-6


def test_the_exact_diagonal_as_preconditioner_saves_products():
    generator = torch.Generator().manual_seed(0)
    scales = torch.diag(torch.logspace(-2, 2, 20).double())
    noise = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    operator = _Given(scales @ (torch.eye(20, dtype=torch.float64) + 0.01 * (noise + noise.T)) @ scales, SHAPES)
    diagonal = dense.unflat(operator.matrix.diagonal(), SHAPES)
    v = vector_like(SHAPES, seed=1)
    plain = ConjugateGradients(operator, None, 1.0, 500, 1e-8).solve(v, 1e-4)
    helped = ConjugateGradients(operator, diagonal, 1.0, 500, 1e-8).solve(v, 1e-4)
    assert helped.products < plain.products / 2
    wanted = dense.damped_solve(operator.matrix, 1e-4, dense.flat(v))
    assert dense.relative_error(dense.flat(helped.x), wanted) < 1e-6


def _dense_bfgs(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse BFGS matrix by its update formula (Nocedal and Wright 2006, 6.17), from s'y / y'y I."""
    eye = torch.eye(len(pairs[0][0]), dtype=torch.float64)
    s, y = pairs[-1]
    h = (s @ y) / (y @ y) * eye
    for s, y in pairs:
        rho = 1 / (s @ y)
        left = eye - rho * torch.outer(s, y)
        h = left @ h @ left.T + rho * torch.outer(s, s)
    return h


def test_the_two_loop_recursion_is_the_bfgs_matrix_of_its_pairs():
    matrix = _ill_conditioned().matrix + torch.eye(20, dtype=torch.float64)
    pairs = [(s, dense.unflat(matrix @ dense.flat(s), SHAPES)) for s in (vector_like(SHAPES, seed=k) for k in range(4))]
    v = vector_like(SHAPES, seed=9)
    h = _dense_bfgs([(dense.flat(s), dense.flat(y)) for s, y in pairs])
    torch.testing.assert_close(dense.flat(two_loop(v, pairs, scaled_identity(pairs))), h @ dense.flat(v))
    assert two_loop(v, [], scaled_identity([])) is v


def test_the_last_pair_is_met_exactly():
    matrix = _ill_conditioned().matrix + torch.eye(20, dtype=torch.float64)
    pairs = [(s, dense.unflat(matrix @ dense.flat(s), SHAPES)) for s in (vector_like(SHAPES, seed=k) for k in range(3))]
    s, y = pairs[-1]
    torch.testing.assert_close(dense.flat(two_loop(y, pairs, scaled_identity(pairs))), dense.flat(s))


def test_pairs_outlive_a_solve_and_a_change_of_damping():
    operator, v = _ill_conditioned(), vector_like(SHAPES, seed=1)
    fresh = LBFGS(operator, 1.0, 200, 200, 1e-8).solve(v, 0.5)
    engine = LBFGS(operator, 1.0, 200, 200, 1e-8, pairs=deque())
    engine.solve(v, 1.0)
    again = engine.solve(v, 0.5)
    assert again.products < 0.7 * fresh.products
    assert dense.relative_error(dense.flat(again.x), dense.damped_solve(operator.matrix, 0.5, dense.flat(v))) < 1e-6


def test_only_the_newest_pairs_are_kept():
    engine = LBFGS(_ill_conditioned(), 1.0, 8, 3, 1e-12)
    engine.solve(vector_like(SHAPES, seed=1), 1e-2)
    assert len(engine.pairs) == 3


def test_a_pair_holds_the_image_of_its_vector_without_the_damping():
    operator = _ill_conditioned()
    engine = LBFGS(operator, 1.0, 5, 10, 1e-12)
    engine.solve(vector_like(SHAPES, seed=1), 7.0)
    assert len(engine.pairs) == 5
    for s, image in engine.pairs:
        torch.testing.assert_close(dense.flat(image), operator.matrix @ dense.flat(s))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_how_long_a_vector_is_changes_nothing_in_its_solve(name: str, size: float):
    v = vector_like(SHAPES, seed=1)
    plain, scaled = (SOLVERS[name](_ill_conditioned(), 200, 1e-4).solve(
        {key: factor * t for key, t in v.items()}, 1.0) for factor in (1.0, size))
    assert scaled.products == plain.products and plain.status == scaled.status == "converged"
    torch.testing.assert_close(dense.flat(scaled.x) / size, dense.flat(plain.x), rtol=1e-4, atol=1e-5)


def test_a_diagonal_matrix_is_inverted_by_its_preconditioner_in_one_product_whatever_the_damping():
    diagonal = torch.logspace(-2, 2, 20).double()
    operator, v = _Given(torch.diag(diagonal), SHAPES), vector_like(SHAPES, seed=1)
    solution = ConjugateGradients(operator, dense.unflat(diagonal, SHAPES), 1.0, 9, 1e-10).solve(v, 5.0)
    assert solution.products == 1
    torch.testing.assert_close(dense.flat(solution.x), dense.flat(v) / (diagonal + 5.0))
