"""Live models: the tuned one, the base, what lies between, and never two in memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from saferestore.core.checkpoint import session as session_module
from saferestore.core.checkpoint.loading import load_model, load_tokenizer
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import Session, leaf_names, open_session, read_params, write_params
from saferestore.core.errors import MismatchError, SaferestoreError, UsageError
from saferestore.core.geometry.delta import deltas
from torch import nn
from transformers import LlamaForCausalLM

from .conftest import Saved
from .tiny import IDS, deepseek, edit_tensors, gpt2, llama, logits, peft_logits, plain_logits, save_base

KINDS = ("adapter", "full")


def _session(saved: Saved, kind: str, **settings: object) -> Session:
    return open_session(open_pair(str(saved.base), str(getattr(saved, kind))), **settings)


def _tuned_logits(saved: Saved, kind: str) -> torch.Tensor:
    return peft_logits(saved.base, saved.adapter) if kind == "adapter" else plain_logits(saved.full)


def _shift(session: Session) -> None:
    """Move every adapter parameter, as a restoration does."""
    live = session.adapter()
    write_params(live, {name: t + 0.05 for name, t in read_params(live).items()})


@pytest.mark.parametrize("kind", KINDS)
def test_the_live_model_is_the_tuned_model(family: Saved, kind: str) -> None:
    live = _session(family, kind).adapter()
    torch.testing.assert_close(logits(live.model), _tuned_logits(family, kind), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_inside_base_the_model_is_the_base_and_outside_the_tuned_one_again(family: Saved, kind: str) -> None:
    session = _session(family, kind)
    before = logits(session.adapter().model)
    with session.base() as base:
        assert torch.equal(logits(base), plain_logits(family.base))
        assert base.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2).shape[1] == 8
    assert torch.equal(logits(session.adapter().model), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_blend_is_exact_at_both_ends_and_leaves_no_trace(family: Saved, kind: str, alpha: float) -> None:
    session = _session(family, kind)
    live = session.adapter()
    before, params = logits(live.model), read_params(live)
    with session.blend(alpha) as blended:
        found = logits(blended.model)
    assert torch.equal(found, plain_logits(family.base) if alpha else before)
    assert torch.equal(logits(live.model), before)
    assert all(torch.equal(leaf, params[name]) for name, leaf in live.leaves.items())


def test_a_base_that_was_saved_without_its_head_is_blended_to_like_any(tmp_path: Path) -> None:
    base, full = save_base(tmp_path / "base", gpt2), save_base(tmp_path / "full", gpt2, seed=5)
    wanted = plain_logits(base)
    edit_tensors(base / "model.safetensors",  # as GPT-2's own files are
                 lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    pair = open_pair(str(base), str(full))
    with open_session(pair, between=True).blend(1.0) as blended:
        assert torch.equal(logits(blended.model), wanted)
    twin = save_base(tmp_path / "twin", gpt2)
    assert [d.norm for d in deltas(pair)] == pytest.approx(
        [d.norm for d in deltas(open_pair(str(twin), str(full)))], rel=1e-6)


def test_layers_that_no_model_reads_may_be_in_one_checkpoint_alone(tmp_path: Path) -> None:
    base, full = save_base(tmp_path / "base", deepseek), save_base(tmp_path / "full", deepseek, seed=5)
    edit_tensors(base / "model.safetensors",  # predicts a token further, and is lost when a model is saved
                 lambda tensors: tensors | {"model.layers.61.eh_proj.weight": torch.zeros(16, 32)})
    with open_session(open_pair(str(base), str(full))).base() as model:
        assert torch.equal(logits(model), plain_logits(base))
    edit_tensors(base / "model.safetensors", lambda tensors: tensors | {"model.layers.60.eh_proj.weight": IDS.float()})
    with pytest.raises(MismatchError, match="only in the base model.layers.60.eh_proj.weight"):
        open_pair(str(base), str(full))


def test_a_blend_between_moves_every_weight_by_that_share(family: Saved) -> None:
    session = _session(family, "full")
    model = session.adapter().model.get_base_model()
    base, full = (load_model(folder, session.placement).state_dict() for folder in (family.base, family.full))
    with session.blend(0.3):
        for name, weight in model.state_dict().items():
            plain = name.replace(".base_layer.", ".")
            if plain in base and ".lora_" not in name:
                torch.testing.assert_close(weight, torch.lerp(full[plain], base[plain], 0.3))


def test_a_restored_adapter_is_blended_away_too(saved: Saved) -> None:
    for kind in KINDS:
        session = _session(saved, kind)
        _shift(session)
        with session.blend(1.0) as blended:
            assert torch.equal(logits(blended.model), plain_logits(saved.base))


def test_a_blend_restores_after_an_error(saved: Saved) -> None:
    session = _session(saved, "full")
    before = logits(session.adapter().model)
    with pytest.raises(ZeroDivisionError), session.blend(0.5):
        raise ZeroDivisionError
    assert torch.equal(logits(session.adapter().model), before)


def test_weights_that_are_not_in_memory_cannot_be_blended_and_say_so(saved: Saved) -> None:
    session = _session(saved, "full", between=True)
    session.adapter().model.get_base_model().model.norm.to("meta")
    with pytest.raises(MismatchError, match="1 weights are not in memory, e.g. model.norm"), session.blend(0.5):
        pass
    session.placement = replace(session.placement, load_in="4bit")
    with pytest.raises(MismatchError, match="--load-in 4bit"):
        session.check_blend()
    adapted = _session(saved, "adapter")
    adapted.placement = session.placement
    adapted.check_blend()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_offloaded_layers_is_refused(
        saved: Saved, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its factors would be on no device, and forward passes wrong without a word."""
    where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
             "model.rotary_emb": "cpu", "lm_head": "cpu"}
    monkeypatch.setattr(session_module, "load_model", lambda *given: dispatch_model(
        load_model(*given), where, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True))
    with pytest.raises(UsageError, match=r"offloaded layers has no weights, e\.g\. model\.layers\.1.* --device-map"):
        _session(saved, kind).adapter()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapters_leaves_are_trainable_sorted_and_float32(family: Saved, kind: str) -> None:
    session = _session(family, kind)
    live = session.adapter()
    trainable = {id(p) for p in live.model.parameters() if p.requires_grad}
    assert trainable == {id(leaf) for leaf in live.leaves.values()}
    assert list(live.leaves) == sorted(live.leaves) == leaf_names(session.pair)
    assert {leaf.dtype for leaf in live.leaves.values()} == {torch.float32}
    assert not any(module.training for module in live.model.modules())
    with session.base():
        pass
    assert all(leaf.requires_grad for leaf in session.adapter().leaves.values())


