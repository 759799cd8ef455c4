"""Hutch++ against the trace itself."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.curvature.hessian import Hessian
from saferestore.core.curvature.probe import Effort, measure
from saferestore.core.curvature.trace import hutchpp, signs
from saferestore.core.errors import UsageError
from saferestore.core.losses import cross_entropy
from torch import Tensor

from .. import dense
from ..cases import live_model, ragged_batches
from . import given

DECAYING = torch.logspace(0, -2, 100).double()
INDEFINITE = torch.cat([torch.linspace(-1, 1, 90), torch.tensor([20.0] * 5 + [-8.0] * 5)]).double()


@pytest.mark.parametrize("values", [DECAYING, INDEFINITE], ids=["decaying", "indefinite"])
@pytest.mark.parametrize("count", [12, 30])
def test_the_bound_holds_in_at_least_90_of_100_seeds(values: Tensor, count: int) -> None:
    multiply, like = given.products(given.symmetric(values)), given.shapes(100)
    found = [hutchpp(multiply, like, count=count, seed=1000 * seed) for seed in range(100)]
    held = sum(abs(each.value - float(values.sum())) <= each.bound for each in found)
    assert held >= 90
    assert all(each.products <= count for each in found)


@pytest.mark.parametrize("count", [12, 30])
def test_the_bound_is_no_wider_than_students_t_makes_it(count: int) -> None:
    multiply, like = given.products(given.symmetric(DECAYING)), given.shapes(100)
    found = [hutchpp(multiply, like, count=count, seed=1000 * seed) for seed in range(100)]
    error = (sum((each.value - float(DECAYING.sum())) ** 2 for each in found) / 100) ** 0.5
    wide = sum(each.bound for each in found) / 100 / error
    assert wide == pytest.approx({12: 3.18, 30: 2.26}[count], rel=0.3)  # its quantile for 3 and 9 degrees of freedom


def test_the_bound_holds_for_the_hessian_of_a_model() -> None:
    live, batches = live_model(), ragged_batches()
    exact = dense.hessian(lambda theta: dense.cross_entropy(live, theta, batches), dense.flat(live.leaves))
    like = {name: leaf.detach() for name, leaf in live.leaves.items()}
    multiply = given.products(exact)
    held = [abs(each.value - float(exact.trace())) <= each.bound
            for each in (hutchpp(multiply, like, count=30, seed=1000 * seed) for seed in range(100))]
    assert sum(held) >= 90
    one = hutchpp(Hessian(live, [cross_entropy("ce", batches)]).matvec, like, count=30, seed=0)
    assert one.value == pytest.approx(hutchpp(multiply, like, count=30, seed=0).value, rel=1e-8)


def test_the_trace_of_a_probe_is_another_estimate_for_every_seed() -> None:
    multiply, like = given.products(given.symmetric(DECAYING)), given.shapes(100)
    found = [measure(multiply, like, Effort(lanczos=20, eigenvalues=1, probes=1, seed=seed), "hessian").trace
             for seed in range(20)]
    assert len({each.value for each in found}) == 20
    error = torch.tensor([each.value for each in found]).double() - float(DECAYING.sum())
    assert abs(float(error.mean())) < 3 * float(error.std()) / 20**0.5
    assert sum(abs(float(e)) <= each.bound for e, each in zip(error, found, strict=True)) >= 17


def test_a_range_that_the_sketch_holds_has_an_exact_trace() -> None:
    values = torch.cat([torch.tensor([5.0, -2.0, 1.0]), torch.zeros(97)])
    found = hutchpp(given.products(given.symmetric(values)), given.shapes(100), count=30, seed=1)
    assert found.value == pytest.approx(4) and found.bound < 1e-9


def test_the_zero_matrix_has_trace_zero() -> None:
    assert hutchpp(given.products(torch.zeros(8, 8, dtype=torch.float64)), given.shapes(8), count=9, seed=1).value == 0


def test_too_few_products_are_refused() -> None:
    with pytest.raises(UsageError, match="needs 6 products - 5"):
        hutchpp(given.products(torch.zeros(8, 8, dtype=torch.float64)), given.shapes(8), count=5, seed=1)


def test_signs_are_signs_and_repeat_for_a_seed() -> None:
    one, two = signs(given.shapes(40), 3), signs(given.shapes(40), 3)
    assert all(torch.equal(one[n], two[n]) and set(one[n].unique().tolist()) == {-1.0, 1.0} for n in one)
