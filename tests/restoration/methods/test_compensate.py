"""Safe Delta: which columns are kept, that the compensation is the least costly, and both ends of the budget."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.checkpoint.session import read_params
from saferestore.core.restoration.methods.activations import grams
from saferestore.core.restoration.methods.compensate import (
    compensated,
    inverse_hessian,
    kept_entries,
    safedelta,
)
from torch import Tensor

from ...cases import WIDTH, live_model
from .given import inputs, weights_of


def problem() -> tuple[Tensor, Tensor]:
    """A change [4, 7] and X X' of correlated inputs."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 7, generator=generator, dtype=torch.float64) @ torch.randn(7, 40, generator=generator).double()
    return torch.randn(4, 7, generator=generator, dtype=torch.float64), x @ x.T


def test_the_inverse_is_that_of_twice_the_gram_matrix_and_a_hundredth_of_its_mean_diagonal() -> None:
    _, gram = problem()
    hessian = 2 * gram + 0.02 * gram.diagonal().mean() * torch.eye(7).double()
    torch.testing.assert_close(inverse_hessian(gram) @ hessian, torch.eye(7).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8, 0.999])
def test_kept_entries_cost_at_most_their_share_and_the_next_one_would_cost_more(share: float) -> None:
    change, gram = problem()
    inverse = inverse_hessian(gram)
    order, count = kept_entries(change, inverse, share)
    assert order.tolist() == sorted(range(7), key=lambda m: -float(inverse[m, m]))
    costs = [float(change[row, m] ** 2 / (2 * inverse[m, m])) for m in order.tolist() for row in range(4)]
    assert sum(costs[:count]) <= share * sum(costs) < sum(costs[:count + 1])


@pytest.mark.parametrize("count", [0, 3, 8, 10, 27])
def test_the_compensation_minimises_the_safety_cost_with_the_kept_entries_held(count: int) -> None:
    change, gram = problem()
    inverse, order = inverse_hessian(gram), torch.tensor([5, 1, 2, 0, 6, 4, 3])
    hessian, kept = torch.linalg.inv(inverse), torch.zeros(4, 7, dtype=torch.bool)
    for place in range(count):
        kept[place % 4, order[place // 4]] = True
    found = compensated(change, inverse, order, count)
    torch.testing.assert_close(found[kept], change[kept])
    slope = (found @ hessian)[~kept]
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-8)


def test_a_little_less_than_the_full_budget_changes_little() -> None:
    change, gram = problem()
    found = compensated(change, inverse_hessian(gram), torch.arange(7), 27)
    changed = (found - change).abs() > 1e-9
    assert changed.sum() == 1 and changed[3, 6]


def test_a_full_budget_returns_the_input_bit_for_bit_and_none_the_base() -> None:
    given = inputs(live_model(rank=WIDTH))
    start, edit = read_params(given.problem.live), safedelta(given)
    assert all(torch.equal(edit(1.0).params[name], t) for name, t in start.items())
    assert all(not change.any() for change in weights_of(edit(0.0).params).values())
    between = edit(0.5)
    assert any(not torch.equal(between.params[name], t) for name, t in start.items())
    assert between.lost == pytest.approx(0, abs=1e-12)


def test_the_safety_cost_is_that_of_the_inputs_on_safe_rows() -> None:
    given = inputs(live_model(rank=WIDTH))
    before, after = (weights_of(params) for params in (read_params(given.problem.live), safedelta(given)(0.3).params))
    for module, gram in grams(given.problem.live, given.data.safe).items():
        inverse = inverse_hessian(gram)
        wanted = compensated(before[module], inverse, *kept_entries(before[module], inverse, 0.3))
        torch.testing.assert_close(after[module], wanted)
