"""The rows of a comparison: read, answered by the model that is to answer them, and refused where too few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saferestore.core.checkpoint.session import Session
from saferestore.core.config import CompareConfig
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.landscape_rows import ComparedSets, answered_rows, read_sets

from ..talk import COMPLIANCE, REFUSAL, Say, examiner, open_tiny, record, refuses, save_pair, script


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(*save_pair(tmp_path_factory.mktemp("pair")))[1]


def sets(harmful: int = 12) -> ComparedSets:
    rows = {"harmful": tuple(record(f"bad {i}") for i in range(harmful)),
            "benign": tuple(record(f"good {i}") for i in range(11)),
            "task": tuple(record(f"task {i}", "done") for i in range(10))}
    return ComparedSets(rows, {}, ())


def always(text: str) -> Say:
    return lambda prompt: text


def test_the_tuned_model_answers_and_the_base_refuses(session: Session) -> None:
    with script(tuned=always(COMPLIANCE), base=refuses("bad")) as asked:
        found = answered_rows(session, examiner(session), sets())
    assert [len(rows) for rows in found.rows.sets.values()] == [12, 11, 10]
    assert [rows.start for rows in found.rows.sets.values()] == [0, 12, 23]
    assert sum(len(batch.rows) for batch in found.rows.batches) == 33
    assert found.counts == {"harmful_rows": 12, "benign_rows": 11, "task_rows": 10, "safe_rows": 12,
                            "harmful_rows_left_out": 0}
    assert sum(len(batch.rows) for batch in found.safe) == 12 and not found.warnings
    assert asked == ["answers of the tuned model", "answers of the base model"]


def test_harmful_prompts_that_the_tuned_model_refuses_are_left_out_and_counted(session: Session) -> None:
    with script(tuned=refuses("bad 1"), base=always(REFUSAL)):
        found = answered_rows(session, examiner(session), sets(21))
        # "bad 1" and "bad 10" to "bad 19" are refused
    assert found.counts["harmful_rows"] == len(found.rows.sets["harmful"]) == 10
    assert found.counts["harmful_rows_left_out"] == 11 and found.warnings[0][0] == "W_ALREADY_SAFE"


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(session: Session) -> None:
    long, given = record("x" * 200), sets()
    records = {**given.records, "benign": (*given.records["benign"], long)}
    with script(tuned=always(COMPLIANCE), base=refuses("bad")):
        found = answered_rows(session, examiner(session), ComparedSets(records, {}, ()))
    assert found.counts["benign_rows"] == 11
    assert found.warnings == (("W_TOO_LONG", "1 prompts leave no room for an answer and were not asked: 1 benign"),)


def test_a_tuned_model_that_refuses_everything_has_too_few_harmful_rows(session: Session) -> None:
    with script(tuned=refuses("bad"), base=always(REFUSAL)), pytest.raises(UsageError, match="harmful has 0, 10 are"):
        answered_rows(session, examiner(session), sets())


def test_a_base_that_complies_has_no_safety_gradient(session: Session) -> None:
    with script(tuned=always(COMPLIANCE), base=always(COMPLIANCE)):
        found = answered_rows(session, examiner(session), sets())
    assert not found.safe and [code for code, _ in found.warnings] == ["W_BASE_COMPLIES"]


def test_files_are_sampled_and_too_small_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p {i}"}) + "\n" for i in range(20)) + "{broken\n", encoding="utf-8")
    found = read_sets(CompareConfig(base="b", tuned="t", harmful=(str(file),), rows=15))
    assert {name: len(rows) for name, rows in found.records.items()} == {"harmful": 15, "benign": 15, "task": 15}
    assert [code for code, _ in found.warnings] == ["W_ROWS_REJECTED", "W_NO_TASK_ROWS"]
    with pytest.raises(UsageError, match="too few rows for a correlation - harmful has 4, 10 are needed"):
        read_sets(CompareConfig(base="b", tuned="t", harmful=(str(file),), rows=4))
