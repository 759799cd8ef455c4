"""Rows that are shown are never asked, and are the same for all."""

from __future__ import annotations

import pytest
import talk
from saferestore.core.data.chat import ChatFormat
from saferestore.core.data.records import Message, Record
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.fewshot import Shots, hold_shots, parse_shots, with_shots

ROWS = [talk.record(f"question {i}", f"answer {i}") for i in range(20)]


def test_shots_are_whole_numbers_in_order() -> None:
    assert parse_shots("4, 0,1,4") == (0, 1, 4)


@pytest.mark.parametrize("text", ["", "1,", "one", "-1", "1.5"])
def test_other_shots_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no numbers of shots - --shots"):
        parse_shots(text)


def test_a_set_is_parted_by_seed_and_not_by_its_order() -> None:
    held = hold_shots(ROWS, (0, 1, 4), seed=0)
    assert len(held.solved) == 4
    assert sorted(r.id for r in (*held.scored, *held.solved)) == sorted(r.id for r in ROWS)
    assert {r.id for r in hold_shots(ROWS[::-1], (4,), seed=0).solved} == {r.id for r in held.solved}
    assert hold_shots(ROWS, (4,), seed=1).solved != held.solved


def test_no_copy_of_a_shown_row_is_asked() -> None:
    held = hold_shots([*ROWS, *(talk.record(f"question {i}", "other") for i in range(20))], (4,), seed=0)
    assert not {r.messages for r in held.scored} & {r.messages for r in held.solved}
    assert len(held.scored) == 40 - 8


def test_rows_from_elsewhere_leave_the_set_whole_and_are_none_of_it() -> None:
    pool = [*ROWS[:5], *(talk.record(f"other {i}", "yes") for i in range(3))]
    held = hold_shots(ROWS, (3,), seed=0, pool=pool)
    assert held.scored == tuple(ROWS)
    assert {r.id for r in held.solved} == {"other 0", "other 1", "other 2"}


def test_without_shots_every_row_is_asked() -> None:
    assert hold_shots(ROWS, (0,), seed=0) == Shots(tuple(ROWS), ())


@pytest.mark.parametrize(("rows", "shots"), [(ROWS, 20), (ROWS, 21), ([talk.record("unsolved")] * 3, 1)])
def test_too_few_rows_are_refused(rows: list[Record], shots: int) -> None:
    with pytest.raises(UsageError, match=f"too few rows - --shots {shots}"):
        hold_shots(rows, (shots,), seed=0)


def test_solved_rows_stand_after_the_system_turn_without_their_own() -> None:
    shot = Record("s", (Message("system", "Be odd."), Message("user", "2+2?")), "4")
    record = Record("r", (Message("system", "Be kind."), Message("user", "3+3?")), "6")
    asked = with_shots(record, (talk.record("never shown", "x"), shot), 1)
    assert [(m.role, m.content) for m in asked.messages] == [("system", "Be kind."), ("user", "2+2?"),
                                                             ("assistant", "4"), ("user", "3+3?")]
    assert (asked.id, asked.answer) == ("r", "6")
    assert with_shots(record, (shot,), 0) == record


def test_fewer_shots_are_the_last_of_more() -> None:
    one, two = (with_shots(ROWS[9], ROWS[:4], count).messages for count in (1, 2))
    assert two[2:] == one


def test_without_a_template_the_rows_are_text() -> None:
    tokenizer = talk.byte_tokenizer()
    ids = ChatFormat(tokenizer, None).prompt_ids(with_shots(ROWS[2], ROWS[:1], 1))
    assert tokenizer.decode(ids) == "question 0\nanswer 0\nquestion 2\n"
