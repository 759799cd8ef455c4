"""Passes that leave out what answers do not need: the same derivatives as by one backward a row, or not used at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from saferestore.core.checkpoint.session import LiveModel, read_params
from saferestore.core.data.batches import Batch, Row, make_batches
from saferestore.core.influence import quick as module
from saferestore.core.influence import rows
from saferestore.core.influence.quick import QuickPasses, common_start, is_mergeable, last_mlp, merged, started
from saferestore.core.influence.rows import by_difference, by_forward_mode, choose_derivative, row_sums
from saferestore.core.losses import answer_logits
from saferestore.core.params import Params
from torch import Tensor, nn

from .. import dense
from ..cases import FAMILIES, leaf_name, live_model, ragged_batches, ragged_rows, vector_like

ROWS = 6
EVERY = pytest.mark.parametrize("family", FAMILIES)


def _case(family: str = "llama", *, start: tuple[int, ...] = ()) -> tuple[LiveModel, list[Batch], Params]:
    """A model with adapters everywhere and ragged rows of differing lengths that begin alike."""
    live = live_model(family, every_module=True)
    found = [Row(row.index, start + row.prompt, row.answer) for row in ragged_rows(ROWS)]
    return live, make_batches(found, batch_size=3, pad_id=0), vector_like(live.leaves, seed=4)


def _products(live: LiveModel, batches: list[Batch], u: Params) -> Tensor:
    """[rows]: gradient of each row's summed loss, one backward a row through dense weights, times u."""
    theta = dense.flat(live.leaves).requires_grad_()
    found = torch.zeros(ROWS, dtype=torch.float64)
    for batch in batches:
        log_p = torch.log_softmax(dense.logits_of(live, theta, batch), 1)
        tokens = list(dense.answer_positions(batch))
        for place, row in enumerate(batch.rows.tolist()):
            value = -sum(log_p[n, label] for n, (at, _, label) in enumerate(tokens) if at == place)
            found[row] = torch.autograd.grad(value, theta, retain_graph=True)[0] @ dense.flat(u)
    return found


@EVERY
@pytest.mark.parametrize("start", [(), (7, 3, 9)], ids=["differing", "alike"])
def test_quick_derivatives_are_gradients_times_the_query(family: str, start: tuple[int, ...]):
    live, batches, u = _case(family, start=start)
    before, weights = read_params(live), {name: t.clone() for name, t in live.model.state_dict().items()}
    found = by_difference(live, batches, u, 1e-5, quick=True)
    wanted = _products(live, batches, u)
    assert float((row_sums(found, torch.arange(ROWS))[1] - wanted).norm() / wanted.norm()) < 1e-8
    whole = by_difference(live, batches, u, 1e-5)
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.rows, whole.rows) and torch.equal(found.places, whole.places)
    assert all(torch.equal(before[name], t) for name, t in read_params(live).items())
    assert all(torch.equal(weights[name], t) for name, t in live.model.state_dict().items())
    assert all(leaf.requires_grad for leaf in live.leaves.values())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in live.model.modules())


@EVERY
def test_every_part_is_left_out(family: str):
    live, batches, u = _case(family, start=(7, 3, 9))
    assert is_mergeable(live) and common_start(batches).tolist() == [7, 3, 9]
    mlp, head, inputs, heads, lora = last_mlp(live.model), live.model.get_base_model().lm_head, [], [], []
    assert mlp is not None
    head.register_forward_hook(lambda _, args, __: heads.append(args[0].shape[:2]))  # type: ignore[operator, union-attr]
    linear = next(part for part in mlp.modules() if type(part).__name__ in ("Linear", "Conv1D") and part.weight.shape)
    factor = next(part for name, part in live.model.named_modules() if name.endswith("lora_A.default"))
    linear.register_forward_hook(lambda _, args, __: inputs.append(args[0].shape))
    factor.register_forward_hook(lambda *_: lora.append(1))
    by_difference(live, batches, u, 1e-5, quick=True)
    assert not lora
    answers = [(1, batch.answer_tokens) for batch in batches]
    assert [shape[:2] for shape in inputs] == 2 * [(1, 3), *answers]
    assert heads == 2 * [(1, 1), *answers]


@EVERY
def test_quick_passes_are_chosen_where_they_are_as_near(family: str):
    live, batches, u = _case(family)
    chosen = choose_derivative(live, batches[0], u)
    assert chosen.quick and chosen.length in rows.STEPS and chosen.relative_error < 1e-6
    exact = by_forward_mode(live, batches, u).derivatives
    assert float((chosen(live, batches, u).derivatives - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_whole_passes_do_it_where_quick_ones_fail(monkeypatch: pytest.MonkeyPatch, fault: str):
    live, batches, u = _case()
    if fault == "wrong":  # an earlier block's MLP is not behind the last attention
        first = next(part for name, part in live.model.named_modules() if name.endswith("layers.0.mlp"))
        monkeypatch.setattr(module, "last_mlp", lambda _: first)
    else:
        monkeypatch.setattr(module, "_only_at", _refuse)
    chosen = choose_derivative(live, batches[0], u)
    assert not chosen.quick and chosen.length is not None and chosen.relative_error < 1e-6


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


def _refuse(*_: object) -> Any:
    raise TypeError("an MLP of another build")


def test_an_mlp_that_gives_no_tensor_is_refused():
    mlp = _Pair()
    with module._only_at(mlp, torch.tensor([[True, False]])), pytest.raises(TypeError, match="gives a tuple"):
        mlp(torch.zeros(1, 2, 4))
    with module._only_at(mlp, torch.tensor([[True, False]])), pytest.raises(TypeError, match="does not take"):
        mlp(torch.zeros(1, 2, 4), None)
    assert not mlp._forward_hooks and not mlp._forward_pre_hooks


def _under(**settings: Any) -> LiveModel:
    """A llama under LoRA of other settings."""
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **settings)
    wrapped = get_peft_model(FAMILIES["llama"].make(), config).double()
    generator = torch.Generator().manual_seed(1)
    leaves = {leaf_name(name): p for name, p in sorted(wrapped.named_parameters())
              if ".lora_A." in name or ".lora_B." in name}
    for leaf in leaves.values():
        leaf.data.copy_(0.3 * torch.randn(leaf.shape, generator=generator, dtype=torch.float64))
    return LiveModel(wrapped.eval(), live_model().tokenizer, leaves, torch.device("cpu"))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["alpha", "rslora"])
