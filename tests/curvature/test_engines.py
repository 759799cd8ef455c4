"""What every engine of the table must hold: one interface, one meaning of x, image and damping."""

from __future__ import annotations

from collections import deque
from functools import cache

import pytest
import torch
from saferestore.core.config import ENGINES as NAMES
from saferestore.core.curvature.diagonal import diagonal_fisher
from saferestore.core.curvature.engines import ENGINES, EngineInputs, passes_at_most
from saferestore.core.curvature.operator import CurvatureOperator, Identity
from saferestore.core.losses import cross_entropy
from saferestore.core.params import dot
from torch import Tensor

from .. import dense
from ..cases import live_model, ragged_batches, vector_like


def _made(name: str, *, low_memory: bool = False, max_products: int = 400) -> CurvatureOperator:
    """An engine's operator on the tiny Llama."""
    live, losses = live_model(), [cross_entropy("ce", ragged_batches(3))]
    return ENGINES[name].make(EngineInputs(live, losses, 3, low_memory, max_products,
                                           diagonal_fisher(live, losses, seed=3), deque()))


@cache
def _matrix(name: str) -> Tensor:
    """The engine's F: the exact one for engines by products, else column by column."""
    live = live_model()
    if name in ("cg", "lbfgs"):
        return dense.gauss_newton(live, ragged_batches(3))
    operator, shapes = _made(name), {n: p.detach() for n, p in live.leaves.items()}
    columns = torch.eye(len(dense.flat(shapes)), dtype=torch.float64)
    return torch.stack([dense.flat(operator.matvec(dense.unflat(c, shapes))) for c in columns], dim=1)


def test_every_engine_a_user_may_name_is_a_row_of_the_table():
    assert set(ENGINES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_a_symmetric_positive_semidefinite_matrix(name: str):
    operator = _made(name)
    v, w = (vector_like(live_model().leaves, seed=seed) for seed in (1, 2))
    fv, fw = operator.matvec(v), operator.matvec(w)
    assert dot(v, fw) == pytest.approx(dot(w, fv), rel=1e-9)
    assert dot(v, fv) >= 0 and dot(w, fw) >= 0
    assert float(torch.linalg.eigvalsh(_matrix(name)).min()) > -1e-10


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_solve_inverts_the_engines_own_damped_matrix(name: str, low_memory: bool):
    operator, matrix = _made(name, low_memory=low_memory), _matrix(name)
    v = vector_like(live_model().leaves, seed=1)
    solution = operator.solve(v, 0.1)
    wanted = dense.damped_solve(matrix, 0.1, dense.flat(v))
    assert dense.relative_error(dense.flat(solution.x), wanted) < 2e-3  # the iterations' own tolerance is 1e-3
    torch.testing.assert_close(dense.flat(solution.image), matrix @ dense.flat(solution.x))


@pytest.mark.parametrize("name", NAMES)
def test_a_huge_damping_leaves_the_gradient_direction(name: str):
    operator = _made(name)
    v = vector_like(live_model().leaves, seed=1)
    x, g = dense.flat(operator.solve(v, 1e9).x), dense.flat(v)
    assert float(x @ g / (x.norm() * g.norm())) == pytest.approx(1, abs=1e-12)
    assert dense.relative_error(1e9 * x, g) < 1e-6


@pytest.mark.parametrize("name", ["fisher", "diagonal", "ekfac", "cg", "lbfgs"])
def test_the_mean_diagonal_is_that_of_the_sampled_scores(name: str):
    of_scores = float(_matrix("diagonal").diagonal().mean())
    assert _made(name).mean_diagonal == pytest.approx(of_scores, rel=1e-9)


def test_no_curvature_is_the_zero_matrix_and_divides_by_the_damping():
    v = vector_like(live_model().leaves, seed=1)
    solution = Identity().solve(v, 4.0)
    torch.testing.assert_close(dense.flat(solution.x), dense.flat(v) / 4)
    assert float(dense.flat(solution.image).abs().max()) == 0 == Identity().mean_diagonal


@pytest.mark.parametrize("name", ["cg", "lbfgs"])
def test_engines_by_products_stop_at_the_products_allowed(name: str):
    operator = _made(name, max_products=3)
    solution = operator.solve(vector_like(live_model().leaves, seed=1), 1e-4)
    assert (solution.products, solution.status) == (3, "limit")


@pytest.mark.parametrize(("engine", "lora", "full"), [("ekfac", 13, 15), ("fisher", 12, 13), ("identity", 12, 12)])
def test_a_run_of_ten_steps_takes_so_many_passes_and_scores_a_fresh_adapter_twice(engine: str, lora: int, full: int):
    assert passes_at_most(engine, 10, fresh=False) == lora and passes_at_most(engine, 10, fresh=True) == full
