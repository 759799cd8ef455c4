"""Padding is tried on the model at hand; one that reads it answers prompts of one length at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from saferestore.core.evaluation.generation import Generation, generate, quiet_model
from saferestore.core.evaluation.padding import TRIED, leaves_out_padding, left_padded
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

VOCABULARY, PAD, STEPS = 61, 0, 6
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "initializer_range": 0.4}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=48))


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2))


def rwkv() -> Any:
    return RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2))


def recurrent_gemma() -> Any:
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**SHAPE, intermediate_size=48, lru_width=32,
                                                          attention_window_size=16))


def made(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for p in model.parameters():  # RWKV leaves its weights empty
            p.normal_(std=0.3)
    return model.to(dtype).eval()


def some_prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, VOCABULARY) for _ in range(length)] for length in (4, 9, 9, 17, 4, 12, 9, 30)]


def alone(model: Any, prompt: list[int]) -> Generation:
    """The definition: no cache, no padding, the most likely next token."""
    tokens: list[int] = []
    for _ in range(STEPS):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return Generation(tuple(tokens), False)


def tried(model: Any, prompts: list[list[int]]) -> bool:
    with quiet_model(model) as inner:
        return leaves_out_padding(inner, prompts, PAD)


@pytest.mark.parametrize(("make", "is_left_out"), [(llama, True), (gpt2, True), (bloom, True), (mamba, True),
                                                   (rwkv, False), (recurrent_gemma, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_that_read_padding_are_told_from_those_that_do_not(make: Callable[[], Any], is_left_out: bool,
                                                                  dtype: torch.dtype) -> None:
    assert tried(made(make, dtype), some_prompts()) is is_left_out
    assert tried(made(make, dtype), [[5], [7]]) is is_left_out


@pytest.mark.parametrize("make", [llama, rwkv, recurrent_gemma])
def test_answers_are_those_of_one_prompt_at_a_time(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts, shapes = made(make), some_prompts(), []
    own = model.generate

    def watched(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return own(**inputs)

    monkeypatch.setattr(model, "generate", watched)
    settings = {"max_new_tokens": STEPS, "batch_size": 4, "pad_id": PAD, "eos_ids": ()}
    assert generate(model, prompts, **settings) == [alone(model, prompt) for prompt in prompts]
    first = [(4, 30), (4, 9)] if make is llama else [(1, 30), (1, 17), (1, 12), (1, 9), (2, 9), (2, 4)]
    look, rest = shapes[:2], shapes[2:]  # the look is at the shortest prompt of the first batch, 9 tokens
    assert (look, rest) == ([(1, 9), (2, 9 + TRIED)], first)
    shapes.clear()
    generate(model, prompts, **settings)
    assert shapes == first  # tried once a model


def test_a_look_that_does_not_fit_in_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = made(llama), some_prompts()
    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        assert tried(model, prompts) is False
        patch.setattr(model, "generate", lambda **_: (_ for _ in ()).throw(ValueError("another")))
        with pytest.raises(ValueError, match="another"):
            tried(model, prompts)
    assert tried(model, prompts) is True


def test_rows_are_padded_on_the_left_and_masked_there() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], PAD)
    assert ids.tolist() == [[5, 6, 7], [PAD, PAD, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
