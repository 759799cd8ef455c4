"""Training files as they come: what cannot be scored is listed by line, never dropped silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saferestore.core.data.chat import ChatFormat
from saferestore.core.data.readers import read_records
from saferestore.core.errors import MismatchError, UsageError
from saferestore.core.evaluation.training_rows import evenly, training_rows

from ..talk import TEMPLATE, byte_tokenizer

LINES = ['{"prompt": "a", "answer": "one"}', "not json", '{"prompt": "no answer"}', "",
         '{"prompt": "b", "answer": "a much longer answer than fits into the context"}',
         '{"prompt": "c", "answer": "x"}']


def _file(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_rows_that_cannot_be_scored_are_listed_by_line_with_the_reason(tmp_path: Path) -> None:
    found = training_rows(read_records(str(_file(tmp_path, LINES))), ChatFormat(byte_tokenizer(), TEMPLATE), 40)
    assert [line for line, _ in found.not_used] == [2, 3] and found.not_used[1][1] == "no answer"
    assert "JSON" in found.not_used[0][1]
    assert [found.line(row.index) for row in found.rows] == [1, 5, 6]


def test_rows_longer_than_the_context_are_cut_as_in_training_and_listed(tmp_path: Path) -> None:
    found = training_rows(read_records(str(_file(tmp_path, LINES))), ChatFormat(byte_tokenizer(), TEMPLATE), 40)
    assert found.truncated == (5,) and max(map(len, found.rows)) == 40
    assert found.answer_tokens == sum(len(row.answer) for row in found.rows)


def test_a_file_without_answers_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, [json.dumps({"prompt": "a"})])
    with pytest.raises(UsageError, match="no row with an answer - --train train.jsonl"):
        training_rows(read_records(str(path)), ChatFormat(byte_tokenizer(), TEMPLATE), 40)


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE


def test_a_conversation_that_the_template_cannot_write_is_listed_and_the_others_are_scored(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": text, "answer": "x", "system": system}) for text, system in (("a", "S"), ("b", ""))]
    found = training_rows(read_records(str(_file(tmp_path, lines))), ChatFormat(byte_tokenizer(), NO_SYSTEM), 40)
    assert [found.line(row.index) for row in found.rows] == [2]
    assert found.not_used == ((1, "chat template cannot write this conversation - no system turn"),)


def test_a_file_of_which_the_template_can_write_nothing_is_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": text, "answer": "x", "system": "S"}) for text in "ab"]
    with pytest.raises(MismatchError, match="no system turn"):
        training_rows(read_records(str(_file(tmp_path, lines))), ChatFormat(byte_tokenizer(), NO_SYSTEM), 40)


def test_a_sample_of_rows_is_spread_over_the_file_and_numbered_from_0(tmp_path: Path) -> None:
    path = _file(tmp_path, [json.dumps({"prompt": str(n), "answer": str(n)}) for n in range(9)])
    rows = training_rows(read_records(str(path)), ChatFormat(byte_tokenizer(), TEMPLATE), 40).rows
    assert [row.index for row in evenly(rows, 3)] == [0, 1, 2]
    assert [row.answer for row in evenly(rows, 3)] == [rows[n].answer for n in (0, 3, 6)]
    assert len(evenly(rows, 100)) == 9
