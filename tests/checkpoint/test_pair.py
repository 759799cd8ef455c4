"""Two checkpoints opened together: which base, which facts, which warnings."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.adapter import CONFIG_FILE
from saferestore.core.checkpoint.pair import CheckpointPair, open_pair
from saferestore.core.checkpoint.recorded_base import names_of
from saferestore.core.errors import MismatchError, UsageError

from .conftest import Saved
from .tiny import edit_json, edit_tensors, qwen2, save_base, tokenizer


def _codes(pair: CheckpointPair) -> list[str]:
    return [code for code, _ in pair.warnings]


def test_an_adapter_makes_a_lora_pair(family: Saved) -> None:
    pair = open_pair(str(family.base), str(family.adapter))
    assert (pair.kind, pair.rank, pair.warnings) == ("lora", 8, ())
    assert pair.base_dir == family.base
    assert pair.tuned_dir == family.adapter
    assert pair.adapter is not None
    assert tuple(sorted(pair.adapter.factors)) == pair.target_modules
    assert pair.transposed == ("c_attn" in pair.saved_targets)


def test_the_pairs_factors_are_balanced(saved: Saved) -> None:
    pair = open_pair(str(saved.base), str(saved.adapter))
    assert pair.adapter is not None
    for a, b in pair.adapter.factors.values():
        torch.testing.assert_close(a @ a.T, b.T @ b, atol=1e-5, rtol=1e-4)


def test_a_checkpoint_of_its_own_makes_a_full_pair_with_all_linear_modules_but_the_head(family: Saved) -> None:
    with pytest.raises(UsageError, match="an adapter keeps its own rank - --rank 12"):
        open_pair(str(family.base), str(family.adapter), rank=12)
    pair = open_pair(str(family.base), str(family.full), rank=12)
    assert (pair.kind, pair.rank, pair.adapter, pair.warnings) == ("full", 16, None, ())
    assert len(pair.target_modules) in {14, 8}
    assert not any("head" in name or "embed" in name for name in pair.target_modules)


def test_facts_are_hashes_of_the_files_and_no_absolute_path(saved: Saved) -> None:
    pair = open_pair(str(saved.base), str(saved.adapter))
    facts = pair.base_facts
    weights = saved.base / "model.safetensors"
    assert facts.weights_sha256 == {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert facts.tokenizer_sha256 == hashlib.sha256((saved.base / "tokenizer.json").read_bytes()).hexdigest()
    assert (facts.ref, facts.model_type, facts.vocab_size) == ("base", "llama", 40)
    assert facts.bytes == weights.stat().st_size
    assert pair.tuned_facts.ref == "adapter"
    assert list(pair.tuned_facts.weights_sha256) == ["adapter_model.safetensors"]
    assert pair.tuned_facts.tokenizer_sha256 is None


def test_the_tokenizer_of_the_slow_formats_is_hashed_over_all_its_files(saved: Saved, tmp_path: Path) -> None:
    from saferestore.core.checkpoint.facts import tokenizer_hash

    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b")
    first = tokenizer_hash(tmp_path)
    (tmp_path / "merges.txt").write_text("b a")
    assert tokenizer_hash(tmp_path) != first


def test_without_reading_weights_only_headers_are_checked(mine: Saved) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.norm.weight"][3] = float("inf")
        return tensors

    edit_tensors(mine.base / "model.safetensors", spoil)
    pair = open_pair(str(mine.base), str(mine.adapter), read_weights=False)
    assert pair.base_facts.weights_sha256 == {}
    with pytest.raises(MismatchError, match=r"NaN or infinite values in model\.norm\.weight"):
        open_pair(str(mine.base), str(mine.adapter))


def test_progress_counts_weight_files(tmp_path: Path, mine: Saved) -> None:
    save_base(tmp_path / "base", max_shard_size="5KB")
    (mine.base / "model.safetensors").unlink()
    seen: list[tuple[str, int, int]] = []
    open_pair(str(mine.base), str(mine.adapter), progress=lambda *row: seen.append(row))
    stages = [row for row in seen if row[0] == "checking base"]
    assert stages[0][1] == 0
    assert stages[-1][1] == stages[-1][2] == len(stages) - 1 > 2


def test_a_truncated_base_is_refused_before_any_weight_is_read(mine: Saved) -> None:
    file = mine.base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    for read_weights in (True, False):
        with pytest.raises(MismatchError, match="truncated"):
            open_pair(str(mine.base), str(mine.adapter), read_weights=read_weights)


def test_a_base_of_the_same_shape_but_another_name_is_refused_unless_forced(mine: Saved, tmp_path: Path) -> None:
    other = save_base(tmp_path / "another", seed=3)
    with pytest.raises(MismatchError, match="the adapter was trained on") as caught:
        open_pair(str(other), str(mine.adapter))
    assert "--force" in caught.value.hint
    forced = open_pair(str(other), str(mine.adapter), force=True)
    assert _codes(forced) == ["W_OTHER_BASE"]
    assert str(mine.base.parent) not in forced.warnings[0][1]


def test_the_same_base_under_the_same_last_name_passes(mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, base_model_name_or_path="owner/base")
    assert _codes(open_pair(str(mine.base), str(mine.adapter))) == []


def test_an_adapter_that_records_no_base_is_a_warning(mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, base_model_name_or_path=None)
    assert _codes(open_pair(str(mine.base), str(mine.adapter))) == ["W_BASE_UNKNOWN"]


def test_a_hub_caches_folder_goes_by_its_id() -> None:
    names = names_of("/x/hub/models--owner--name/snapshots/0123abc")
    assert {"owner/name", "name"} <= names
    assert names & names_of("owner/name")
    assert not names & names_of("0123abc")


@pytest.mark.parametrize("recorded", ["base", "../base", "{parent}/base", "{here}/base"])
def test_a_dash_takes_the_recorded_base_wherever_the_command_is_run(recorded: str, mine: Saved, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    text = recorded.format(parent=mine.base.parent.name, here=mine.base.parent)
    edit_json(mine.adapter / CONFIG_FILE, base_model_name_or_path=text)
    monkeypatch.chdir("/")
    pair = open_pair("-", str(mine.adapter))
    assert pair.base_dir == mine.base
    assert pair.base_ref.base == text


def test_a_dash_finds_a_recorded_base_in_the_working_directory(mine: Saved, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.move(mine.base, tmp_path / "elsewhere" / "moved")
    edit_json(mine.adapter / CONFIG_FILE, base_model_name_or_path="moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_pair("-", str(mine.adapter)).base_dir == tmp_path / "elsewhere" / "moved"


def test_a_dash_without_a_recorded_base_is_refused(mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, base_model_name_or_path="")
    for tuned in (mine.adapter, mine.full):
        with pytest.raises(MismatchError, match="no base is recorded"):
            open_pair("-", str(tuned))


def test_a_dash_with_a_recorded_path_that_is_gone_is_refused(mine: Saved) -> None:
    edit_json(mine.adapter / CONFIG_FILE, base_model_name_or_path="/gone/base")
    with pytest.raises(UsageError, match="no such folder - /gone/base"):
        open_pair("-", str(mine.adapter))


def test_base_plus_adapter_is_the_adapter_on_that_base(mine: Saved) -> None:
    both = f"{mine.base}+{mine.adapter}"
    for base in (str(mine.base), "-"):
        pair = open_pair(base, both)
        assert (pair.kind, pair.base_dir, pair.tuned_dir) == ("lora", mine.base, mine.adapter)
        assert pair.tuned_facts.ref == "base+adapter"


def test_base_plus_adapter_on_another_base_is_refused(mine: Saved) -> None:
    with pytest.raises(MismatchError, match="sits on another base"):
        open_pair(str(mine.full), f"{mine.base}+{mine.adapter}")


def test_a_plus_without_an_adapter_behind_it_is_refused(mine: Saved) -> None:
    with pytest.raises(MismatchError, match="no adapter after the +"):
        open_pair(str(mine.base), f"{mine.base}+{mine.full}")


def test_an_adapter_given_as_base_is_refused(mine: Saved) -> None:
    for base in (str(mine.adapter), f"{mine.base}+{mine.adapter}"):
        with pytest.raises(MismatchError, match="the base is an adapter"):
            open_pair(base, str(mine.full))


def test_models_of_different_types_are_refused(mine: Saved, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="different types: llama and qwen2"):
        open_pair(str(mine.base), str(save_base(tmp_path / "qwen", qwen2)))


def test_a_missing_checkpoint_is_a_usage_error(mine: Saved) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_pair(str(mine.base / "gone"), str(mine.adapter))


def test_the_same_weights_twice_are_a_warning(mine: Saved) -> None:
    assert _codes(open_pair(str(mine.base), str(mine.base))) == ["W_NOOP"]


def test_the_tuned_checkpoints_chat_template_is_used_and_said(mine: Saved) -> None:
    own = tokenizer()
    own.chat_template = "{{ messages[0]['content'] }}"
    own.save_pretrained(mine.adapter)
    pair = open_pair(str(mine.base), str(mine.adapter))
    assert _codes(pair) == ["W_CHAT_TEMPLATE"]
    assert pair.base_facts.chat_template_sha256 is None
    assert pair.tuned_facts.chat_template_sha256 == hashlib.sha256(own.chat_template.encode()).hexdigest()


def test_checkpoints_without_any_tokenizer_are_refused(mine: Saved) -> None:
    (mine.base / "tokenizer.json").unlink()
    with pytest.raises(MismatchError, match="no tokenizer"):
        open_pair(str(mine.base), str(mine.adapter))


def test_the_stored_dtype_is_that_of_most_tensors(mine: Saved) -> None:
    edit_tensors(mine.base / "model.safetensors",
                 lambda ts: {n: t if "norm" in n else t.bfloat16() for n, t in ts.items()})
    assert open_pair(str(mine.base), str(mine.adapter)).stored_dtype == torch.bfloat16


def test_packed_weights_of_a_quantised_base_are_left_to_the_loader(mine: Saved) -> None:
    edit_tensors(mine.base / "model.safetensors", lambda ts: {
        n: t.flatten()[:, None].to(torch.uint8) if "_proj" in n else t for n, t in ts.items()})
    with pytest.raises(MismatchError, match="config.json says"):
        open_pair(str(mine.base), str(mine.adapter))
    config = json.loads((mine.base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (mine.base / "config.json").write_text(json.dumps(config))
    assert open_pair(str(mine.base), str(mine.adapter)).kind == "lora"
