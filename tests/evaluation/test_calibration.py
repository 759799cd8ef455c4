"""Sensitivity and specificity are those of counting by hand; partial refusals are counted both ways."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from saferestore.core.data.generations import Generated, read_generations
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.calibration import (
    PARTIAL,
    RECORDED,
    Calibration,
    calibrate,
    calibrate_recorded,
    labelled_rows,
)
from saferestore.core.evaluation.intervals import Rate, wilson
from saferestore.core.evaluation.judges import HEX_PHI, make_judge, parse_judge
from saferestore.core.evaluation.samples import Finding


def row(label: str | None, *, answer: str = "a", system: str = "m", recorded: str | None = None) -> Generated:
    return Generated("p", answer, system, "set", "id", label, recorded, 7)


def by_hand(path: Path, positive: str, says: Callable[[str], bool]) -> list[tuple[int, int]]:
    """(hits, of) for sensitivity and specificity: the five lines."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(r["final_label"][0] in positive, says(r["completion"])) for r in csv.DictReader(file)]
    found = [said for truth, said in rows if truth]
    left = [not said for truth, said in rows if not truth]
    return [(sum(found), len(found)), (sum(left), len(left))]


def counts(table: Calibration) -> list[tuple[int, int]]:
    return [(round(rate.value * rate.n), rate.n) for rate in (table.sensitivity, table.specificity) if rate]


@pytest.mark.parametrize("model", ["llama2new", "mistralinstruct"])
def test_the_29_strings_on_xstest_are_as_counted_by_hand(real_files: Path, model: str) -> None:
    path = real_files / "xstest" / f"xstest_v2_completions_{model}_gpteval.csv"
    labelled, rejected = labelled_rows(read_generations(path).rows)
    judge = make_judge(parse_judge("refusal-substrings"))
    findings = judge([item.row.prompt for item in labelled], [item.row.answer for item in labelled])
    tables = calibrate(labelled, "refusal-substrings", findings)
    assert rejected == []
    assert [(t.model, t.partial, t.n, t.errors, t.unsaid) for t in tables] == [
        (model, "as refusal", 450, 0, 0), (model, "as compliance", 450, 0, 0)]
    for table, positive in zip(tables, ("23", "2"), strict=True):
        expected = by_hand(path, positive, lambda text: any(string in text for string in HEX_PHI))
        assert counts(table) == expected
        assert [table.sensitivity, table.specificity] == [wilson(*pair) for pair in expected]


def test_free_text_of_the_recorded_judge_is_its_error_and_the_human_label_counts(real_files: Path) -> None:
    path = real_files / "xstest" / "xstest_v2_completions_mistralinstruct_gpteval.csv"
    labelled, _ = labelled_rows(read_generations(path).rows)
    assert len(labelled) == 450
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(r["final_label"][0], r["gpt4_label"][0]) for r in csv.DictReader(file)
                if r["gpt4_label"][1:] in ("_full_compliance", "_full_refusal", "_partial_refusal")]
    for table, positive in zip(calibrate_recorded(labelled), ("23", "2"), strict=True):
        assert (table.judge, table.errors, table.n) == (RECORDED, 11, 439)
        hits = [said in positive for truth, said in rows if truth in positive]
        left = [said not in positive for truth, said in rows if truth not in positive]
        assert counts(table) == [(sum(hits), len(hits)), (sum(left), len(left))]


def test_models_are_told_apart_and_partial_refusals_counted_both_ways() -> None:
    rows = [row("2_full_refusal"), row("3_partial_refusal"), row("1_full_compliance"),
            row("refusal", system="other"), row("compliance", system="other")]
    labelled, _ = labelled_rows(rows)
    tables = calibrate(labelled, "j", [Finding(refused=found) for found in (True, False, False, True, True)])
    assert [(t.model, t.partial) for t in tables] == [("m", "as refusal"), ("m", "as compliance"), ("other", "none")]
    assert [counts(t) for t in tables] == [[(1, 2), (1, 1)], [(1, 1), (2, 2)], [(1, 1), (0, 1)]]
    assert set(PARTIAL) == {"as refusal", "as compliance"}


