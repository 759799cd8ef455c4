"""Every LoRA form that PEFT writes: folded exactly, or refused by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import VeraConfig, get_peft_model
from saferestore.core.checkpoint.adapter import (
    CONFIG_FILE,
    SETTINGS_WITHOUT_LORA_FORM,
    UNMERGEABLE,
    WEIGHTS_FILE,
    read_adapter,
    scaling,
)
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.quiet import quiet
from saferestore.core.checkpoint.session import open_session
from saferestore.core.errors import MismatchError
from transformers import AutoModelForCausalLM

from .conftest import Saved
from .tiny import edit_json, edit_tensors, logits, peft_logits, plain_logits, qwen2, save_adapter, save_base

Q0 = "model.layers.0.self_attn.q_proj"
PREFIX = f"base_model.model.{Q0}"

EXACT_FORMS: dict[str, dict[str, object]] = {
    "plain": {},
    "alpha unlike rank": {"r": 3, "lora_alpha": 17},
    "rsLoRA": {"use_rslora": True, "r": 5},
    "rank pattern": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 11}},
    "alpha pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 3, "v_proj": 40}},
    "both patterns and rsLoRA": {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"down_proj": 1}, "use_rslora": True},
    "patterns as expressions": {"rank_pattern": {r"^model\.layers\.1\..*q_proj": 7}, "alpha_pattern": {".*_proj": 5}},
    "modules by an expression": {"target_modules": r".*layers\.1\..*(q|k)_proj"},
    "all linear modules": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded modules": {"exclude_modules": ["v_proj"]},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
    "dropout": {"lora_dropout": 0.5},
    "biases asked for where the base has none": {"bias": "all"},
}


@pytest.mark.parametrize("form", EXACT_FORMS)
def test_a_folded_adapter_gives_the_logits_that_peft_gives(form: str, saved: Saved, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", saved.base, **EXACT_FORMS[form])
    expected = peft_logits(saved.base, adapter)
    assert (expected - plain_logits(saved.base)).abs().max() > 1e-3
    live = open_session(open_pair(str(saved.base), str(adapter))).adapter()
    torch.testing.assert_close(logits(live.model), expected, atol=1e-6, rtol=0)


def test_every_family_gives_the_logits_that_peft_gives(family: Saved) -> None:
    live = open_session(open_pair(str(family.base), str(family.adapter))).adapter()
    torch.testing.assert_close(logits(live.model), peft_logits(family.base, family.adapter), atol=1e-6, rtol=0)


def test_ranks_are_padded_to_one_and_the_written_ones_are_kept(saved: Saved, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", saved.base, r=4, rank_pattern={"q_proj": 9})
    adapter = read_adapter(folder)
    assert adapter.rank == 16
    assert {a.shape[0] for a, _ in adapter.factors.values()} == {16}
    assert set(adapter.source_ranks.values()) == {4, 9}
    assert adapter.base_name == str(saved.base)


def test_scaling_is_alpha_over_rank_or_over_its_root() -> None:
    assert scaling("x.q", {"r": 16, "lora_alpha": 8}) == (16, 0.5)
    assert scaling("x.q", {"r": 16, "lora_alpha": 8, "use_rslora": True}) == (16, 2.0)
    rank, factor = scaling("x.q", {"r": 16, "lora_alpha": 8, "rank_pattern": {"q": 3}, "use_rslora": True})
    assert (rank, factor) == (3, 8 / math.sqrt(3))


def test_half_precision_adapters_are_read_as_float32(mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE, lambda ts: {n: t.bfloat16() for n, t in ts.items()})
    assert {t.dtype for pair in read_adapter(mine.adapter).factors.values() for t in pair} == {torch.float32}


def test_an_adapter_with_all_b_zero_is_a_warning(mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE, lambda ts: {n: t * ("lora_A" in n) for n, t in ts.items()})
    assert [code for code, _ in read_adapter(mine.adapter).warnings] == ["W_NOOP"]


def _refused(folder: Path, words: str) -> MismatchError:
    with pytest.raises(MismatchError, match=words) as caught:
        read_adapter(folder)
    assert caught.value.exit_code == 5
    return caught.value


@pytest.mark.parametrize("setting", SETTINGS_WITHOUT_LORA_FORM)
def test_each_setting_without_a_lora_form_is_refused_by_name(setting: str, mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, **{setting: [1]})
    error = _refused(mine.adapter, setting)
    assert ("merge_and_unload" in error.hint) != (setting in UNMERGEABLE)


@pytest.mark.parametrize(("kind", "mergeable"), [("IA3", True), ("VERA", True), ("PROMPT_TUNING", False),
                                                 ("PREFIX_TUNING", False), ("ADAPTION_PROMPT", False), ("new", False)])
def test_adapters_of_other_kinds_are_refused_and_only_what_can_be_merged_is_to_be(kind: str, mergeable: bool,
                                                                                  mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, peft_type=kind)
    error = _refused(mine.adapter, f"the adapter is {kind.upper()}, not LoRA")
    assert ("merge_and_unload" in error.hint) == mergeable


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "something new"])
def test_starts_that_change_the_base_are_refused(start: str, mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, init_lora_weights=start)
    _refused(mine.adapter, f"init_lora_weights={start}")


REFUSED_FORMS: dict[str, tuple[dict[str, object], str]] = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "replaced modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "LoRA biases": ({"lora_bias": True}, "lora_bias"),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, "embed"),
    "trained tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
}


@pytest.mark.parametrize("form", REFUSED_FORMS)
def test_forms_that_peft_writes_without_a_lora_form_are_refused_by_name(form: str, saved: Saved,
                                                                        tmp_path: Path) -> None:
    settings, words = REFUSED_FORMS[form]
    _refused(save_adapter(tmp_path / "adapter", saved.base, **settings), words)


def test_saved_biases_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", qwen2)
    _refused(save_adapter(tmp_path / "adapter", base, bias="lora_only"), "bias")


def test_other_kinds_of_adapter_are_refused_by_name(saved: Saved, tmp_path: Path) -> None:
    with quiet():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(saved.base), VeraConfig(target_modules=["o_proj"]))
        model.save_pretrained(str(tmp_path / "vera"))
    _refused(tmp_path / "vera", "VERA, not LoRA")


EXTRA_TENSORS = {
    f"{PREFIX}.lora_magnitude_vector.weight": "a DoRA magnitude",
    "base_model.model.model.embed_tokens.lora_embedding_A": "an adapted embedding",
    "base_model.model.lm_head.modules_to_save.weight": "a replaced module",
    f"{PREFIX}.lora_B.bias": "lora_bias",
    f"{PREFIX}.base_layer.bias": "a trained bias",
    "base_model.model.model.embed_tokens.weight": "saved embedding rows",
    "base_model.model.lm_head.base_layer.weight": "a saved weight of the base",
    "base_model.model.lm_head.weight": "keys not of PEFT's form",
    f"{Q0}.lora_A.weight": "keys not of PEFT's form",
    f"{PREFIX}.lora_A.default.weight": "keys not of PEFT's form",
}


@pytest.mark.parametrize("name", EXTRA_TENSORS)
def test_a_tensor_that_no_plain_adapter_has_is_refused_by_name(name: str, mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE, lambda ts: ts | {name: torch.ones(4, 4)})
    assert name in _refused(mine.adapter, EXTRA_TENSORS[name]).what


def test_keys_without_the_prefix_are_shown_with_three_examples(mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE,
                 lambda ts: {n.removeprefix("base_model.model."): t for n, t in ts.items()})
    error = _refused(mine.adapter, "keys not of PEFT's form")
    assert error.what.count("lora_A.weight") + error.what.count("lora_B.weight") == 4  # three, and the form expected


def test_a_module_with_only_one_factor_is_refused(mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE,
                 lambda ts: {n: t for n, t in ts.items() if n != f"{PREFIX}.lora_B.weight"})
    _refused(mine.adapter, f"1 modules with only one of lora_A and lora_B: {Q0}")


def test_an_adapter_without_tensors_is_refused(mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE, lambda _: {})
    _refused(mine.adapter, "no LoRA tensors")


@pytest.mark.parametrize("change", [{"r": 6}, {"rank_pattern": {"q_proj": 2}}])
def test_settings_of_another_rank_than_the_weights_are_refused(change: dict[str, object], mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, **change)
    _refused(mine.adapter, "expected of")


def test_factors_that_are_no_matrices_are_refused(mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE, lambda ts: {n: t[..., None, None] for n, t in ts.items()})
    _refused(mine.adapter, "expected of")


def test_nan_in_an_adapter_is_refused_by_name(mine: Saved) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[f"{PREFIX}.lora_B.weight"][0, 0] = float("nan")
        return tensors

    edit_tensors(mine.adapter / WEIGHTS_FILE, spoil)
    _refused(mine.adapter, f"NaN or infinite values in {PREFIX}")


def test_a_truncated_adapter_is_refused(mine: Saved) -> None:
    file = mine.adapter / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-9])
    _refused(mine.adapter, "truncated")


def test_a_pickled_adapter_is_refused_with_the_conversion_command(mine: Saved) -> None:
    (mine.adapter / WEIGHTS_FILE).rename(mine.adapter / "adapter_model.bin")
    assert "weights_only=True" in _refused(mine.adapter, "pickled").hint


def test_an_adapter_without_weights_is_refused(mine: Saved) -> None:
    (mine.adapter / WEIGHTS_FILE).unlink()
    _refused(mine.adapter, f"no {WEIGHTS_FILE}")
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin"):  # a trainer's, and no weights
        (mine.adapter / name).touch()
    _refused(mine.adapter, f"no {WEIGHTS_FILE}")


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_unreadable_settings_are_refused(text: str, mine: Saved) -> None:
    (mine.adapter / CONFIG_FILE).write_text(text, encoding="utf-8")
    _refused(mine.adapter, "unreadable adapter settings")
