"""Losses and their gradients against formulas written out token by token."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from saferestore.core import losses
from saferestore.core.checkpoint.session import LiveModel, read_params, write_params
from saferestore.core.curvature.ggn import GaussNewton
from saferestore.core.data.batches import Batch, Row, make_batches
from saferestore.core.errors import NumericalError
from saferestore.core.params import scale
from saferestore.core.restoration.methods.train import partial_gradient
from torch import Tensor, nn

from . import dense
from .cases import FAMILIES, VOCAB, live_model, live_model_frozen_in, moved, ragged_batches, ragged_rows, vector_like

SIZES = (1, 2, 3, 7)


def _reference(live: LiveModel, batches: list[Batch]) -> list[Tensor]:
    return [p.log() for p in dense.probabilities(live, batches)]


@pytest.fixture
def live() -> LiveModel:
    return live_model()


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_logits_are_the_ones_that_predict_each_answer_token(family: str):
    live, (batch,) = live_model(family), ragged_batches(4, batch_size=4)
    out = losses.answer_logits(live.model, batch)
    torch.testing.assert_close(out.logits, dense.logits_of(live, dense.flat(live.leaves), batch))
    assert out.labels.tolist() == dense.labels_of(batch)
    assert out.rows.tolist() == [int(batch.rows[place]) for place, _, _ in dense.answer_positions(batch)]


def test_the_vocabulary_projection_runs_only_where_some_row_has_an_answer(live: LiveModel):
    batch = make_batches([Row(0, (3,) * 9, (4, 5)), Row(1, (6,) * 8, (7,))], batch_size=2, pad_id=0)[0]
    seen = []
    live.model.get_base_model().lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    losses.answer_logits(live.model, batch)
    assert seen == [3]  # positions 7, 8 and 9 of 11


class _Plain(nn.Module):
    """A model whose forward knows nothing of `logits_to_keep`, in a type of its own choice."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return SimpleNamespace(logits=out.logits.to(self.dtype))


def test_a_model_that_cannot_skip_positions_gives_the_same_logits(live: LiveModel):
    batch = ragged_batches(4)[0]
    wanted = losses.answer_logits(live.model, batch).logits
    torch.testing.assert_close(losses.answer_logits(_Plain(live.model, torch.float64), batch).logits, wanted)


def test_half_precision_logits_are_raised_to_float32(live: LiveModel):
    out = losses.answer_logits(_Plain(live.model, torch.bfloat16), ragged_batches(4)[0])
    assert out.logits.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", SIZES)
def test_cross_entropy_is_the_mean_over_tokens_for_every_batch_size(family: str, batch_size: int):
    live, batches = live_model(family), ragged_batches(7, batch_size=batch_size)
    wanted = dense.cross_entropy(live, dense.flat(live.leaves), ragged_batches(7, batch_size=7))
    assert losses.cross_entropy("ce", batches).value(live.model) == pytest.approx(float(wanted), rel=1e-10)


def test_a_mean_over_sequences_would_be_another_number(live: LiveModel):
    batches = ragged_batches(7)
    sums, tokens = losses.row_losses(live.model, batches)
    by_sequence = float((sums / tokens).mean())
    assert abs(by_sequence / losses.cross_entropy("ce", batches).value(live.model) - 1) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_written_out_loss(family: str):
    live, batches = live_model(family, every_module=True), ragged_batches(5)
    value, found = losses.gradient(live, losses.cross_entropy("ce", batches))
    theta = dense.flat(live.leaves)
    wanted = dense.gradient(lambda t: dense.cross_entropy(live, t, batches), theta)
    assert list(found) == list(live.leaves)
    assert dense.relative_error(dense.flat(found), wanted) < 1e-10
    assert value == pytest.approx(float(dense.cross_entropy(live, theta, batches)), rel=1e-10)


@pytest.mark.parametrize("batch_size", SIZES)
def test_the_gradient_does_not_depend_on_the_batch_size(live: LiveModel, batch_size: int):
    _, wanted = losses.gradient(live, losses.cross_entropy("ce", ragged_batches(7, batch_size=7)))
    _, found = losses.gradient(live, losses.cross_entropy("ce", ragged_batches(7, batch_size=batch_size)))
    assert dense.relative_error(dense.flat(found), dense.flat(wanted)) < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("batch_size", SIZES)
def test_divergence_is_the_written_out_sum_for_every_batch_size(live: LiveModel, batch_size: int, temperature: float):
    batches = ragged_batches(7, batch_size=batch_size)
    reference, probabilities = _reference(live, batches), dense.probabilities(live, batches)
    write_params(live, moved(live, by=0.2, seed=5))
    theta = dense.flat(live.leaves)
    wanted = float(dense.divergence(live, theta, batches, probabilities, temperature))
    loss = losses.kl_divergence("D", batches, reference.__getitem__, temperature=temperature)
    value, found = losses.gradient(live, loss)
    assert value == pytest.approx(wanted, rel=1e-9) == loss.value(live.model) and wanted > 0.01
    slope = dense.gradient(lambda t: dense.divergence(live, t, batches, probabilities, temperature), theta)
    assert dense.relative_error(dense.flat(found), slope) < 1e-9


