"""Batched greedy answers are those of one prompt at a time, and the model is left as it was."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from saferestore.core.errors import SaferestoreError, UsageError
from saferestore.core.evaluation.batch_size import (
    bytes_per_row,
    fitting_batch_size,
    largest_power_of_two,
    ran_out_of_memory,
)
from saferestore.core.evaluation.generation import (
    Generation,
    generate,
    generate_batches,
    own_ends,
    plan_batches,
    quiet_model,
)
from transformers import DynamicCache, GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY, PAD, EOS = 61, 0, (1, 2)


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                         initializer_range=0.4, attn_implementation="eager")
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    """A model with absolute positions, which left padding shifts unless they are counted from the mask."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                      initializer_range=0.4)).eval()


def with_adapter(model: LlamaForCausalLM) -> Any:
    torch.manual_seed(9)
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return peft_model.eval()


def some_prompts(n: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 23))] for _ in range(n)]


def run(model: Any, prompts: list[list[int]], batch_size: int | str = 8, **changes: Any) -> list[Generation]:
    settings: dict[str, Any] = {"max_new_tokens": 12, "batch_size": batch_size, "pad_id": PAD, "eos_ids": EOS}
    settings |= changes
    return generate(model, prompts, **settings)


def by_hand(model: Any, prompt: list[int], steps: int = 12) -> Generation:
    """The definition: no cache, no padding, the most likely next token until one ends the answer."""
    tokens: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].argmax())
        if token in EOS:
            return Generation(tuple(tokens), True)
        tokens.append(token)
    return Generation(tuple(tokens), False)


