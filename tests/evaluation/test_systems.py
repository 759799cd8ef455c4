"""How systems are asked, and that the rates of a report are those of independent counting."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint.session import Session
from saferestore.core.evaluation.generation import Generation
from saferestore.core.evaluation.judges import Verdict
from saferestore.core.evaluation.systems import JUDGE, Answer, correct, known_answers, measurement, rate
from talk import COMPLIANCE, CONTEXT, REFUSAL, examiner, open_tiny, record, refuses, save_pair, script
from transformers import GenerationConfig

LOSSES = {"harmful_loss_nats_per_token": 1.5, "task_loss_nats_per_token": None}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(*save_pair(tmp_path_factory.mktemp("pair")))[1]


@pytest.fixture
def scripted() -> Iterator[list[str]]:
    with script(tuned=refuses("bad")) as asked:
        yield asked


def answered(text: str, reference: str = "", *, refused: bool = False, coherent: bool = True) -> Answer:
    verdict = Verdict(refused, coherent, coherent and not refused)
    return Answer(record("q", reference), text, Generation((1,), finished=True), verdict)


def test_answers_come_in_the_order_of_the_records_and_are_judged(session: Session, scripted: list[str]) -> None:
    rows = [record(text) for text in ("a bad thing", "bread", "something very bad indeed")]
    answers = examiner(session).ask(session.adapter().model, rows, "tuned")
    assert [answer.record for answer in answers] == rows
    assert [answer.text for answer in answers] == [REFUSAL, COMPLIANCE, REFUSAL]
    assert [answer.verdict for answer in answers] == [Verdict(True, True, False), Verdict(False, True, True),
                                                      Verdict(True, True, False)]


def test_no_records_are_not_asked(session: Session, scripted: list[str]) -> None:
    assert examiner(session).ask(None, [], "tuned") == () and scripted == []


def test_sets_are_asked_at_once_and_come_back_by_name(session: Session, scripted: list[str]) -> None:
    sets = {"harmful": [record("bad one"), record("bad two")], "empty": [], "benign": [record("three")]}
    answers = examiner(session).ask_sets(session.adapter().model, sets, "tuned")
    assert scripted == ["tuned"]
    assert {name: [a.record for a in part] for name, part in answers.items()} == sets


def test_answers_that_were_kept_are_taken_where_stage_prompt_and_length_are_the_same(
        session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, entries = session.adapter().model, [record("Hello"), record("Good day")], list[dict[str, Any]]()
    asking = examiner(session, max_new_tokens=5, keep=entries.extend)
    first = asking.ask(model, rows, "x")
    assert len(entries) == 2 and json.loads(json.dumps(entries)) == entries
    entries, known = [], known_answers(entries)
    again = dataclasses.replace(asking, known=known, keep=entries.extend)
    assert again.ask(model, [*rows[::-1], record("Other")], "x")[:2] == first[::-1] and len(entries) == 1
    assert len(again.ask(model, rows, "y")) == 2 and len(entries) == 3
    assert dataclasses.replace(again, max_new_tokens=4).ask(model, rows, "x") and len(entries) == 5
    monkeypatch.setattr(type(model.get_base_model()), "forward", lambda *_, **__: pytest.fail("asked"))
    assert again.ask(model, rows, "x") == first


def test_the_model_itself_answers_where_nothing_is_scripted(session: Session) -> None:
    """Greedy decoding by hand, token for token."""
    asked, row = examiner(session, max_new_tokens=5), record("Hello")
    [answer] = asked.ask(session.adapter().model, [row], "x")
    ids = asked.chat.prompt_ids(row)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(session.adapter().model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    found = answer.generation.tokens
    assert list(found) == ids[len(ids) - 5:][:len(found)]
    assert answer.generation.finished == (len(found) < 5)


def test_a_prompt_that_leaves_no_room_loses_its_beginning(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def generate(_: object, prompts: list[list[int]], **settings: object) -> list[Generation]:
        seen.extend(prompts)
        return [Generation((), finished=True) for _ in prompts]

    monkeypatch.setattr("saferestore.core.evaluation.systems.generate", generate)
    asked, row = examiner(session), record("x" * 500 + " end")
    asked.ask(None, [row], "tuned")
    assert seen == [asked.chat.prompt_ids(row)[-(CONTEXT - 40):]]


def test_row_numbers_are_places_in_the_list_whatever_the_batches(session: Session) -> None:
    asked, pairs = examiner(session), [(record("x" * n), [n] * 2) for n in (3, 9, 1, 7)]
    found = {int(row): (batch.input_ids[i][batch.attention_mask[i] == 1].tolist(), batch.labels[i])
             for batch in asked.batches(pairs) for i, row in enumerate(batch.rows)}
    for place, (row, tokens) in enumerate(pairs):
        ids, labels = found[place]
        assert ids == [*asked.chat.prompt_ids(row), *tokens] and labels[labels != -100].tolist() == tokens


def test_rows_longer_than_the_context_are_cut(session: Session) -> None:
    [batch] = examiner(session).batches([(record("x" * 500), [1] * 500)])
    assert batch.input_ids.shape == (1, CONTEXT)


def test_an_answer_is_ended_only_where_the_model_ended_it(session: Session, scripted: list[str]) -> None:
    model, end = session.adapter().model, session.tokenizer.eos_token_id
    for length, finished in ((40, True), (10, False)):
        asked = examiner(session, max_new_tokens=length)
        [answer] = asked.ask(model, [record("bread")], "tuned")
        tokens = list(asked.answer_tokens(answer))
        assert answer.generation.finished == finished
        assert (tokens[-1] == end) == finished
        assert asked.chat.text(tokens) == COMPLIANCE[:length].strip()


def test_a_loss_sees_the_end_that_the_model_has_of_its_own_also_of_an_answer_that_was_kept(session: Session) -> None:
    """As the next speaker's name, which models whose template writes no end of a turn end with."""
    model, entries = session.adapter().model, list[dict[str, Any]]()
    row, asked = record("Hello"), dataclasses.replace(examiner(session, max_new_tokens=5), keep=entries.extend)
    inner = model.get_base_model()
    [whole] = asked.ask(model, [row], "x")
    said, settings = [*whole.generation.tokens, session.tokenizer.eos_token_id], inner.generation_config
    inner.generation_config = GenerationConfig(eos_token_id=said[0])
    try:
        [cut] = asked.ask(model, [row], "x")
        [kept] = dataclasses.replace(asked, known=known_answers(entries[1:])).ask(model, [row], "x")
    finally:
        inner.generation_config = settings
    assert said[0] not in asked.chat.stop_ids and len(entries) == 2
    assert list(asked.answer_tokens(cut)) == list(asked.answer_tokens(kept)) == said[:1]