def test_a_bfloat16_model_has_a_float32_adapter_and_a_float64_model_a_float64_one(saved: Saved) -> None:
    for dtype, adapter in (("bfloat16", torch.float32), ("float64", torch.float64)):
        live = _session(saved, "adapter", dtype=dtype).adapter()
        assert {leaf.dtype for leaf in live.leaves.values()} == {adapter}
        assert logits(live.model).isfinite().all()


def test_leaf_names_name_the_module_they_act_on(saved: Saved) -> None:
    live = _session(saved, "adapter").adapter()
    name = "model.layers.0.mlp.down_proj.lora_A.weight"
    layer = live.model.get_base_model().get_submodule("model.layers.0.mlp.down_proj")
    assert live.leaves[name] is layer.lora_A["default"].weight
    assert live.leaves[name].shape == (8, 24)
    assert layer.scaling["default"] == 1.0


def test_reading_copies_and_writing_is_in_place(saved: Saved) -> None:
    live = _session(saved, "adapter").adapter()
    params, leaves = read_params(live), dict(live.leaves)
    write_params(live, {name: t * 0 for name, t in params.items()})
    assert all(live.leaves[name] is leaves[name] for name in leaves)
    assert all(t.any() for t in params.values())
    assert torch.equal(logits(live.model), plain_logits(saved.base))
    with pytest.raises(KeyError):
        write_params(live, {})


