"""The written adapter: the same bytes, readable by PEFT, exact."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import Session, open_session, read_params, write_params
from saferestore.core.checkpoint.systems import find_system
from saferestore.core.checkpoint.writer import base_name, reload_error, write_adapter
from saferestore.core.errors import MismatchError, NumericalError
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from .conftest import Saved
from .tiny import (
    IDS,
    SHAPE,
    deepseek,
    edit_json,
    edit_tensors,
    logits,
    peft_logits,
    plain_logits,
    save_adapter,
    save_base,
    tokenizer,
)

KINDS = ("adapter", "full")


def _moved(saved: Saved, kind: str) -> Session:
    session = open_session(open_pair(str(saved.base), str(getattr(saved, kind))))
    live = session.adapter()
    g = torch.Generator().manual_seed(3)
    write_params(live, {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in read_params(live).items()})
    return session


def _written(session: Session, folder: Path) -> Path:
    folder.mkdir()
    write_adapter(folder, read_params(session.adapter()), session.pair)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_adapter_gives_the_live_logits_through_peft(family: Saved, kind: str, tmp_path: Path) -> None:
    session = _moved(family, kind)
    out = _written(session, tmp_path / "out")
    expected = logits(session.adapter().model)
    under = family.base if kind == "adapter" else family.full
    torch.testing.assert_close(peft_logits(under, out), expected, atol=1e-6, rtol=0)
    assert reload_error(out, session, IDS) <= 1e-6
    assert torch.equal(logits(session.adapter().model), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_steps_write_the_input_again(family: Saved, kind: str, tmp_path: Path) -> None:
    session = open_session(open_pair(str(family.base), str(getattr(family, kind))))
    before = read_params(session.adapter())
    out = _written(session, tmp_path / "out")
    assert all(torch.equal(leaf, before[name]) for name, leaf in session.adapter().leaves.items())
    under = family.base if kind == "adapter" else family.full
    source = peft_logits(family.base, family.adapter) if kind == "adapter" else logits(session.adapter().model)
    torch.testing.assert_close(peft_logits(under, out), source, atol=1e-6, rtol=0)


def test_the_same_parameters_give_the_same_bytes(saved: Saved, tmp_path: Path) -> None:
    session = _moved(saved, "adapter")
    first, second = (_written(session, tmp_path / name) for name in ("first", "second"))
    assert sorted(f.name for f in first.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with safe_open(first / WEIGHTS_FILE, framework="pt") as tensors:
        assert tensors.metadata() == {"format": "pt"}


def test_a_tokenizer_that_the_tuned_adapter_brought_goes_with_the_restored_one(saved: Saved, tmp_path: Path) -> None:
    """Trainers save theirs beside the adapter, often with the chat template that it was tuned in."""
    adapter = save_adapter(tmp_path / "adapter", saved.base)
    own = tokenizer()
    own.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    own.save_pretrained(adapter)
    edit_json(adapter / "tokenizer_config.json", name_or_path="/home/me/base", extra_special_tokens=[])
    session = open_session(open_pair(str(saved.base), str(adapter)))
    first, second = (_written(session, tmp_path / name) for name in ("first", "second"))
    names = {file.name for file in first.iterdir()}
    assert names > {CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json"}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert not any("/home/me" in (first / name).read_text(encoding="utf-8") for name in names - {WEIGHTS_FILE})
    assert "local" not in (first / "tokenizer_config.json").read_text(encoding="utf-8")
    back = AutoTokenizer.from_pretrained(first)
    assert back.chat_template == own.chat_template and back.get_vocab() == own.get_vocab()
    assert open_pair(str(saved.base), str(first)).tokenizer_dir == first
    of_full = _written(_moved(saved, "full"), tmp_path / "full-out")  # it sits on the tuned model, which has them
    assert sorted(file.name for file in of_full.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_the_bases_tokenizer_goes_with_what_sits_on_a_full_checkpoint_without_one(saved: Saved, tmp_path: Path) -> None:
    """Nobody could ask the restored model otherwise: the tuned folder has none to load."""
    full = Path(shutil.copytree(saved.full, tmp_path / "full"))
    for file in full.glob("tokenizer*"):
        file.unlink()
    out = _written(open_session(open_pair(str(saved.base), str(full))), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(saved.base).get_vocab()
    assert find_system("restored", str(out), str(full)).tokenizer_dir == out


def test_servers_find_one_rank_and_no_pattern(saved: Saved, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", saved.base, rank_pattern={"q_proj": 11}, use_rslora=True)
    session = open_session(open_pair(str(saved.base), str(adapter)))
    out = _written(session, tmp_path / "out")
    text = (out / CONFIG_FILE).read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["r"] == config["lora_alpha"] == 16
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert not config["use_rslora"]
    assert list(config) == sorted(config)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert not re.search(r'"/', text)
    assert {a.shape[0] for a, _ in read_adapter(out).factors.values()} == {16}


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_adapter_can_be_opened_again(saved: Saved, kind: str, tmp_path: Path) -> None:
    session = _moved(saved, kind)
    out = _written(session, tmp_path / "out")
    under = saved.base if kind == "adapter" else saved.full
    again = open_session(open_pair(str(under), str(out))).adapter()
    torch.testing.assert_close(logits(again.model), logits(session.adapter().model), atol=1e-6, rtol=0)


def test_the_recorded_base_is_an_id_or_relative_never_an_absolute_path(mine: Saved, monkeypatch: pytest.MonkeyPatch) \
        -> None:
    assert base_name(open_pair(str(mine.base), str(mine.adapter))) == "base"
    assert base_name(open_pair(str(mine.base), str(mine.full))) == "full"
    edit_json(mine.adapter / CONFIG_FILE, base_model_name_or_path="owner/base")
    assert base_name(open_pair(str(mine.base), str(mine.adapter))) == "owner/base"
    monkeypatch.chdir(mine.base.parent)
    assert base_name(open_pair("./base", "adapter")) == "./base"


def test_an_adapter_that_is_not_finite_is_never_written(saved: Saved, tmp_path: Path) -> None:
    session = _moved(saved, "adapter")
    params = read_params(session.adapter())
    next(iter(params.values()))[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        write_adapter(tmp_path, params, session.pair)
    assert list(tmp_path.iterdir()) == []


def _llama4() -> PreTrainedModel:
    return Llama4ForCausalLM(Llama4TextConfig(**SHAPE, head_dim=8, intermediate_size_mlp=24, num_local_experts=2))


def _mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=2))


def _with_vision() -> PreTrainedModel:
    return Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=SHAPE | {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 8},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 8, "patch_size": 4},
        mm_tokens_per_image=1, image_token_index=37, boi_token_index=38, eoi_token_index=39))


@pytest.mark.parametrize(("make", "left_out", "taken"), [
    (deepseek, ("gate_proj", "up_proj", "down_proj"), "kv_b_proj"),  # PEFT takes these names for those of experts
    (_llama4, ("router",), "down_proj"),  # gives a pair
    (_with_vision, ("out_proj", "fc1", "fc2"), "q_proj"),  # no text goes through them
    (_mamba, ("out_proj",), "in_proj"),  # PEFT refuses it: kernels use its weight without calling it
])
def test_modules_that_peft_cannot_adapt_are_left_out_of_a_full_pair(
        make: Callable[[], PreTrainedModel], left_out: tuple[str, ...], taken: str, tmp_path: Path) -> None:
    base, full = save_base(tmp_path / "base", make), save_base(tmp_path / "full", make, seed=5)
    pair = open_pair(str(base), str(full))
    parts = {name.rpartition(".")[2] for name in pair.target_modules}
    assert taken in parts and not parts & set(left_out)
    session = open_session(pair)
    torch.testing.assert_close(logits(session.adapter().model), plain_logits(full), atol=1e-6, rtol=0)
    write_params(session.adapter(), {name: t + 0.03 for name, t in read_params(session.adapter()).items()})
    out = _written(session, tmp_path / "out")
    torch.testing.assert_close(peft_logits(full, out), logits(session.adapter().model), atol=1e-5, rtol=1e-4)
    assert reload_error(out, session, IDS) <= 1e-5


def test_a_key_that_peft_misses_is_refused_on_reading_back(saved: Saved, tmp_path: Path) -> None:
    session = _moved(saved, "adapter")
    out = _written(session, tmp_path / "out")
    edit_tensors(out / WEIGHTS_FILE, lambda ts: {n: t for n, t in ts.items() if "layers.0.mlp" not in n})
    with pytest.raises(MismatchError, match="2 missing keys"):
        reload_error(out, session, IDS)
    assert session.adapter()


def test_a_key_that_peft_does_not_know_is_refused_on_reading_back(saved: Saved, tmp_path: Path) -> None:
    session = _moved(saved, "adapter")
    out = _written(session, tmp_path / "out")
    edit_tensors(out / WEIGHTS_FILE, lambda ts: ts | {"elsewhere.lora_A.weight": torch.ones(2)})
    with pytest.raises(MismatchError, match="1 unexpected keys"):
        reload_error(out, session, IDS)


def test_an_adapter_of_other_numbers_has_an_error(saved: Saved, tmp_path: Path) -> None:
    session = _moved(saved, "adapter")
    out = _written(session, tmp_path / "out")
    edit_tensors(out / WEIGHTS_FILE, lambda ts: {n: t * 1.1 for n, t in ts.items()})
    assert reload_error(out, session, IDS) > 1e-3