def test_batched_answers_are_those_of_one_prompt_at_a_time_in_float64_too() -> None:
    model, prompts = with_adapter(tiny_llama()).double(), some_prompts(20)
    assert run(model, prompts) == [by_hand(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batched_answers_are_those_of_one_prompt_at_a_time(make: Callable[[], Any], batch_size: int) -> None:
    model, prompts = make(), some_prompts(40)
    expected = [by_hand(model, prompt) for prompt in prompts]
    assert len({len(answer.tokens) for answer in expected}) > 3  # answers of many lengths, or this shows little
    assert {answer.finished for answer in expected} == {True, False}
    assert run(model, prompts, batch_size) == expected


def test_the_adapter_answers_when_it_is_on_and_the_base_when_it_is_off() -> None:
    prompts = some_prompts(12)
    base = run(tiny_llama(), prompts)
    peft_model = with_adapter(tiny_llama())
    tuned = run(peft_model, prompts)
    assert tuned == [by_hand(peft_model, prompt) for prompt in prompts] != base
    with peft_model.disable_adapter():
        assert run(peft_model, prompts) == base


def test_the_checkpoints_own_generation_settings_are_ignored_but_for_its_ends() -> None:
    model, prompts = tiny_llama(), some_prompts(12)
    expected = run(model, prompts)
    model.generation_config = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=50.0, num_beams=3,
                                               no_repeat_ngram_size=1, suppress_tokens=list(range(3, 40)),
                                               forced_bos_token_id=44, forced_eos_token_id=2, min_new_tokens=9,
                                               bad_words_ids=[[41], [42]], sequence_bias={(50,): 99.0},
                                               max_length=3, use_cache=False, bos_token_id=4)
    assert run(model, prompts) == expected


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_an_answer_ends_where_the_checkpoint_says_in_a_file_of_its_own(wrapped: bool, as_list: bool) -> None:
    """As where a template writes no end of a turn and the next speaker's name is the end."""
    model, prompts = with_adapter(tiny_llama()) if wrapped else tiny_llama(), some_prompts(12)
    whole, inner = run(model, prompts), model.get_base_model() if wrapped else model
    end = next(answer.tokens[2] for answer in whole if len(answer.tokens) > 2)
    cut = [Generation(one.tokens[:one.tokens.index(end)], True) if end in one.tokens else one for one in whole]
    inner.generation_config.eos_token_id = end  # made of the configuration: the file says nothing of it
    assert run(model, prompts) == whole
    inner.generation_config = GenerationConfig(eos_token_id=[end, 999] if as_list else end)
    assert run(model, prompts) == cut != whole
    assert own_ends(model) == ((end, 999) if as_list else (end,)) and own_ends(object()) == ()


def state(model: Any) -> dict[str, Any]:
    """What a caller could notice: settings, the mode of every module, instance attributes, weights."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"settings": inner.generation_config.to_dict(), "config": copy.deepcopy(inner.config.to_dict()),
            "modes": [module.training for module in model.modules()],
            "attributes": [sorted(module.__dict__) for module in model.modules()],
            "grads": [parameter.requires_grad for parameter in model.parameters()],
            "weights": [parameter.detach().clone() for parameter in model.parameters()]}


@pytest.mark.parametrize("wrapped", [False, True])
def test_nothing_of_the_model_has_changed_afterwards(wrapped: bool) -> None:
    model = with_adapter(tiny_llama()) if wrapped else tiny_llama()
    model.train()
    next(iter(model.modules())).training = False  # a mode that model.train() alone would not bring back
    model.config.use_cache = False
    before = state(model)
    own = model.generation_config
    run(model, some_prompts(5))
    after = state(model)
    assert all(torch.equal(a, b) for a, b in zip(before.pop("weights"), after.pop("weights"), strict=True))
    assert after == before
    assert model.generation_config is own


def test_dropout_is_off_while_generating() -> None:
    peft_model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.9,
                                                         init_lora_weights=False))
    expected = run(peft_model.eval(), some_prompts(6))
    assert run(peft_model.train(), some_prompts(6)) == expected
    assert all(module.training for module in peft_model.modules())


def test_the_model_is_restored_when_generation_fails() -> None:
    model = tiny_llama().train()
    own = model.generation_config
    with pytest.raises(KeyError), quiet_model(model) as inner:
        assert not inner.training
        raise KeyError
    assert model.training
    assert model.generation_config is own


def test_progress_counts_the_prompts_of_finished_batches() -> None:
    calls: list[tuple[str, int, int]] = []
    run(tiny_llama(), some_prompts(10), 4, progress=lambda *call: calls.append(call), stage="answers")
    assert calls == [("answers", 4, 10), ("answers", 8, 10), ("answers", 10, 10)]


def test_new_answers_are_kept_batch_by_batch_and_known_ones_are_not_asked_again(
        monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, kept = some_prompts(10), list[dict[int, Generation]]()
    whole = run(tiny_llama(), prompts, 4, keep=lambda found: kept.append(dict(found)))
    assert [len(found) for found in kept] == [4, 4, 2]
    assert {i: answer for found in kept for i, answer in found.items()} == dict(enumerate(whole))
    known, later = {**kept[0], **kept[2]}, list[dict[int, Generation]]()
    assert run(tiny_llama(), prompts, 4, known=known, keep=lambda found: later.append(dict(found))) == whole
    assert later == [kept[1]]
    half = dict(list(kept[1].items())[:2])
    later.clear()
    assert run(tiny_llama(), prompts, 4, known={**known, **half}, keep=lambda found: later.append(dict(found))) == whole
    assert later == [{i: answer for i, answer in kept[1].items() if i not in half}]
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: pytest.fail("asked again"))
    assert run(tiny_llama(), prompts, 4, known=dict(enumerate(whole))) == whole


def test_no_prompts_give_no_answers() -> None:
    assert run(tiny_llama(), []) == []


def test_without_end_tokens_every_answer_has_the_full_length() -> None:
    answers = run(tiny_llama(), some_prompts(4), eos_ids=())
    assert [(len(answer.tokens), answer.finished) for answer in answers] == [(12, False)] * 4


def limit_memory(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Let batches above `rows` run out of memory; return the list of the sizes that were tried."""
    whole, tried = model.generate, []

    def limited(**inputs: Any) -> torch.Tensor:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > rows:
            raise torch.OutOfMemoryError("too many rows")
        return whole(**inputs)

    monkeypatch.setattr(model, "generate", limited)
    return tried


def test_the_batch_size_steps_down_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, model = some_prompts(10), tiny_llama()
    expected = run(model, prompts)  # padding is tried here
    tried = limit_memory(model, monkeypatch, rows=3)
    assert run(model, prompts, 8) == expected
    assert tried == [8, 4, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("error", [RuntimeError("MPS backend out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr)
def test_memory_that_runs_out_elsewhere_than_on_a_gpu_is_told_by_its_words(error: Exception) -> None:
    assert ran_out_of_memory(error) and not ran_out_of_memory(ValueError("out of memory"))


def test_another_error_while_generating_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(model, "generate", lambda **_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        run(model, some_prompts(2))


def test_one_prompt_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    limit_memory(model, monkeypatch, rows=0)
    with pytest.raises(SaferestoreError, match="one prompt alone does not fit") as error:
        run(model, some_prompts(4))
    assert error.value.exit_code == 1


@pytest.mark.parametrize(("changes", "what"), [({"max_new_tokens": 0}, "--max-new-tokens 0"),
                                               ({"batch_size": 0}, "--batch-size 0")])
def test_sizes_below_one_are_refused(changes: dict[str, int], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        run(tiny_llama(), some_prompts(2), **changes)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="empty prompt - number 1"):
        run(tiny_llama(), [[3], []])


def in_batches(model: Any, prompts: list[list[int]], start: int = 0) -> list[tuple[list[int], list[Generation]]]:
    return list(generate_batches(model, prompts, plan_batches(prompts, 4), max_new_tokens=12, pad_id=PAD, eos_ids=EOS,
                                 start=start))


def test_a_plan_holds_each_prompt_once_and_its_batches_get_shorter() -> None:
    prompts = some_prompts(30)
    plan = plan_batches(prompts, 4)
    assert sorted(i for batch in plan for i in batch) == list(range(30))
    assert [len(batch) for batch in plan] == [4] * 7 + [2]
    lengths = [len(prompts[i]) for batch in plan for i in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_batches_come_one_by_one_and_a_run_goes_on_from_any_of_them() -> None:
    model, prompts = tiny_llama(), some_prompts(10)
    whole = in_batches(model, prompts)
    assert [batch for batch, _ in whole] == plan_batches(prompts, 4)
    answers = run(model, prompts)
    assert all(found == [answers[i] for i in batch] for batch, found in whole)
    assert [in_batches(model, prompts, start) for start in (1, 2, 3)] == [whole[1:], whole[2:], []]


def test_the_model_is_as_it_was_between_two_batches() -> None:
    model, prompts = tiny_llama().train(), some_prompts(10)
    own = model.generation_config
    for _ in generate_batches(model, prompts, plan_batches(prompts, 4), max_new_tokens=3, pad_id=PAD, eos_ids=EOS):
        assert model.training
        assert model.generation_config is own


def test_a_batch_that_is_answered_in_halves_is_yielded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, model = some_prompts(10), tiny_llama()
    whole = in_batches(model, prompts)
    tried = limit_memory(model, monkeypatch, rows=2)
    assert in_batches(model, prompts) == whole
    assert tried == [4, 2, 2, 2, 2, 2]


def test_batch_size_auto_steps_down_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, model = some_prompts(20), tiny_llama()
    expected = run(model, prompts)
    tried = limit_memory(model, monkeypatch, rows=5)
    assert run(model, prompts, "auto") == expected
    assert tried == [20, 10, 5, 5, 5, 5]


def test_batch_size_auto_is_bounded_by_the_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_llama(), some_prompts(3)
    longest = max(map(len, prompts)) + 12
    row = bytes_per_row(model.config, longest)
    monkeypatch.setattr(LlamaForCausalLM, "device", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * row * 41, 0))
    assert fitting_batch_size(model, prompts, 12, "auto") == 32
    assert fitting_batch_size(model, prompts, 12, 7) == 7


def test_the_bytes_of_a_row_are_those_of_the_cache_that_the_model_fills() -> None:
    model, tokens = tiny_llama(), 9
    with torch.no_grad():
        cache = model(torch.arange(tokens).unsqueeze(0), use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    filled = sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values))
    assert bytes_per_row(model.config, tokens) == 2 * filled + 3 * 4 * VOCABULARY


@pytest.mark.parametrize(("bound", "size"), [(0.2, 1), (1, 1), (2, 2), (3.9, 2), (64, 64), (1e9, 256)])
def test_batch_sizes_are_powers_of_two(bound: float, size: int) -> None:
    assert largest_power_of_two(bound) == size


def test_a_batch_size_of_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match="neither a number nor `auto` - --batch-size many"):
        run(tiny_llama(), some_prompts(2), "many")


def plain(model: Any, prompts: list[list[int]], plan: list[list[int]]) -> None:
    """What a user would write: `model.generate` on each batch."""
    for batch in plan:
        width = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[PAD] * (width - len(prompts[i])) + prompts[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
        model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=PAD,
                       eos_token_id=list(EOS))


def test_the_model_is_run_as_often_and_on_as_many_tokens_as_by_its_own_generate() -> None:
    model, prompts, shapes = tiny_llama(), some_prompts(32), []
    model.register_forward_pre_hook(lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True)
    plain(model, prompts, plan_batches(prompts, 8))
    own = list(shapes)
    run(model, prompts, 8)
    shapes.clear()  # padding is tried once a model, with four short passes
    run(model, prompts, 8)
    assert shapes == own


def test_next_to_no_time_is_spent_outside_of_the_models_own_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time, not the clock's, so that a busy machine does not decide."""
    model, prompts, inside = tiny_llama(), some_prompts(64), []
    own = model.generate

    def timed(**inputs: Any) -> Any:
        begin = time.process_time()
        out = own(**inputs)
        inside.append(time.process_time() - begin)
        return out

    monkeypatch.setattr(model, "generate", timed)
    begin = time.process_time()
    run(model, prompts, 8)
    assert time.process_time() - begin < 1.1 * sum(inside)