def test_the_scale_of_the_adapter_is_folded_in(settings: dict[str, Any]):
    live, batches = _under(**settings), ragged_batches(ROWS)
    with torch.no_grad():
        wanted = answer_logits(live.model, batches[0]).logits
        with merged(live):
            found = answer_logits(live.model, batches[0]).logits
    assert is_mergeable(live)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=["dora", "saved"])
def test_adapters_of_another_kind_are_not_folded_in_and_scored_all_the_same(settings: dict[str, Any]):
    live, batches = _under(**settings), ragged_batches(ROWS)
    u = vector_like(live.leaves, seed=4)
    assert not is_mergeable(live)
    found, whole = (by_difference(live, batches, u, 1e-5, quick=way) for way in (True, False))
    torch.testing.assert_close(found.losses, whole.losses, rtol=1e-12, atol=1e-12)


def test_weights_of_16_bits_and_too_little_memory_are_not_folded_in(monkeypatch: pytest.MonkeyPatch):
    live, _, _ = _case()
    monkeypatch.setattr(module, "is_small", lambda size, device: False)
    assert not is_mergeable(live)
    monkeypatch.undo()
    live.model.to(torch.bfloat16)
    assert not is_mergeable(live)


def test_a_matrix_that_is_also_the_embedding_serves_it_unchanged():
    model = FAMILIES["llama"].make()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")).double().eval()
    head = model.lm_head  # type: ignore[attr-defined]
    head.base_layer.weight = model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    leaves = {leaf_name(name): p for name, p in sorted(wrapped.named_parameters()) if "lora_" in name}
    live, batches = LiveModel(wrapped, live_model().tokenizer, leaves, torch.device("cpu")), ragged_batches(ROWS)
    for leaf in leaves.values():
        leaf.data.copy_(torch.randn(leaf.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    with torch.no_grad():
        wanted = answer_logits(wrapped, batches[0]).logits
        with merged(live):
            torch.testing.assert_close(answer_logits(wrapped, batches[0]).logits, wanted)
    assert head.base_layer.weight is model.get_input_embeddings().weight  # type: ignore[operator, union-attr]


def test_a_head_that_does_not_give_the_logits_is_refused_and_one_that_is_unknown_runs_on_all():
    live, batches, _ = _case()
    with torch.no_grad():
        wanted = answer_logits(live.model, batches[0])
        found = QuickPasses(live.model, None, None, None).answer_logits(batches[0])
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-12, atol=1e-12)
        assert torch.equal(found.labels, wanted.labels) and torch.equal(found.rows, wanted.rows)
        with pytest.raises(TypeError, match="logits of shape"):
            QuickPasses(live.model, None, nn.Linear(1, 1), None).answer_logits(batches[0])


def test_a_common_start_ends_before_the_first_answer_and_where_rows_part():
    same = [Row(0, (5, 6, 7), (8,)), Row(1, (5, 6, 7), (8, 9))]
    assert common_start(make_batches(same, batch_size=2, pad_id=0)).tolist() == [5, 6]
    parted = [*same, Row(2, (5, 4, 7, 7), (8,))]
    assert common_start(make_batches(parted, batch_size=2, pad_id=0)).tolist() == [5]
    assert not len(common_start(make_batches([*same, Row(2, (5,), (8,))], batch_size=1, pad_id=0)))


def test_a_model_without_keys_and_values_starts_from_nothing():
    class Bare(nn.Linear):
        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return object()

    assert started(Bare(1, 1), torch.tensor([3])) is None
    assert started(live_model().model, torch.tensor([], dtype=torch.long)) is None


def test_a_row_that_is_not_finite_stays_its_own():
    live, batches, u = _case()
    weight = live.model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    odd = 30
    spoilt = [replace(batch, input_ids=batch.input_ids.clamp(max=odd - 1)) for batch in batches]
    spoilt[0].input_ids[0, 0] = odd
    with torch.no_grad():
        weight[odd] = float("nan")
    found = row_sums(by_difference(live, spoilt, u, 1e-5, quick=True), torch.arange(ROWS))[1]
    bad = torch.isnan(found)
    assert bad.tolist() == [row == int(spoilt[0].rows[0]) for row in range(ROWS)]
