"""Derivatives of rows along a query: differences and forward mode against whole gradients, row by row."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel, read_params
from saferestore.core.data.batches import Batch
from saferestore.core.errors import MismatchError
from saferestore.core.influence import rows as module
from saferestore.core.influence.rows import (
    Derivative,
    by_difference,
    by_forward_mode,
    choose_derivative,
    gradient_norms,
    gradients_along,
    row_sums,
)
from saferestore.core.params import Params, scale
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import dense
from ..cases import FAMILIES, live_model, ragged_batches, vector_like

ROWS = 5


@cache
def _case(family: str = "llama") -> tuple[LiveModel, list[Batch], Params]:
    live = live_model(family)
    return live, ragged_batches(ROWS), vector_like(live.leaves, seed=4)


def _gradients(live: LiveModel, batches: list[Batch]) -> Tensor:
    """[rows, d]: gradient of each row's summed loss, one backward a row."""
    theta = dense.flat(live.leaves).requires_grad_()
    found = torch.zeros(ROWS, len(theta), dtype=torch.float64)
    for batch in batches:
        log_p = torch.log_softmax(dense.logits_of(live, theta, batch), 1)
        tokens = list(dense.answer_positions(batch))
        for place, row in enumerate(batch.rows.tolist()):
            value = -sum(log_p[n, label] for n, (at, _, label) in enumerate(tokens) if at == place)
            found[row] = torch.autograd.grad(value, theta, retain_graph=True)[0]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_is_the_gradient_of_every_row_times_the_query(family: str):
    live, batches, u = _case(family)
    losses, derivatives, tokens = row_sums(by_forward_mode(live, batches, u), torch.arange(ROWS))
    torch.testing.assert_close(derivatives, _gradients(live, batches) @ dense.flat(u))
    assert int(tokens.sum()) == sum(batch.answer_tokens for batch in batches)
    assert float(losses.sum() / tokens.sum()) == pytest.approx(
        float(dense.cross_entropy(live, dense.flat(live.leaves), batches)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_difference_agrees_with_forward_mode_to_1e_6_token_by_token(family: str):
    live, batches, u = _case(family)
    before = read_params(live)
    exact, found = by_forward_mode(live, batches, u), by_difference(live, batches, u, 1e-5)
    assert float((found.derivatives - exact.derivatives).norm() / exact.derivatives.norm()) < 1e-6
    torch.testing.assert_close(found.losses, exact.losses)
    assert torch.equal(found.rows, exact.rows) and torch.equal(found.places, exact.places)
    assert all(torch.equal(before[name], t) for name, t in read_params(live).items())


def test_a_difference_moves_as_far_either_way_as_its_length_in_norms_of_the_adapter(monkeypatch: pytest.MonkeyPatch):
    live, batches, u = _case()
    start, seen = dense.flat(live.leaves).detach(), list[Tensor]()

    def losses(*_: object, **__: object) -> tuple[Tensor, Tensor]:
        seen.append(dense.flat(live.leaves).detach())
        return torch.zeros(1), torch.ones(1)

    monkeypatch.setattr(module, "_losses", losses)
    by_difference(live, batches, u, 0.25)
    way = 0.25 * start.norm() * dense.flat(u) / dense.flat(u).norm()
    torch.testing.assert_close(torch.stack(seen), torch.stack([start + way, start - way]))


def test_tokens_are_numbered_within_their_row():
    live, batches, u = _case()
    found = by_forward_mode(live, batches, u)
    for row in range(ROWS):
        places = found.places[found.rows == row].tolist()
        assert places == list(range(len(places)))


def test_the_length_chosen_is_close_to_forward_mode():
    live, batches, u = _case()
    chosen = choose_derivative(live, batches[0], u)
    assert chosen.length in module.STEPS and chosen.relative_error < 1e-6
    exact = by_forward_mode(live, batches, u)
    assert float((chosen(live, batches, u).derivatives - exact.derivatives).norm() / exact.derivatives.norm()) < 1e-5


def test_forward_mode_does_all_where_no_difference_comes_near(monkeypatch: pytest.MonkeyPatch):
    live, batches, u = _case()
    monkeypatch.setattr(module, "STEPS", (10.0,))
    assert choose_derivative(live, batches[0], u) == Derivative(None, 0.0)
    exact = by_forward_mode(live, batches, u)
    assert torch.equal(Derivative(None, 0.0)(live, batches, u).derivatives, exact.derivatives)


class _NoForwardMode(torch.autograd.Function):
    """The identity, without a forward-mode rule."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def _without_forward_mode(live: LiveModel) -> None:
    """Put such a function behind every block."""
    for block in live.model.get_base_model().model.layers:
        block.register_forward_hook(lambda _, __, output: _NoForwardMode.apply(output))


def test_without_forward_mode_the_length_is_chosen_against_gradients_of_rows(monkeypatch: pytest.MonkeyPatch):
    live = live_model()  # not the one that others share: its blocks are changed
    _, batches, u = _case()
    exact = by_forward_mode(live, batches, u)
    along = torch.zeros(ROWS, dtype=torch.float64)
    for batch in batches:
        along[batch.rows] = gradients_along(live, batch, u)
    torch.testing.assert_close(along, _gradients(live, batches) @ dense.flat(u))
    _without_forward_mode(live)
    with pytest.raises(RuntimeError):
        by_forward_mode(live, batches, u)
    chosen = choose_derivative(live, batches[0], u)
    assert chosen.length in module.STEPS and chosen.relative_error < 1e-6
    assert float((chosen(live, batches, u).derivatives - exact.derivatives).norm() / exact.derivatives.norm()) < 1e-5
    monkeypatch.setattr(module, "STEPS", (10.0,))
    with pytest.raises(MismatchError, match="no forward mode"):
        choose_derivative(live, batches[0], u)


@pytest.mark.parametrize("fault", [AttributeError("batch_repeat_interleave"), IndexError("list index out of range")])
def test_quick_passes_that_a_cache_of_another_kind_breaks_are_left(monkeypatch: pytest.MonkeyPatch, fault: Exception):
    live, batches, u = _case()

    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(module, "quick_passes", broken)
    chosen = choose_derivative(live, batches[0], u)
    assert not chosen.quick and chosen.relative_error < 1e-6


def test_a_query_of_zero_gives_zero():
    live, batches, u = _case()
    chosen = choose_derivative(live, batches[0], scale(0.0, u))
    assert chosen.length == 0.0
    assert not bool(chosen(live, batches, scale(0.0, u)).derivatives.any())


def test_the_norms_of_gradients_are_those_of_one_backward_a_row():
    live, batches, _ = _case()
    torch.testing.assert_close(gradient_norms(live, batches), _gradients(live, batches).norm(dim=1))


class _Peak(TorchDispatchMode):
    """Counts the bytes of tensors made inside, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                size = t.numel() * t.element_size()
                self.now, self.most = self.now + size, max(self.most, self.now + size)
                weakref.finalize(t, self._free, size)
        return out


def test_memory_does_not_grow_with_the_number_of_rows_but_for_some_numbers_a_token():
    live, batches, u = _case()
    most = []
    for times in (1, 4):
        with _Peak() as peak:
            by_difference(live, batches * times, u, 1e-4)
        most.append(peak.most)
    gradient = sum(leaf.numel() * leaf.element_size() for leaf in live.leaves.values())
    bound = 40 * 3 * sum(batch.answer_tokens for batch in batches)
    assert most[1] - most[0] < bound < 3 * ROWS * gradient / 10
