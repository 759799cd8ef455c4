"""What is asked of every system: all of it, once, in batches that a killed run would have had, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import talk
from saferestore.core.config import no_progress
from saferestore.core.data.chat import ChatFormat
from saferestore.core.data.evaluation_sets import EvaluationSet
from saferestore.core.data.records import Record
from saferestore.core.errors import UsageError
from saferestore.core.evaluation import asking
from saferestore.core.evaluation.asking import Plan, ask, plan_questions, samples_of
from saferestore.core.evaluation.attacks import Setting, parse_attacks
from saferestore.core.evaluation.generation import Generation, plan_batches

CHAT = ChatFormat(talk.byte_tokenizer(), talk.TEMPLATE)
SETTING = Setting(CHAT, context=400, max_new_tokens=8)
DRAWN = "decode:t=1;p=1;n=2"
TWO = {"choices": ("a", "b"), "right": 1}


def rows(count: int, answer: str | None = None, prefix: str = "prompt") -> tuple[Record, ...]:
    return tuple(talk.record(f"{prefix} {i}" + "!" * i, answer) for i in range(count))


def of(role: str, records: Sequence[Record], name: str = "") -> EvaluationSet:
    return EvaluationSet(name or role, role, tuple(records), "f", "0" * 64, (), 0)


def planned(*sets: EvaluationSet, attacks: tuple[str, ...] = (), shots: tuple[int, ...] = (0,),
            **changes: Any) -> Plan:
    return plan_questions(sets, parse_attacks(attacks), shots, replace(SETTING, **changes))


def places(plan: Plan) -> list[tuple[str, str, int]]:
    return list(dict.fromkeys((q.set, q.attack, q.shots) for q in plan.questions))


def test_harmful_sets_are_attacked_task_rows_have_shots_and_others_are_asked_as_they_stand() -> None:
    plan = planned(of("harmful", rows(3)), of("benign", rows(3)), of("task", rows(4, "1")),
                   of("untouched", rows(2, "2")), attacks=("prefill:2", "decode:t=1.0;n=2"), shots=(0, 1))
    assert places(plan) == [("harmful", "none", 0), ("harmful", "prefill:2", 0), ("harmful", DRAWN, 0),
                            ("benign", "none", 0), ("task", "none", 0), ("task", "none", 1), ("untouched", "none", 0)]
    counts = [sum((q.set, q.attack, q.shots) == place for q in plan.questions) for place in places(plan)]
    assert counts == [3, 3, 6, 3, 3, 3, 2]  # two draws of each prompt; one task row is shown and not asked
    assert {q.attempt.variant for q in plan.questions if q.attack == DRAWN} == {"t=1;p=1;1", "t=1;p=1;2"}


def test_a_question_with_solved_rows_keeps_the_record_as_it_is() -> None:
    plan = planned(of("task", rows(4, "the answer")), shots=(0, 2))
    zero, two = ([q for q in plan.questions if q.shots == shots] for shots in (0, 2))
    assert [q.record for q in zero] == [q.record for q in two]
    for bare, shown in zip(zero, two, strict=True):
        text = CHAT.tokenizer.decode(list(shown.attempt.prompt))
        assert str(text).count("the answer") == 2 and str(text).endswith(
            str(CHAT.tokenizer.decode(list(bare.attempt.prompt))))


def test_multiple_choice_is_scored_and_not_asked() -> None:
    choice = [replace(record, meta=TWO) for record in rows(3, "b")]
    plan = planned(of("task", [*choice, *rows(2, "1", "other")]))
    assert plan.scored == {("task", 0): tuple(choice)}
    assert [q.record.prompt for q in plan.questions] == ["other 0", "other 1!"]


def test_what_does_not_fit_is_counted_and_never_cut() -> None:
    long = talk.record("x" * 300)
    plan = planned(of("harmful", [*rows(2), long]), attacks=("template:story",), context=330)
    assert ("harmful", "template:story", long.id) in plan.too_long
    assert all(len(q.attempt.prompt) <= 330 - 8 for q in plan.questions)
    assert len(plan.questions) + len(plan.too_long) == 6


def test_shots_need_rows_to_show_and_rows_to_ask() -> None:
    with pytest.raises(UsageError, match="too few rows - --shots 4"):
        planned(of("task", rows(4, "1")), shots=(0, 4))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The batches that generation was given; question i is answered by its number."""
    seen: list[list[int]] = []

    def generate(model: Any, prompts: Any, batches: Sequence[Sequence[int]],
                 **_: Any) -> Iterator[tuple[list[int], list[Generation]]]:
        for batch in batches:
            seen.append(list(batch))
            texts = [tuple(CHAT.tokenizer(f"answer {i}")["input_ids"]) for i in batch]
            yield list(batch), [Generation(text, True) for text in texts]

    monkeypatch.setattr(asking, "generate_batches", generate)
    return seen


def answers(plan: Plan, known: dict[int, Any], kept: list[list[Any]]) -> dict[int, Any]:
    return dict(ask(None, "base", plan.questions, SETTING, known, batch_size=3, keep=kept.append,
                    progress=no_progress))


def test_every_batch_is_kept_before_the_next_and_nothing_known_is_asked_again(asked: list[list[int]]) -> None:
    plan, kept = planned(of("harmful", rows(10))), []
    whole = answers(plan, {}, kept)
    batches = plan_batches([q.attempt.prompt for q in plan.questions], 3)
    assert asked == batches and [[e["question"] for e in part] for part in kept] == batches
    assert [whole[i]["text"] for i in range(10)] == [f"answer {i}" for i in range(10)]
    first = {e["question"]: e for part in kept[:2] for e in part}
    del first[batches[1][2]]  # a kill tore this line: its batch is asked whole, so that it has the same neighbours
    asked.clear()
    again: list[list[Any]] = []
    assert answers(plan, first, again) == whole
    assert asked == batches[1:]
    assert [[e["question"] for e in part] for part in again] == [batches[1][2:], *batches[2:]]


def test_samples_say_whether_a_task_row_is_right_and_of_others_nothing(asked: list[list[int]]) -> None:
    plan = planned(of("harmful", rows(2)), of("task", [talk.record("two?", "answer 2"), talk.record("three?", "no")]))
    found = samples_of(plan.questions, answers(plan, {}, []))
    assert [(s.role, s.correct, s.reference) for s in found] == [
        ("harmful", None, None), ("harmful", None, None), ("task", True, "answer 2"), ("task", False, "no")]
    assert [(s.system, s.text, s.finished, s.tokens) for s in found[:1]] == [("base", "answer 0", True, 8)]
    assert not any(s.findings for s in found)
