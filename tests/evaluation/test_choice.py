"""The likeliest choice, against log-probabilities added up one token at a time."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy
import pytest
import talk
import torch
from saferestore.core.data.chat import ChatFormat
from saferestore.core.data.records import Record
from saferestore.core.errors import NumericalError, UsageError
from saferestore.core.evaluation.choice import SCORERS, choose, has_choices
from transformers import LlamaConfig, LlamaForCausalLM

CHAT = ChatFormat(talk.byte_tokenizer(), talk.TEMPLATE)
WORDS = ("yes", "no", "maybe so", "I do not know", "x")


@functools.cache
def tiny() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=len(CHAT.tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=128, initializer_range=0.5)
    return LlamaForCausalLM(shape).double().eval()


def question(name: str, right: int = 0, choices: tuple[str, ...] = WORDS) -> Record:
    return talk.record(name, choices[right], meta={"choices": choices, "right": right})


def log_p(record: Record, text: str, model: Any = None) -> float:
    """Sum of log p(byte | all before), the prompt and the choice joined as bytes."""
    prompt = list(CHAT.tokenizer(f"user: {record.prompt}<|end|>assistant: ")["input_ids"])
    ids, total = list(CHAT.tokenizer(text)["input_ids"]), 0.0
    for i, token in enumerate(ids):
        with torch.no_grad():
            logits = (model or tiny())(input_ids=torch.tensor([prompt + ids[:i]])).logits[0, -1]
        total += torch.log_softmax(logits, -1)[token].item()
    return total


def test_the_choice_is_the_likeliest_by_sum_and_by_character() -> None:
    records = [question(f"question {i}", i % 5) for i in range(6)]
    found = choose(tiny(), records, CHAT, context=100, batch_size=4)
    sums = [[log_p(record, text) for text in WORDS] for record in records]
    per_character = [[value / len(text) for value, text in zip(row, WORDS, strict=True)] for row in sums]
    for name, scores in (("choice-sum", sums), ("choice-normalised", per_character)):
        assert list(found.right[name].values()) == [int(numpy.argmax(row)) == i % 5 for i, row in enumerate(scores)]
    picked = {name: [int(numpy.argmax(row)) for row in scores] for name, scores in
              (("sum", sums), ("normalised", per_character))}
    assert picked["sum"] != picked["normalised"]  # else this could not tell the two apart
    assert tuple(found.right) == tuple(SCORERS)


def test_the_end_of_the_turn_is_no_part_of_a_choice() -> None:
    model, letters = copy.deepcopy(tiny()), tuple("abcdefghijklmnopqrstuvwxyz")
    with torch.no_grad():
        model.lm_head.weight[CHAT.stop_ids[0]] *= 5  # how likely the end is now differs widely from choice to choice
    pick, ended = (int(numpy.argmax([log_p(question("q"), letter + end, model) for letter in letters]))
                   for end in ("", "<|end|>"))
    assert pick != ended  # else this could not tell the two apart
    assert choose(model, [question("q", pick, letters)], CHAT, context=100, batch_size=8).right["choice-sum"]["q"]


def test_each_record_is_right_for_exactly_one_of_its_choices() -> None:
    found = [choose(tiny(), [question("q", right)], CHAT, context=100, batch_size=8).right for right in range(5)]
    for name in SCORERS:
        assert sum(right[name]["q"] for right in found) == 1


def test_a_record_that_does_not_fit_is_counted_and_not_cut() -> None:
    long = question("long " * 30)
    found = choose(tiny(), [question("short"), long], CHAT, context=60, batch_size=4)
    assert found.too_long == (long.id,)
    assert set(found.right["choice-sum"]) == {"short"}


def test_where_nothing_fits_nothing_is_scored() -> None:
    found = choose(tiny(), [question("q")], CHAT, context=5, batch_size=4)
    assert (found.right, found.too_long) == ({"choice-normalised": {}, "choice-sum": {}}, ("q",))


def test_a_row_without_choices_is_refused() -> None:
    assert not has_choices(talk.record("open question", "answer"))
    with pytest.raises(UsageError, match="no choices - row open question"):
        choose(tiny(), [talk.record("open question", "answer")], CHAT, context=100, batch_size=4)


def test_two_rows_of_one_id_are_refused() -> None:
    with pytest.raises(UsageError, match="two rows of one id - q"):
        choose(tiny(), [question("q"), question("q", 1)], CHAT, context=100, batch_size=4)


def test_a_log_probability_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = tiny().lm_head.weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight.data, float("nan")))
    with pytest.raises(NumericalError, match="of a choice is not a number"):
        choose(tiny(), [question("q")], CHAT, context=100, batch_size=4)