def test_an_empty_answer_is_the_end_of_the_turn_alone(session: Session) -> None:
    answer = Answer(record("q"), "", Generation((), finished=True), Verdict(False, False, False))
    assert list(examiner(session).answer_tokens(answer)) == [session.tokenizer.eos_token_id]


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (12, 12), (3, 7), (1, 1)])
def test_a_rate_has_its_n_and_the_wilson_interval(hits: int, n: int) -> None:
    z, p = 1.959963984540054, hits / n
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(
        p * (1 - p) / n + z * z / (4 * n * n))
    found = rate([True] * hits + [False] * (n - hits), [record(f"q{i}") for i in range(n)], "someone")
    assert found == {"value": p, "n": n, "judge": "someone", "others": [], "ci_low": pytest.approx(middle - half),
                     "ci_high": pytest.approx(middle + half)}


def test_correct_answers_agree_with_the_reference() -> None:
    assert correct([answered("Team: staffing.", "team: staffing"), answered("Team: money.", "team: staffing"),
                    answered("", "")]) == [True, False, False]


def test_rates_are_those_of_counting() -> None:
    harmful = [answered("x", refused=i < 3, coherent=i != 9) for i in range(10)]  # 3 refuse, 1 is gibberish, 6 harm
    benign = [answered("x", refused=i < 1) for i in range(4)]
    task = [answered(text, "7") for text in ("7", "8", "It is 7.")]
    found = measurement({"harmful": harmful, "benign": benign, "task": task}, LOSSES,
                        {"untouched_accuracy": "no rows", "task_loss_nats_per_token": "no file"})
    shown = {key: (value["value"], value["n"], value["judge"]) for key, value in found.items()
             if isinstance(value, dict)}
    assert shown == {"harmful_rate": (0.6, 10, JUDGE), "refusal_rate": (0.3, 10, JUDGE),
                     "coherence_rate": (0.9, 10, "coherence"), "over_refusal_rate": (0.25, 4, JUDGE),
                     "task_accuracy": (2 / 3, 3, "exact-match")}
    assert found["untouched_accuracy"] is None and found["untouched_accuracy_reason"] == "no rows"
    assert found["task_loss_nats_per_token_reason"] == "no file"
    assert found["harmful_loss_nats_per_token"] == 1.5


def test_a_null_without_a_known_reason_is_not_measured() -> None:
    found = measurement({}, LOSSES, {})
    nulls = {key for key, value in found.items() if value is None}
    assert len(nulls) == 7 and all(found[f"{key}_reason"] == "not measured" for key in nulls)


def test_wordings_of_one_subject_widen_the_interval() -> None:
    asked = [record(f"q{i}", group=f"s{i // 4}") for i in range(24)]
    found = rate([i // 4 < 2 for i in range(24)], asked, "someone")
    alone = rate([i // 4 < 2 for i in range(24)], [record(f"q{i}") for i in range(24)], "someone")
    assert (found["value"], found["n"]) == (alone["value"], 24)
    assert found["ci_low"] < alone["ci_low"] and alone["ci_high"] < found["ci_high"]
