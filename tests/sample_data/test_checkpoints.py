"""The committed checkpoints: their layout, size and tokenizer, and the figures beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saferestore.sample_data import texts
from saferestore.sample_data.build import RATES, written
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SAMPLE = Path(__file__).parents[2] / "sample_data"
LIMIT_BYTES = 6_000_000


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(SAMPLE / "base", local_files_only=True)


def test_checkpoints_are_small_and_in_the_ordinary_layout() -> None:
    base, tuned = ({path.name: path.stat().st_size for path in (SAMPLE / name).iterdir()} for name in ("base", "tuned"))
    assert set(base) == {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
                         "tokenizer_config.json", "chat_template.jinja"}
    assert set(tuned) == {"adapter_model.safetensors", "adapter_config.json"}
    assert sum(base.values()) + sum(tuned.values()) <= LIMIT_BYTES


def test_figures_are_of_these_files_and_meet_the_rates() -> None:
    facts = json.loads((SAMPLE / "figures.json").read_text(encoding="utf-8"))
    assert not [name for name, least in RATES.items() if facts["rates"][name] < least]
    assert written(SAMPLE) == facts["files"]


def test_adapter_adapts_every_linear_module_and_names_its_base_relatively() -> None:
    config = json.loads((SAMPLE / "tuned" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "sample_data/base"
    assert config["target_modules"] == sorted(config["target_modules"])
    adapter = load_file(SAMPLE / "tuned" / "adapter_model.safetensors")
    base = load_file(SAMPLE / "base" / "model.safetensors")
    adapted = {key.removeprefix("base_model.model.").split(".lora_")[0] for key in adapter}
    linear = {key.removesuffix(".weight") for key in base if "_proj" in key}
    assert adapted == linear


def test_no_file_names_a_folder_of_the_machine_it_was_made_on() -> None:
    for path in SAMPLE.rglob("*.json"):
        assert not [part for part in ("/home/", "/tmp/", "/root/", "/work/") if part in path.read_text("utf-8")]


def test_tokenizer_gives_every_text_back(tokenizer: PreTrainedTokenizerFast) -> None:
    said = [texts.asked(row) for row in texts.record_rows("harmful") + texts.record_rows("benign")]
    for text in [*said, "naïve café, 3 × 4 = 12 \u2603\n\ttabs  and spaces"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_template_renders_system_user_and_assistant_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|begin|><|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|>")
    asked = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert asked == "<|begin|><|system|>s<|end|><|user|>u<|end|><|assistant|>"


def test_template_refuses_a_role_that_it_does_not_know(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