def test_losses_over_the_same_batches_are_measured_from_one_forward_pass(
        live: LiveModel, monkeypatch: pytest.MonkeyPatch):
    batches = ragged_batches(7, batch_size=3)
    reference = _reference(live, batches)
    both = [losses.cross_entropy("ce", batches), losses.kl_divergence("D", batches, reference.__getitem__)]
    write_params(live, moved(live, by=0.2, seed=5))
    wanted, (value, slope) = [loss.value(live.model) for loss in both], losses.gradient(live, both[0])
    calls, run = [], losses.answer_logits
    monkeypatch.setattr(losses, "answer_logits", lambda *given: calls.append(given) or run(*given))
    assert losses.values(live.model, both) == pytest.approx(wanted, rel=1e-12) and len(calls) == len(batches)
    found, others, same = losses.gradient_beside(live, both[0], both[1:])
    assert (found, others) == (value, (pytest.approx(wanted[1], rel=1e-12),)) and len(calls) == 2 * len(batches)
    assert all(torch.equal(same[name], slope[name]) for name in slope)


@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_is_zero_with_zero_gradient_at_the_reference(family: str):
    live, batches = live_model(family), ragged_batches()
    cached = losses.log_probabilities(live.model, batches)
    value, slope = losses.gradient(live, losses.kl_divergence("D", batches, cached.__getitem__))
    assert abs(value) < 1e-14
    assert float(dense.flat(slope).abs().max()) < 1e-14


def test_the_hessian_of_the_divergence_at_the_reference_is_the_fisher_matrix(live: LiveModel):
    batches = ragged_batches()
    reference, exact = dense.probabilities(live, batches), dense.gauss_newton(live, batches)
    written_out = dense.hessian(lambda t: dense.divergence(live, t, batches, reference), dense.flat(live.leaves))
    assert dense.relative_error(written_out, exact) < 1e-9
    loss = losses.kl_divergence("D", batches, losses.log_probabilities(live.model, batches).__getitem__)
    start, v, step = read_params(live), vector_like(live.leaves, seed=1), 1e-5
    slopes = []
    for sign in (1, -1):
        write_params(live, {name: start[name] + sign * step * v[name] for name in v})
        slopes.append(dense.flat(losses.gradient(live, loss)[1]))
    assert dense.relative_error((slopes[0] - slopes[1]) / (2 * step), exact @ dense.flat(v)) < 1e-6


@pytest.mark.parametrize("on_disk", [False, True])
def test_cached_log_probabilities_are_exact_and_sum_to_one(live: LiveModel, on_disk: bool):
    batches = ragged_batches()
    found = losses.log_probabilities(live.model, batches, on_disk=on_disk)
    for log_p, p in zip(found, dense.probabilities(live, batches), strict=True):
        torch.testing.assert_close(log_p.exp(), p, rtol=1e-10, atol=0)
        assert not log_p.requires_grad


@pytest.mark.parametrize(("free", "on_disk"), [(4.0, False), (3.9, True)])
def test_log_probabilities_that_would_fill_a_quarter_of_the_memory_are_in_files(
        live: LiveModel, free: float, on_disk: bool, monkeypatch: pytest.MonkeyPatch):
    batches, kept, store = ragged_batches(batch_size=2), [], losses.scratch_tensor
    sizes = {"SC_AVPHYS_PAGES": free * 8 * VOCAB * losses.answer_tokens(batches), "SC_PAGE_SIZE": 1}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    monkeypatch.setattr(losses, "scratch_tensor", lambda *given, **how: kept.append(how) or store(*given, **how))
    assert len(losses.log_probabilities(live.model, batches)) == len(batches) > 1
    assert kept == [{"on_disk": on_disk}] * len(batches)


@pytest.mark.parametrize("batch_size", SIZES)
def test_row_sums_are_in_row_order_whatever_the_batches(live: LiveModel, batch_size: int):
    rows = ragged_rows(7)
    batches = make_batches(rows, batch_size=batch_size, pad_id=0)
    sums, tokens = losses.row_losses(live.model, batches)
    theta = dense.flat(live.leaves)
    alone = [make_batches([Row(0, row.prompt, row.answer)], batch_size=1, pad_id=0) for row in rows]
    assert tokens.tolist() == [len(row.answer) for row in rows]
    wanted = torch.stack([dense.cross_entropy(live, theta, one) for one in alone]).detach()
    torch.testing.assert_close(sums / tokens, wanted)


def test_row_divergences_add_up_to_the_divergence(live: LiveModel):
    batches = ragged_batches()
    reference = _reference(live, batches)
    write_params(live, moved(live, by=0.2, seed=5))
    sums, tokens = losses.row_divergences(live.model, batches, reference.__getitem__)
    whole = losses.kl_divergence("D", batches, reference.__getitem__).value(live.model)
    assert float(sums.sum() / tokens.sum()) == pytest.approx(whole, rel=1e-12)
    assert bool((sums > 0).all())


