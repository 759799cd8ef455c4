"""What does not fit is refused by exact names, with examples of both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.adapter import CONFIG_FILE, WEIGHTS_FILE
from saferestore.core.checkpoint.fit import check_vocabularies
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.errors import MismatchError

from .conftest import Saved
from .tiny import LLAMA_MODULES, edit_json, edit_tensors, llama, save_adapter, save_base, tied_llama, tokenizer


def _refused(base: Path, tuned: Path, words: str) -> MismatchError:
    with pytest.raises(MismatchError, match=words) as caught:
        open_pair(str(base), str(tuned))
    assert caught.value.exit_code == 5
    return caught.value


def test_an_adapter_half_of_whose_modules_the_base_lacks_is_refused_with_both_sides(tmp_path: Path) -> None:
    deep = save_base(tmp_path / "one" / "base", lambda: llama(num_hidden_layers=4))
    adapter = save_adapter(tmp_path / "adapter", deep)
    shallow = save_base(tmp_path / "other" / "base")
    error = _refused(shallow, adapter, "6 of 12 adapted modules are not in the base: model.layers.2")
    assert "the base has: model.layers.0" in error.what
    assert error.what.count("model.layers.") == 6


def test_an_adapter_for_another_architecture_is_refused(mine: Saved, tmp_path: Path) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE, lambda ts: {n.replace("q_proj", "query"): t for n, t in ts.items()})
    _refused(mine.base, mine.adapter, "2 of 6 adapted modules are not in the base: model.layers.0.self_attn.query")


def test_an_adapter_half_of_whose_weights_are_missing_is_refused(mine: Saved) -> None:
    edit_tensors(mine.adapter / WEIGHTS_FILE, lambda ts: {n: t for n, t in ts.items() if "layers.0" in n})
    _refused(mine.base, mine.adapter, "3 modules without weights: model.layers.1")


def test_weights_that_the_settings_do_not_name_are_refused(mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, target_modules=["q_proj", "v_proj"])
    _refused(mine.base, mine.adapter, "2 weights without a module: model.layers.0.mlp.down_proj")


def test_settings_that_name_nothing_in_the_base_are_refused(mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, target_modules=["nothing"])
    _refused(mine.base, mine.adapter, "PEFT finds nothing to adapt")


def test_an_adapter_of_another_width_is_refused(tmp_path: Path) -> None:
    wide = save_base(tmp_path / "one" / "base", lambda: llama(hidden_size=32))
    adapter = save_adapter(tmp_path / "adapter", wide)
    narrow = save_base(tmp_path / "other" / "base")
    _refused(narrow, adapter, r"has \(in, out\) = \(24, 32\) in the adapter and \(24, 16\) in the base")


def test_weights_of_another_shape_than_the_configuration_says_are_refused(mine: Saved) -> None:
    edit_json(mine.base / "config.json", intermediate_size=30)
    _refused(mine.base, mine.adapter, r"gate_proj.weight has shape \(24, 16\), config.json says \(30, 16\)")


def test_two_full_checkpoints_with_other_tensors_are_refused_with_both_sides(mine: Saved, tmp_path: Path) -> None:
    deeper = save_base(tmp_path / "deeper", lambda: llama(num_hidden_layers=3))
    error = _refused(mine.base, deeper, "only in the base none")
    assert error.what.count("model.layers.2.") == 3


def test_two_full_checkpoints_of_other_shapes_are_refused(mine: Saved, tmp_path: Path) -> None:
    wider = save_base(tmp_path / "wider", lambda: llama(intermediate_size=30))
    _refused(mine.base, wider, r"has shape \(16, 24\) in the base and \(16, 30\) in the tuned")


def test_a_tied_head_may_be_in_the_file_or_not(tmp_path: Path) -> None:
    base, full = save_base(tmp_path / "base", tied_llama), save_base(tmp_path / "full", tied_llama, seed=5)
    edit_tensors(full / "model.safetensors",
                 lambda ts: ts | {"lm_head.weight": ts["model.embed_tokens.weight"].clone()})
    assert open_pair(str(base), str(full)).kind == "full"


def test_a_resized_vocabulary_is_named_as_such(mine: Saved, tmp_path: Path) -> None:
    resized = save_base(tmp_path / "resized", lambda: llama(vocab_size=44))
    error = _refused(mine.base, resized, "vocabulary was resized: lm_head.weight has 40 rows in the base and 44 in the")
    assert error.hint.startswith("resize the base by the same number: python -c")
    other = save_base(tmp_path / "other", lambda: llama(vocab_size=44, hidden_size=32))
    assert _refused(mine.base, other, "lm_head.weight has shape").hint.startswith("give the base that")


def test_a_head_untied_from_its_base_is_named_as_such(mine: Saved, tmp_path: Path) -> None:
    error = _refused(save_base(tmp_path / "tied", tied_llama), mine.base, "the head was untied: only the tuned .* lm_h")
    assert error.hint.startswith("save the base untied: python -c")


def test_a_tied_and_an_untied_model_are_refused(mine: Saved, tmp_path: Path) -> None:
    _refused(mine.base, save_base(tmp_path / "tied", tied_llama), "only in the base lm_head.weight")


def test_buffers_of_older_versions_are_passed_over(mine: Saved) -> None:
    edit_tensors(mine.full / "model.safetensors",
                 lambda ts: ts | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert open_pair(str(mine.base), str(mine.full)).kind == "full"


def test_a_tokenizer_of_another_vocabulary_is_refused(mine: Saved) -> None:
    tokenizer(prefix="x").save_pretrained(mine.adapter)
    _refused(mine.base, mine.adapter, "tokenizers of different vocabularies: 36 tokens")


def test_a_tokenizer_with_other_ids_is_refused(mine: Saved) -> None:
    tokenizer(words=30).save_pretrained(mine.full)
    _refused(mine.base, mine.full, "different vocabularies: 6 tokens")


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(mine: Saved) -> None:
    tokenizer(words=60).save_pretrained(mine.adapter)
    _refused(mine.base, mine.adapter, "ids up to 59, the model 40 rows")


def test_added_tokens_that_have_rows_are_a_warning(mine: Saved) -> None:
    larger = tokenizer()
    larger.add_tokens(["<pad>"])
    larger.save_pretrained(mine.adapter)
    pair = open_pair(str(mine.base), str(mine.adapter))
    assert [code for code, _ in pair.warnings] == ["W_ADDED_TOKENS"]
    assert pair.tokenizer_dir == mine.adapter


def test_equal_vocabularies_pass_whatever_their_order() -> None:
    assert check_vocabularies({"a": 0, "b": 1}, {"b": 1, "a": 0}, 2) == ()


def test_module_names_are_matched_whole_not_by_ending(saved: Saved, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", saved.base, target_modules=["model.layers.1.self_attn.q_proj"])
    pair = open_pair(str(saved.base), str(adapter))
    assert pair.target_modules == pair.saved_targets == ("model.layers.1.self_attn.q_proj",)


def test_last_name_parts_are_saved_where_they_say_the_same(saved: Saved) -> None:
    assert open_pair(str(saved.base), str(saved.adapter)).saved_targets == tuple(sorted(LLAMA_MODULES))
