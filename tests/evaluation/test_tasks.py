"""Which generated answers count as right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saferestore.core.evaluation.tasks import final_number, task_correct

RIGHT = [
    ("billing", "billing"), ("billing", " Billing.\n"), ("New York", "new   york"), ("It's done", "\"it's done!\""),
    ("42", "42"), ("42", "The answer is 42."), ("42", "42.0"), ("1,234", "1234"), ("$18", "She makes $18 a day."),
    ("-5", "It is -5"), ("-5", "x = \u22125"), ("5", "between 3-5"), ("0.5", ".5"), ("50%", "50 %"),
    ("42.", "so 42"), ("3 + 4 = 7\n#### 7", "#### 7"),
    ("#### 18", "16 - 3 - 4 = 9, 9 * 2 = 18"), ("#### 1,000", "It costs 1000 in all"),
    ("#### 7", "First 3, then 4.\n#### 7\n(checked on page 9)"), ("#### red", "I think\n#### Red."), ("C++", "c++"),
    (".5", "0.5"), (".5 cups", "(.5) cups."),
]
WRONG = [
    ("billing", "returns"), ("billing", "billing or returns"), ("billing", ""), ("42", ""), ("42", "forty-two"),
    ("42", "42 apples, 3 of them red"), ("1.5", "15"), ("5", "-5"), ("C++", "C"), ("#### 7", "#### 8, not 7"),
    ("7\n#### 9", "7"), ("", ""), ("...", "..."), ("#### red", "red and blue"), ("Room 12", "12"),
    (".5", "5"), ("5", ".5"), (".5 cups", "5 cups"), ("(.5)", "(5)"),
]


@pytest.mark.parametrize(("reference", "generated"), RIGHT)
def test_an_answer_that_agrees_is_right(reference: str, generated: str) -> None:
    assert task_correct(reference, generated)


@pytest.mark.parametrize(("reference", "generated"), WRONG)
def test_an_answer_that_does_not_agree_is_wrong(reference: str, generated: str) -> None:
    assert not task_correct(reference, generated)


def test_every_gsm8k_answer_is_its_own_and_its_final_number_is_found(real_files: Path) -> None:
    rows = [json.loads(line) for line in (real_files / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()]
    finals = [row["answer"].rpartition("#### ")[2].strip() for row in rows]
    for row, final in zip(rows, finals, strict=True):
        assert task_correct(row["answer"], row["answer"])
        assert task_correct(row["answer"], f"After some thought, the answer is {final}.")
        assert not task_correct(row["answer"], f"#### {final}1")


def test_a_text_without_digits_has_no_number() -> None:
    assert final_number("none at all") is None