def _hinge_by_hand(live: LiveModel, theta: Tensor, rows: list[Row], base: Tensor) -> Tensor:
    terms = []
    for row, target in zip(rows, base, strict=True):
        one = make_batches([Row(0, row.prompt, row.answer)], batch_size=1, pad_id=0)
        terms.append(torch.clamp(target - dense.cross_entropy(live, theta, one), min=0))
    return torch.stack(terms).sum() / len(terms)


@pytest.mark.parametrize("batch_size", SIZES)
def test_the_hinge_is_the_mean_shortfall_of_rows_below_the_base(live: LiveModel, batch_size: int):
    rows = ragged_rows(7)
    sums, tokens = losses.row_losses(live.model, make_batches(rows, batch_size=7, pad_id=0))
    base = sums / tokens + torch.tensor([1.0, -1.0, 2.0, 0.5, -0.5, 3.0, 0.1], dtype=torch.float64)
    loss = losses.hinge("ascent", make_batches(rows, batch_size=batch_size, pad_id=0), base)
    value, found = losses.gradient(live, loss)
    assert value == pytest.approx((1 + 2 + 0.5 + 3 + 0.1) / 7, rel=1e-9)
    wanted = dense.gradient(lambda t: _hinge_by_hand(live, t, rows, base), dense.flat(live.leaves))
    assert dense.relative_error(dense.flat(found), wanted) < 1e-9


def test_the_hinge_is_flat_where_every_row_has_reached_the_base(live: LiveModel):
    batches = ragged_batches()
    loss = losses.hinge("ascent", batches, torch.zeros(6, dtype=torch.float64))
    value, slope = losses.gradient(live, loss)
    assert value == 0 and float(dense.flat(slope).abs().max()) == 0
    assert (loss.target, loss.token_weight) == (0.0, 0.0)


def test_a_total_is_the_sum_of_its_losses_and_of_their_gradients(live: LiveModel):
    first = losses.cross_entropy("a", ragged_batches(5, seed=1))
    second = losses.hinge("b", ragged_batches(4, seed=2), torch.full((4,), 9.0, dtype=torch.float64))
    value, slope = losses.gradient(live, losses.total("S", [first, second]))
    parts = [losses.gradient(live, loss) for loss in (first, second)]
    assert value == pytest.approx(parts[0][0] + parts[1][0], rel=1e-12)
    torch.testing.assert_close(dense.flat(slope), dense.flat(parts[0][1]) + dense.flat(parts[1][1]))


GRADIENTS = {"whole": lambda live, loss: losses.gradient(live, loss)[1],
             "partial": lambda live, loss: partial_gradient(live, ((1.0, loss),), [[0]]),
             "Gauss-Newton product": lambda live, loss: GaussNewton(live, [loss], keep_graph=False).matvec(
                 scale(0.01, vector_like(live.leaves, seed=3)))}


@pytest.mark.parametrize("tokens", [10, 100_000])
@pytest.mark.parametrize("way", GRADIENTS)
def test_a_gradient_in_float16_is_not_lost_in_the_size_of_the_set(way: str, tokens: int):
    """The least number of float16 is 6e-8: a share of many tokens has a gradient below it at each of them."""
    found = []
    for live in (live_model(dtype=torch.float32, every_module=True), live_model_frozen_in(torch.float16)):
        batches = [replace(batch, answer_tokens=tokens) for batch in ragged_batches(batch_size=6)]
        reference = losses.log_probabilities(live.model, batches)
        write_params(live, moved(live, by=0.02, seed=5))
        loss = losses.kl_divergence("D", batches, reference.__getitem__, temperature=2.0)
        found.append(dense.flat(GRADIENTS[way](live, loss)))
    assert dense.relative_error(found[1], found[0]) < 0.05


def test_what_gradients_are_multiplied_by_on_their_way_is_a_power_of_two():
    assert [losses.upscale(count) for count in (0, 1, 2, 7, 8, 1000)] == [1.0, 1.0, 2.0, 4.0, 8.0, 512.0]


def test_losses_leave_no_gradient_on_the_model(live: LiveModel):
    losses.gradient(live, losses.cross_entropy("ce", ragged_batches()))
    assert all(parameter.grad is None for parameter in live.model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_a_numerical_error_with_a_way_out(live: LiveModel, bad: float):
    live.model.get_base_model().model.norm.weight.data[0] = bad
    with pytest.raises(NumericalError, match="`ce`") as caught:
        losses.gradient(live, losses.cross_entropy("ce", ragged_batches()))
    assert "float32" in caught.value.hint


def test_a_gradient_that_is_not_finite_is_caught_even_where_the_loss_is_finite(live: LiveModel):
    batches = ragged_batches()
    root = losses.Loss("root", batches, lambda _, out: ((out.logits - out.logits.detach()) ** 2).sum().sqrt(), 0.0)
    assert root.value(live.model) == 0
    with pytest.raises(NumericalError, match="`root`"):
        losses.gradient(live, root)