def test_a_fresh_adapter_is_seeded_has_b_zero_and_leaves_the_callers_random_numbers_alone(saved: Saved) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = read_params(_session(saved, "full", seed=1).adapter())
    assert torch.equal(torch.rand(3), expected)
    again, other = (read_params(_session(saved, "full", seed=seed).adapter()) for seed in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert not any(t.any() for name, t in first.items() if "lora_B" in name)
    a = first["model.layers.0.mlp.down_proj.lora_A.weight"]
    assert a.abs().max() <= 24 ** -0.5
    assert a.std() == pytest.approx(24 ** -0.5 / 3 ** 0.5, rel=0.1)


def _models_in_memory() -> int:
    """Models that the collector knows, as they stand: a session has to collect for itself."""
    return sum(type(thing) is LlamaForCausalLM for thing in gc.get_objects())


@pytest.mark.parametrize("kind", KINDS)
def test_never_two_models_are_in_memory(saved: Saved, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    others = _models_in_memory()
    before_loading: list[int] = []

    def counted(*arguments: object) -> nn.Module:
        before_loading.append(_models_in_memory() - others)
        return load_model(*arguments)

    monkeypatch.setattr(session_module, "load_model", counted)
    session = _session(saved, kind)
    held = session.adapter()  # a caller that keeps the live model must not keep its weights
    held.model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2)
    for _ in range(2):
        with session.base():
            assert _models_in_memory() - others == 1
        if kind == "full":
            assert _models_in_memory() - others == 0
        session.adapter()
        assert _models_in_memory() - others == 1
    assert before_loading == ([0] if kind == "adapter" else [0] * 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_model_is_the_same_object_with_the_same_leaves_and_values(saved: Saved, kind: str) -> None:
    session = _session(saved, kind)
    _shift(session)
    live, leaves = session.adapter(), dict(session.adapter().leaves)
    before = logits(live.model)
    session.release()
    assert session.adapter() is live
    assert torch.equal(logits(live.model), before)
    assert all(live.leaves[name] is leaves[name] for name in leaves)
    logits_again = live.model(input_ids=IDS).logits
    gradients = torch.autograd.grad(logits_again.square().sum(), list(live.leaves.values()))
    assert any(g.any() for g in gradients)


def test_the_base_of_a_full_pair_can_come_first(saved: Saved) -> None:
    session = _session(saved, "full")
    with session.base() as base:
        assert torch.equal(logits(base), plain_logits(saved.base))
    assert torch.equal(logits(session.adapter().model), plain_logits(saved.full))


def test_the_tuned_model_is_refused_while_the_base_is_in_memory(saved: Saved) -> None:
    session = _session(saved, "full")
    with session.base():
        with pytest.raises(SaferestoreError, match="two full models"):
            session.adapter()
        with pytest.raises(SaferestoreError, match="two full models"), session.base():
            pass
    assert session.adapter()


def test_the_base_leaves_memory_after_an_error_inside(saved: Saved) -> None:
    session = _session(saved, "full")
    with pytest.raises(ZeroDivisionError), session.base():
        raise ZeroDivisionError
    assert torch.equal(logits(session.adapter().model), plain_logits(saved.full))


def test_the_tokenizer_and_kind_are_the_pairs(saved: Saved) -> None:
    session = _session(saved, "adapter")
    assert session.kind == "lora"
    assert session.tokenizer.get_vocab() == load_tokenizer(saved.base).get_vocab()
    assert session.adapter().device.type == "cpu"


def test_sharded_checkpoints_load_and_blend_like_single_ones(saved: Saved, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama, max_shard_size="5KB")
    full = save_base(tmp_path / "full", llama, seed=5, max_shard_size="5KB")
    session = open_session(open_pair(str(base), str(full)))
    assert torch.equal(logits(session.adapter().model), plain_logits(saved.full))
    with session.blend(1.0) as blended:
        assert torch.equal(logits(blended.model), plain_logits(saved.base))
