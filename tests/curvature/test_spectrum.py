"""Lanczos against dense eigenvalues."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.curvature.hessian import Hessian
from saferestore.core.curvature.spectrum import Basis, ends, lanczos
from saferestore.core.losses import cross_entropy
from saferestore.core.params import axpy, dot, gaussian, norm
from torch import Tensor

from .. import dense
from ..cases import live_model, ragged_batches
from . import given


def top(matrix: Tensor, count: int) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)[:count]


def test_the_five_largest_eigenvalues_of_a_hessian_are_exact_to_a_millionth() -> None:
    live, batches = live_model(), ragged_batches()
    exact = dense.hessian(lambda theta: dense.cross_entropy(live, theta, batches), dense.flat(live.leaves))
    operator = Hessian(live, [cross_entropy("ce", batches)], way="kept")
    start = gaussian({name: leaf.detach() for name, leaf in live.leaves.items()}, 1)
    found = ends(lanczos(operator.matvec, start, 60), 5)
    wanted = torch.linalg.eigvalsh(exact)
    assert torch.tensor([p.value for p in found.largest]).allclose(wanted.flip(0)[:5].float(), rtol=1e-6)
    assert [p.value for p in found.largest] == pytest.approx(wanted.flip(0)[:5].tolist(), rel=1e-6)
    assert [p.value for p in found.smallest] == pytest.approx(wanted[:5].tolist(), rel=1e-6)
    assert operator.products == 60


def test_the_five_largest_eigenvalues_of_a_gauss_newton_matrix_are_exact_to_a_millionth() -> None:
    live, batches = live_model(), ragged_batches()
    operator = GaussNewton(live, [cross_entropy("ce", batches)], keep_graph=True)
    start = gaussian({name: leaf.detach() for name, leaf in live.leaves.items()}, 1)
    found = ends(lanczos(operator.matvec, start, 40), 5)
    assert [p.value for p in found.largest] == pytest.approx(top(dense.gauss_newton(live, batches), 5).tolist(),
                                                             rel=1e-6)


def spread(count: int = 80) -> Tensor:
    return torch.cat([torch.tensor([-3.0, -1.0, 5.0, 7.0, 40.0]), torch.logspace(-4, 0, count - 5)]).double()


@pytest.mark.parametrize("steps", [8, 20, 60])
def test_an_eigenvalue_lies_within_the_stated_error_of_every_value(steps: int) -> None:
    values = spread()
    found = ends(lanczos(given.products(given.symmetric(values)), gaussian(given.shapes(80), 1), steps), 4)
    assert len(found.largest) == len(found.smallest) == 4
    for pair in (*found.largest, *found.smallest):
        assert float((values - pair.value).abs().min()) <= pair.error + 1e-9


def test_vectors_are_eigenvectors_of_length_one() -> None:
    multiply = given.products(given.symmetric(spread()))
    found = ends(lanczos(multiply, gaussian(given.shapes(80), 1), 60), 3)
    for pair in (*found.largest, *found.smallest):
        v = found.vector(pair)
        assert norm(v) == pytest.approx(1)
        assert norm(axpy(-pair.value, v, multiply(v))) == pytest.approx(pair.error, abs=1e-6)


def test_converged_values_do_not_come_again() -> None:
    values = torch.cat([torch.tensor([1e4, 1e3]), torch.linspace(0, 1, 78)]).double()
    found = lanczos(given.products(given.symmetric(values)), gaussian(given.shapes(80), 1), 78)
    assert sorted(found.ritz[0], reverse=True)[:2] == pytest.approx([1e4, 1e3], rel=1e-10)
    assert sorted(found.ritz[0], reverse=True)[2] <= 1 + 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_invariant_subspace_ends_the_iteration(dtype: torch.dtype) -> None:
    values = torch.cat([torch.zeros(36), torch.tensor([1.0, 2.0, 3.0, 4.0])])
    found = lanczos(given.products(given.symmetric(values)), gaussian(given.shapes(40, dtype), 1), 30)
    assert len(found.diagonal) == 5 and found.last == 0
    assert sorted(found.ritz[0]) == pytest.approx([0, 1, 2, 3, 4], abs=1e-5)


def test_no_more_steps_are_taken_than_there_are_dimensions() -> None:
    found = lanczos(given.products(given.symmetric(torch.arange(1.0, 9.0))), gaussian(given.shapes(8), 1), 30)
    assert sorted(found.ritz[0]) == pytest.approx(list(range(1, 9)))


def test_ends_never_show_a_pair_twice() -> None:
    iteration = lanczos(given.products(given.symmetric(spread())), gaussian(given.shapes(80), 1), 5)
    found = ends(iteration, 4)
    assert len(found.largest) == 3 and len(found.smallest) == 2


def test_an_avoided_vector_is_out_of_the_iteration() -> None:
    multiply = given.products(given.symmetric(spread()))
    full = ends(lanczos(multiply, gaussian(given.shapes(80), 1), 80), 1)
    known = Basis(given.shapes(80), 1)
    known.append(full.vector(full.largest[0]))
    rest = ends(lanczos(multiply, gaussian(given.shapes(80), 2), 79, avoid=known), 1)
    assert rest.largest[0].value == pytest.approx(7)
    assert abs(dot(rest.vector(rest.largest[0]), full.vector(full.largest[0]))) < 1e-6


def test_no_error_is_stated_below_a_rounding_of_the_largest() -> None:
    values = torch.cat([torch.tensor([50.0]), torch.linspace(0, 1, 39)])
    found = ends(lanczos(given.products(given.symmetric(values)), gaussian(given.shapes(40, torch.float32), 1), 40), 1)
    assert found.largest[0].error >= 50 * torch.finfo(torch.float32).eps * 0.99
