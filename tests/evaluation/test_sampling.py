"""Draws follow the distribution they are said to, and depend on nothing but the prompt and its decoding."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.generation import generate
from saferestore.core.evaluation.sampling import GREEDY, Decoding, choose, draws
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

LOGITS = [0.0, 2.0, 1.0, -1.0, 2.0]


def nucleus(logits: list[float], temperature: float, top_p: float) -> dict[int, float]:
    """The definition: the likeliest tokens, one after another, until they have the probability asked for."""
    p = numpy.exp(numpy.array(logits) / temperature)
    p /= p.sum()
    kept: dict[int, float] = {}
    for token in sorted(range(len(p)), key=lambda i: (-p[i], i)):
        if sum(kept.values()) >= top_p:
            break
        kept[token] = float(p[token])
    return {token: share / sum(kept.values()) for token, share in kept.items()}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.9), (1.0, 0.5), (1.0, 1e-9)])
def test_tokens_are_chosen_as_often_as_their_probability(temperature: float, top_p: float) -> None:
    n = 20_000
    uniform = torch.from_numpy(numpy.random.default_rng(0).random(n))
    tokens = choose(torch.tensor([LOGITS]).expand(n, -1), uniform, torch.full([n], temperature),
                    torch.full([n], top_p).double())
    expected = nucleus(LOGITS, temperature, top_p)
    counts = numpy.bincount(tokens.numpy(), minlength=len(LOGITS))
    assert {i for i, count in enumerate(counts) if count} == set(expected)
    if len(expected) > 1:
        seen = [counts[i] for i in expected]
        assert stats.chisquare(seen, [n * share for share in expected.values()]).pvalue > 0.001


def test_the_ends_of_the_unit_interval_choose_tokens_that_can_be() -> None:
    logits = torch.tensor([[1.0, float("-inf"), 1.0]] * 2)
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, uniform, torch.ones(2), torch.ones(2)).tolist() == [0, 2]


def test_logits_that_are_no_numbers_choose_some_token_instead_of_failing() -> None:
    found = choose(torch.full([1, 3], float("nan")), torch.tensor([0.5]), torch.ones(1), torch.ones(1))
    assert 0 <= int(found) < 3


def test_draws_depend_on_the_prompt_and_on_all_of_its_decoding_and_not_on_how_many_are_taken() -> None:
    how = Decoding(0.7, 0.9)
    first = draws([5, 6], how, 4)
    assert (draws([5, 6], how, 9)[:4] == first).all()
    for prompt, other in (([5, 6], Decoding(0.7, 0.9, seed=1)), ([56], how), ([5, 6], Decoding(0.8, 0.9)),
                          ([5, 6], Decoding(0.7, 1.0))):
        assert not numpy.isclose(draws(prompt, other, 4), first).any()


def test_answers_of_a_grid_are_independent_so_that_the_worst_of_them_is_that_of_so_many() -> None:
    """Over many prompts, how alike two ways draw is what chance says: correlations of shared numbers would be 1."""
    ways = [Decoding(t, p) for t in (0.7, 1.0) for p in (0.9, 1.0)]
    numbers = numpy.array([[draws([prompt], way, 2) for prompt in range(2000)] for way in ways]).reshape(4, -1)
    apart = numpy.abs(numpy.corrcoef(numbers) - numpy.eye(4))
    assert apart.max() < 4 / 4000**0.5
    assert stats.kstest(numbers.flatten(), "uniform").pvalue > 0.001


def tiny() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                        initializer_range=0.2, attn_implementation="eager")
    return LlamaForCausalLM(shape).eval()


def prompts(n: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, 61) for _ in range(draw.randint(1, 20))] for _ in range(n)]


def answers(model: Any, asked: list[list[int]], batch_size: int,
            decoding: Decoding | list[Decoding]) -> list[tuple[int, ...]]:
    found = generate(model, asked, max_new_tokens=8, batch_size=batch_size, pad_id=0, eos_ids=(1,), decoding=decoding)
    return [answer.tokens for answer in found]


def by_hand(model: Any, prompt: list[int], decoding: Decoding) -> tuple[int, ...]:
    """The definition: no cache, no padding, a token where the number falls in the sorted cumulative shares."""
    tokens: list[int] = []
    for u in draws(prompt, decoding, 8):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].double().tolist()
        shares, reached = nucleus(logits, decoding.temperature, decoding.top_p), 0.0
        ends = {token: (reached := reached + share) for token, share in shares.items()}
        token = next(token for token, end in ends.items() if u < end)
        if token == 1:
            break
        tokens.append(token)
    return tuple(tokens)


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_drawn_answers_in_batches_are_those_of_one_prompt_at_a_time(batch_size: int) -> None:
    model, asked, decoding = tiny(), prompts(24), Decoding(0.8, 0.9, seed=3)
    expected = [by_hand(model, prompt, decoding) for prompt in asked]
    assert answers(model, asked, batch_size, decoding) == expected != answers(model, asked, 5, GREEDY)


def test_an_answer_is_drawn_again_whatever_else_is_asked_and_another_seed_gives_another() -> None:
    model, asked = tiny(), prompts(12)
    torch.manual_seed(1)
    whole = answers(model, asked, 4, Decoding(1.0))
    torch.manual_seed(2)
    assert answers(model, asked[5:], 4, Decoding(1.0)) == whole[5:]
    assert answers(model, asked, 4, Decoding(1.0, seed=1)) != whole


def test_prompts_of_one_batch_may_be_decoded_differently() -> None:
    model, asked = tiny(), prompts(12)
    ways = [GREEDY, Decoding(1.0), Decoding(0.7, 0.8, seed=2)]
    alone = [answers(model, asked, 4, way) for way in ways]
    mixed = answers(model, [prompt for prompt in asked for _ in ways], 8, ways * len(asked))
    assert mixed == [found[i] for i in range(len(asked)) for found in alone]


def test_a_temperature_near_nothing_is_greedy() -> None:
    model, asked = tiny(), prompts(8)
    assert answers(model, asked, 4, Decoding(1e-6)) == answers(model, asked, 4, GREEDY)


@pytest.mark.parametrize(("settings", "what"), [((-1.0,), "temperature"), ((float("inf"),), "temperature"),
                                                ((1.0, 0.0), "top-p"), ((1.0, 1.5), "top-p")])
def test_a_decoding_that_names_no_distribution_is_refused(settings: tuple[float, ...], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Decoding(*settings)
