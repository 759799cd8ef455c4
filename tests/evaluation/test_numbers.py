"""Numbers beside the answers: against sums over tokens that are made one row at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import talk
import torch
from saferestore.core.config import no_progress
from saferestore.core.data.chat import ChatFormat
from saferestore.core.data.evaluation_sets import EvaluationSet
from saferestore.core.data.records import Record
from saferestore.core.evaluation.asking import Plan
from saferestore.core.evaluation.attacks import Setting
from saferestore.core.evaluation.intervals import design_effect, wilson
from saferestore.core.evaluation.numbers import Held, answer_batches, choices, drifts, likelihoods, perplexities
from saferestore.core.losses import log_probabilities
from transformers import LlamaConfig, LlamaForCausalLM

CHAT = ChatFormat(talk.byte_tokenizer(), talk.TEMPLATE)
SETTING = Setting(CHAT, context=120, max_new_tokens=8)
RECORDS = tuple(talk.record(f"question {i}" + "?" * i, f"answer {i}" * (1 + i % 2)) for i in range(5))
TASK = EvaluationSet("mine", "task", RECORDS, "f", "0" * 64, (), 0)


def tiny(seed: int) -> Any:
    torch.manual_seed(seed)
    shape = LlamaConfig(vocab_size=len(CHAT.tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=128, initializer_range=0.4)
    return LlamaForCausalLM(shape).double().eval()


MODEL, OTHER = tiny(0), tiny(1)


def log_p(model: Any, record: Record, text: str) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] at the tokens of an answer and its end, one row alone."""
    prompt, answer = CHAT.prompt_ids(record), CHAT.answer_ids(record, text)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1]
    return torch.log_softmax(logits, -1)


def of_tokens(model: Any, record: Record, text: str) -> torch.Tensor:
    """Log-probability of each token of an answer."""
    return log_p(model, record, text).gather(1, torch.tensor(CHAT.answer_ids(record, text))[:, None])[:, 0]


def test_perplexity_of_given_answers_weighs_every_token_alike() -> None:
    [row] = perplexities(MODEL, "base", [TASK], SETTING, 2, no_progress)
    tokens = torch.cat([of_tokens(MODEL, record, record.answer or "") for record in RECORDS])
    assert row["value"] == pytest.approx(math.exp(-float(tokens.mean())), rel=1e-9)
    assert (row["n"], row["set"], row["metric"], row["errors"]) == (5, "mine", "perplexity", 0)
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_harmful_and_benign_sets_have_no_perplexity() -> None:
    harmful = EvaluationSet("h", "harmful", RECORDS, "f", "0" * 64, (), 0)
    assert perplexities(MODEL, "base", [harmful], SETTING, 2, no_progress) == []


def test_variants_of_a_row_are_no_further_evidence_of_a_perplexity() -> None:
    def found(records: tuple[Record, ...]) -> Any:
        of_set = EvaluationSet("mine", "task", records, "f", "0" * 64, (), 0)
        [row] = perplexities(MODEL, "base", [of_set], SETTING, 2, no_progress)
        assert row["n"] == len(records)
        return pytest.approx((row["value"], row["ci_low"], row["ci_high"]))

    twice = tuple(replace(record, id=f"{record.id}{copy}", group=record.id) for record in RECORDS for copy in "ab")
    assert found(RECORDS).expected == found(twice)


def test_drift_is_the_divergence_from_the_tuned_model_per_token_of_its_answers() -> None:
    answers = {record.id: f"said {i}" for i, record in enumerate(RECORDS[:4])}
    batches = answer_batches(RECORDS, answers, SETTING, 3)
    held = Held(TASK, batches, log_probabilities(OTHER, batches).__getitem__, ["a", "b", "c", "d"])
    [row] = drifts(MODEL, "restored", [held], seed=0)
    parts = []
    for record in RECORDS[:4]:
        p, q = log_p(OTHER, record, answers[record.id]), log_p(MODEL, record, answers[record.id])
        parts.append((p.exp() * (p - q)).sum(-1))
    assert row["value"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)
    assert row["n"] == 4
    [own] = drifts(OTHER, "tuned", [held], seed=0)
    assert own["value"] == pytest.approx(0, abs=1e-6)


