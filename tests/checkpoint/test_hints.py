"""The commands that refusals give are run as they stand, and mend what was refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.adapter import CONFIG_FILE, WEIGHTS_FILE
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.quiet import quiet
from saferestore.core.checkpoint.session import open_session
from saferestore.core.errors import MismatchError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from .conftest import Saved
from .tiny import (
    SHAPE,
    edit_json,
    llama,
    logits,
    peft_logits,
    plain_logits,
    save_adapter,
    save_base,
    tied_llama,
)


def _run_hint(base: Path, tuned: Path) -> str:
    """Run the Python of the refusal's hint; return the hint."""
    with pytest.raises(MismatchError) as caught:
        open_pair(str(base), str(tuned))
    hint = caught.value.hint
    assert "\n" not in hint
    code = re.search(r'python -c "(.*?)"', hint)
    assert code is not None
    with quiet():
        exec(code.group(1), {})  # noqa: S102 (what the user is told to run)
    return hint


def _pickle(safetensors: Path, name: str) -> None:
    torch.save(load_file(safetensors), safetensors.with_name(name))
    safetensors.unlink()


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_a_merged_adapter_is_restored_as_a_checkpoint_of_its_own(saved: Saved, tmp_path: Path,
                                                                settings: dict[str, object]) -> None:
    adapter = save_adapter(tmp_path / "adapter", saved.base, **settings)
    expected = peft_logits(saved.base, adapter)
    hint = _run_hint(saved.base, adapter)
    merged = hint.rpartition(" ")[2]
    pair = open_pair(str(saved.base), merged)
    assert pair.kind == "full"
    torch.testing.assert_close(logits(open_session(pair).adapter().model), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head", "q_proj"]])
@pytest.mark.parametrize("make", [llama, tied_llama])
def test_a_merged_adapter_of_a_tied_embedding_or_head_moves_that_alone(
        tmp_path: Path, targets: list[str], make: Callable[[], PreTrainedModel]) -> None:
    base = save_base(tmp_path / "base", make)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=targets)
    expected = peft_logits(base, adapter)
    merged = _run_hint(base, adapter).rpartition(" ")[2]
    if make is tied_llama:
        base = Path(_run_hint(base, Path(merged)).rpartition(" ")[2])
    pair = open_pair(str(base), merged)
    torch.testing.assert_close(logits(open_session(pair).adapter().model), expected, atol=1e-5, rtol=0)


def test_a_merged_adapter_of_single_experts_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", lambda: MixtralForCausalLM(
        MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1)))
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    edit_json(adapter / CONFIG_FILE, target_modules=["w1", "w2", "w3"])
    save_file(_expert_factors(), adapter / WEIGHTS_FILE, metadata={"format": "pt"})
    expected = peft_logits(base, adapter)
    assert not torch.allclose(expected, plain_logits(base), atol=1e-3)
    pair = open_pair(str(base), _run_hint(base, adapter).rpartition(" ")[2])
    torch.testing.assert_close(logits(open_session(pair).adapter().model), expected, atol=1e-5, rtol=0)


def _expert_factors() -> dict[str, Tensor]:
    """Factors of every expert of two layers, as they were saved before experts were merged."""
    generator, found = torch.Generator().manual_seed(0), {}
    for layer, expert, (part, inputs, outputs) in product(range(2), range(2), (("w1", 16, 24), ("w2", 24, 16),
                                                                               ("w3", 16, 24))):
        name = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}"
        found[f"{name}.lora_A.weight"] = torch.randn(4, inputs, generator=generator)
        found[f"{name}.lora_B.weight"] = 0.2 * torch.randn(outputs, 4, generator=generator)
    return found


@pytest.mark.parametrize(("base", "tuned", "kind"), [
    (llama, lambda: llama(vocab_size=44), "resized"), (tied_llama, llama, "untied"),
    (tied_llama, lambda: llama(vocab_size=44, tie_word_embeddings=True), "resized")])
def test_a_base_that_is_made_to_fit_says_what_it_said(
        tmp_path: Path, base: Callable[[], PreTrainedModel], tuned: Callable[[], PreTrainedModel], kind: str) -> None:
    given, full = save_base(tmp_path / "base", base), save_base(tmp_path / "full", tuned, seed=5)
    made = _run_hint(given, full).rpartition(" ")[2]
    assert made == f"{given}-{kind}" and open_pair(made, str(full)).kind == "full"
    torch.testing.assert_close(plain_logits(Path(made))[..., :40], plain_logits(given), atol=1e-6, rtol=0)


def test_a_converted_adapter_is_read(mine: Saved) -> None:
    expected = peft_logits(mine.base, mine.adapter)
    _pickle(mine.adapter / WEIGHTS_FILE, "adapter_model.bin")
    _run_hint(mine.base, mine.adapter)
    live = open_session(open_pair(str(mine.base), str(mine.adapter))).adapter()
    torch.testing.assert_close(logits(live.model), expected, atol=1e-6, rtol=0)


def test_a_converted_checkpoint_is_read(mine: Saved) -> None:
    expected = plain_logits(mine.full)
    _pickle(mine.full / "model.safetensors", "pytorch_model.bin")
    converted = _run_hint(mine.base, mine.full).rpartition(" ")[2]
    live = open_session(open_pair(str(mine.base), converted)).adapter()
    assert torch.equal(logits(live.model), expected)
