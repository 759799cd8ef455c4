"""What a checkpoint is, against the model that transformers makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from saferestore.core.checkpoint.identity import adapter_form, identify
from saferestore.core.errors import MismatchError
from transformers import AutoModelForCausalLM

from .tiny import FAMILIES, LLAMA_MODULES, edit_json, save_adapter, save_base


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_checkpoint_is_what_transformers_makes_of_it(family: str, tmp_path: Path) -> None:
    found = identify(save_base(tmp_path / "base", FAMILIES[family][0]), None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert found.architecture == type(model).__name__ and found.adapter is None
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert (found.layers, found.hidden_size, found.vocab_size) == (2, 16, 40)
    assert found.dtypes == {"F32": found.parameters} and not found.chat_template


@pytest.mark.parametrize(("settings", "form"), [({}, "LoRA"), ({"use_rslora": True}, "rsLoRA"),
                                                ({"use_dora": True}, "DoRA")], ids=str)
def test_an_adapter_is_named_by_its_form(settings: dict[str, bool], form: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    found = identify(base, save_adapter(tmp_path / "tuned", base, **settings)).adapter
    assert found is not None and found.form == form and found.rank == 4 and found.alpha == 8
    assert found.modules == dict.fromkeys(sorted(LLAMA_MODULES), 2)
    assert (found.fault is None) == (form != "DoRA")
    assert form != "DoRA" or "use_dora" in str(found.fault)


def test_another_kind_of_adapter_is_named_with_its_fault(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "tuned", save_base(tmp_path / "base"))
    edit_json(folder / "adapter_config.json", peft_type="IA3")
    found = adapter_form(folder)
    assert found.form == "IA3" and "IA3" in str(found.fault)


def test_settings_or_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "tuned", save_base(tmp_path / "base"))
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(MismatchError, match="safetensors"):
        adapter_form(folder)
    (folder / "adapter_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(MismatchError, match="unreadable adapter settings"):
        adapter_form(folder)
