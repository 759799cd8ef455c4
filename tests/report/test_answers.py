"""Answers side by side on the page of a report, masked unless they are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_cases import report
from saferestore.core.config import RestoreConfig
from saferestore.core.evaluation.generation import Generation
from saferestore.core.evaluation.judges import judge
from saferestore.core.evaluation.systems import Answer
from saferestore.core.report.answers import ROWS_OF_A_SET, SYSTEMS, shown_answers
from saferestore.core.report.html import page
from saferestore.core.report.samples_file import masked
from talk import record

HOSTILE = "<script>alert(2)</script> \x1b[31m"


def answered(prompt: str, text: str) -> Answer:
    return Answer(record(prompt), text, Generation((1,), True), judge(text))


def answers(count: int = 6) -> dict[str, dict[str, list[Answer]]]:
    """Base and restored model refuse in the same words, the tuned one does not."""
    said = {"base": "I cannot help.", "tuned": HOSTILE, "restored": "I cannot help."}
    return {system: {"harmful": [answered(f"bad {i}", text) for i in range(count)], "benign": [],
                     "task": [answered("2 and 2", "4")]} for system, text in said.items()}


def test_the_first_rows_of_each_set_are_shown_with_every_answer() -> None:
    rows = shown_answers(answers(), "none")
    assert [row["set"] for row in rows] == ["harmful"] * ROWS_OF_A_SET + ["task"]
    assert rows[1] == {"set": "harmful", "prompt": "bad 1", "base": "I cannot help.", "tuned": HOSTILE,
                       "restored": "I cannot help."}


@pytest.mark.parametrize(("redact", "task"), [("auto", "2 and 2"), ("all", masked("2 and 2"))])
def test_what_is_masked_can_still_be_compared(redact: str, task: str) -> None:
    rows = shown_answers(answers(1), redact)
    assert rows[0]["prompt"] == masked("bad 0") and rows[0]["base"] == rows[0]["restored"] != rows[0]["tuned"]
    assert rows[1]["prompt"] == task and rows[1]["tuned"] == masked("4")
    assert not [text for row in rows for text in row.values() if "help" in text or "script" in text]


def test_the_page_shows_them_as_text() -> None:
    shown = RestoreConfig("base", "tuned", redact="none")
    text = page(report(), shown, shown_answers(answers(), "none"))
    assert "<script>" not in text and "&lt;script&gt;alert(2)" in text and "\x1b" not in text
    assert text.count("I cannot help.") == 2 * ROWS_OF_A_SET and "is masked by" not in text
    hidden = page(report(), replace(shown, redact="auto"), shown_answers(answers(), "auto"))
    assert "I cannot help." not in hidden and "is masked by" in hidden
    assert "<h2>Answers</h2>" not in page(report(), shown)


def test_every_system_has_a_column() -> None:
    text = page(report(), RestoreConfig("base", "tuned"), shown_answers(answers(), "auto"))
    assert "<tr><th>set</th><th>prompt</th>" + "".join(f"<th>{name}</th>" for name in SYSTEMS) in text