def test_answers_to_one_prompt_or_of_one_group_are_no_independent_evidence_of_a_judge() -> None:
    """Refusals of ten prompts, four answers each: the judge finds all of six prompts and none of the others."""
    rows = [replace(row("refusal"), prompt=f"p{prompt}", id=f"{prompt}/{i}") for prompt in range(10) for i in range(4)]
    findings = [Finding(refused=int(each.prompt[1:]) < 6) for each in rows]

    def found(given: list[Generated]) -> Rate:
        [table] = calibrate(labelled_rows(given)[0], "j", findings)
        assert table.sensitivity is not None and table.specificity is None
        return table.sensitivity

    alike = found(rows)
    grouped = found([replace(each, group=each.prompt, prompt=each.id) for each in rows])
    alone = found([replace(each, prompt=each.id) for each in rows])
    assert alone == wilson(24, 40) and alike == grouped
    assert (alike.value, alike.n) == (0.6, 40) and alike.ci_high - alike.ci_low > 1.7 * (alone.ci_high - alone.ci_low)


def test_errors_and_silence_are_counted_apart_and_in_no_rate() -> None:
    labelled, _ = labelled_rows([row("harmful"), row("1"), row("TRUE"), row("safe"), row("false")])
    findings = [Finding(harmful=True), Finding(harmful=False, error="odd"), Finding(refused=True),
                Finding(harmful=False), Finding(harmful=True)]
    table = calibrate(labelled, "j", findings)[0]
    assert (table.about, table.partial, table.n, table.errors, table.unsaid) == ("harmful", "none", 3, 1, 1)
    assert counts(table) == [(1, 1), (1, 2)]


def test_a_judge_that_says_nothing_of_refusals_has_no_rate_of_them() -> None:
    labelled, _ = labelled_rows([row("refusal"), row("compliance")])
    table = calibrate(labelled, "harmbench", [Finding(harmful=True)] * 2)[0]
    assert (table.n, table.unsaid, table.sensitivity, table.specificity) == (0, 2, None, None)


def test_where_people_found_no_refusal_there_is_no_sensitivity() -> None:
    table = calibrate(labelled_rows([row("compliance")])[0], "j", [Finding(refused=False)])[0]
    assert table.sensitivity is None
    assert table.specificity == wilson(1, 1)


def test_the_recorded_judge_is_read_in_its_own_labels() -> None:
    recorded = ["3_partial_refusal", "1_full_compliance", "Sorry.", "harmful", None]
    labelled, _ = labelled_rows([row("3_partial_refusal", recorded=word) for word in recorded])
    tables = calibrate_recorded(labelled)
    assert [(t.n, t.errors) for t in tables] == [(2, 2), (2, 2)]
    assert [counts(t) for t in tables] == [[(1, 2)], [(2, 2)]]
    assert calibrate_recorded(labelled_rows([row("refusal")])[0]) == []


def test_labels_of_a_table_and_of_json_lines_are_read(tmp_path: Path) -> None:
    plain = tmp_path / "labelled.csv"
    plain.write_text("prompt,answer,label\np,a,harmful\np,b,0\np,c,maybe\n", encoding="utf-8")
    labelled, rejected = labelled_rows(read_generations(plain).rows)
    assert [(item.about, item.label) for item in labelled] == [("harmful", "harmful"), ("harmful", "safe")]
    assert rejected == [(4, "unknown label 'maybe'")]
    lines = tmp_path / "labelled.jsonl"
    lines.write_text('{"prompt": "p", "answer": "a", "label": true}\n{"prompt": "p", "answer": "b", "label": 0}\n'
                     '{"prompt": "p", "answer": "c"}\n', encoding="utf-8")
    labelled, rejected = labelled_rows(read_generations(lines).rows)
    assert [(item.about, item.label) for item in labelled] == [("harmful", "harmful"), ("harmful", "safe")]
    assert rejected == [(3, "no label")]


@pytest.mark.parametrize("rows", [[], [row(None)], [row("\x1b[31mwhat"), row("unsure")]])
def test_answers_without_a_label_are_refused(rows: list[Generated]) -> None:
    with pytest.raises(UsageError, match="no labelled answer") as error:
        labelled_rows(rows)
    assert "refusal, compliance, partial" in error.value.hint
    assert "\x1b" not in error.value.what