def test_variants_of_a_row_are_no_further_evidence_of_its_drift() -> None:
    answers = {record.id: f"said {i}" for i, record in enumerate(RECORDS)}

    def drift(records: tuple[Record, ...], groups: list[str]) -> dict[str, Any]:
        batches = answer_batches(records, answers, SETTING, 3)
        held = Held(TASK, batches, log_probabilities(OTHER, batches).__getitem__, groups)
        [row] = drifts(MODEL, "restored", [held], seed=0)
        assert row["n"] == len(records)
        return row

    once, variants = drift(RECORDS, list("abcde")), drift(RECORDS * 4, list("abcde") * 4)
    assert variants["value"] == pytest.approx(once["value"], rel=1e-9)
    assert variants["ci_high"] - variants["ci_low"] == pytest.approx(once["ci_high"] - once["ci_low"], rel=0.15)
    one = drift(RECORDS, ["a"] * 5)
    assert (one["value"], one["ci_low"], one["ci_high"]) == (pytest.approx(once["value"]), None, None)


def test_a_record_without_an_answer_is_left_out_of_batches() -> None:
    batches = answer_batches(RECORDS, {RECORDS[1].id: "x", RECORDS[3].id: ""}, SETTING, 4)
    assert sum(len(batch.rows) for batch in batches) == 1


def test_likelihoods_compare_means_per_token_and_a_prompt_the_base_answers_is_an_error() -> None:
    safe = {record.id: f"No, not {i}." for i, record in enumerate(RECORDS[:3])}
    harmful = {record.id: f"Sure, {i} it is" for i, record in enumerate(RECORDS)}
    found = likelihoods(MODEL, RECORDS, safe, harmful, SETTING, 2)
    for record in RECORDS[:3]:
        score = float(of_tokens(MODEL, record, harmful[record.id]).mean()
                      - of_tokens(MODEL, record, safe[record.id]).mean())
        assert found[record.id].score == pytest.approx(score, rel=1e-6)
        assert found[record.id].harmful is (score > 0)
    assert [found[r.id].error for r in RECORDS[3:]] == ["the base does not refuse this prompt"] * 2
    assert all(f.error for f in likelihoods(MODEL, RECORDS, {}, {}, SETTING, 2).values())


def test_choices_of_one_group_are_no_independent_evidence() -> None:
    records = tuple(replace(talk.record(f"question {i}", "no", meta={"choices": ("yes", "no"), "right": 1}),
                            group=f"subject {i // 3}") for i in range(6))
    rows, verdicts = choices(MODEL, "base", Plan((), {("mine", 0): records}, ()), {"mine": "task"}, SETTING, 4)
    for row, verdict in zip(rows, verdicts, strict=True):
        assert verdict["groups"] == {record.id: i // 3 for i, record in enumerate(records)}
        effect = design_effect(list(verdict["hits"].values()), [i // 3 for i in range(6)])
        rate = wilson(round(6 * row["value"]), 6, design_effect=effect)
        assert effect > 1 and (row["design_effect"], row["ci_low"], row["ci_high"]) == (
            effect, rate.ci_low, rate.ci_high)


def test_choices_that_do_not_fit_are_not_known_and_are_counted() -> None:
    def question(text: str) -> Record:
        return talk.record(text, "no", meta={"choices": ("yes", "no"), "right": 1})

    records = (question("short one"), question("short two"), question("long " * 30))
    plan = Plan((), {("mine", 0): records, ("mine", 2): records}, ())
    rows, verdicts = choices(MODEL, "base", plan, {"mine": "task"}, SETTING, 4)
    assert [(row["metric"], row["judge"]) for row in rows] == [
        ("task_accuracy", "choice-normalised"), ("task_accuracy", "choice-sum"),
        ("task_accuracy@2", "choice-normalised"), ("task_accuracy@2", "choice-sum")]
    for row, verdict in zip(rows, verdicts, strict=True):
        assert (row["n"], row["errors"]) == (2, 1)
        assert verdict["hits"][records[2].id] is None and set(verdict["hits"]) == {r.id for r in records}
        known = [hit for hit in verdict["hits"].values() if hit is not None]
        assert row["value"] == sum(known) / 2
