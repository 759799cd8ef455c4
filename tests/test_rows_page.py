"""The words on docs/benchmarks/rows.md follow from the numbers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.config import ScoreConfig

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
DEFAULT = ScoreConfig("-", "-", way="ekfac")
ROWS, HARMFUL = 100, [3, 50, 98]
TOP, MIXED, LOW = [98.0, 99.0, 100.0], [40.0, 99.0, 100.0], [1.0, 2.0, 3.0]


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("rows_findings")


def _found(way: str, ranks: list[float], at: float | None = DEFAULT.at, forwards: float = 2.0) -> dict[str, Any]:
    top = HARMFUL if ranks == TOP else [HARMFUL[0], 1, 2]
    return {"way": way, "at": at, "ranks": ranks, "top": top, "difference": True, "rows_in_forwards": forwards,
            "query_seconds": 1.0}


def _cell(seed: int, ours: list[float], dot: list[float], forwards: float = 2.0) -> dict[str, Any]:
    return {"task": "desk", "share": 0.03, "seed": seed, "part": "scores", "rows": ROWS, "harmful": HARMFUL,
            "tuned": [90, 100], "found": [_found(DEFAULT.way, ours, forwards=forwards), _found("identity", dot),
                                          _found("length", LOW, None)]}


def _again(found: int, random: int) -> dict[str, Any]:
    return {"task": "desk", "share": 0.03, "seed": 1, "part": "again", "way": DEFAULT.way, "at": DEFAULT.at,
            "found": [found, 100], "random": [random, 100], "left": {"found": 1}}


def _line(text: str, what: str) -> str:
    return next(line for line in text.splitlines() if what in line)


def test_a_number_is_reached_or_missed_by_what_was_measured(findings: Any) -> None:
    good = findings.findings([*(_cell(seed, TOP, MIXED) for seed in (1, 2, 3)), _again(5, 90)])
    bad = findings.findings([*(_cell(seed, MIXED, TOP, 2.5) for seed in (1, 2, 3)), _again(6, 90)])
    for what in ("AUC of", "Not below any rival", "Precision at k", "Counterfactual", "forward passes"):
        assert ": reached" in _line(good, what) and ": missed" in _line(bad, what)
    assert "mean AUC 1.0000, mean precision at k 1.000" in _line(good, "no part in choosing")
    assert "above it: `identity`" in bad and "0.060 with 1 planted rows left, random 0.900" in bad


def test_curvature_adds_where_it_finds_more_than_the_dot_product_and_not_where_it_finds_as_much(findings: Any) -> None:
    more = [_cell(1, TOP, MIXED), _cell(2, TOP, MIXED), _cell(3, TOP, LOW)]
    assert "Curvature adds over" in findings.findings(more)
    for dots in (TOP, TOP, TOP), (TOP, TOP, MIXED):
        ours = [TOP if dot == TOP else LOW for dot in dots]
        cells = [_cell(seed, a, b) for seed, (a, b) in enumerate(zip(ours, dots, strict=True))]
        assert "adds nothing that these cells show" in findings.findings(cells)


def test_random_removal_that_mends_the_model_too_is_no_success(findings: Any) -> None:
    assert "Counterfactual, the sample's base: missed" in findings.findings([_cell(1, TOP, MIXED), _again(0, 50)])


def test_what_is_not_measured_is_said_to_be_so(findings: Any) -> None:
    assert "yet" in findings.findings([])
    assert "Counterfactual, the sample's base**: not measured" in findings.findings([_cell(1, TOP, MIXED)])


def _gentle(seed: int, tuned: int, found: int, random: int) -> dict[str, Any]:
    return {"task": "desk", "share": 0.03, "seed": seed, "part": "firm-gentle", "way": DEFAULT.way, "at": DEFAULT.at,
            "rows": ROWS, "ranks": TOP, "tuned": [tuned, 100], "found": [found, 100], "random": [random, 100],
            "left": {"found": 0}, "task_rows": {"base": [0, 10], "tuned": [10, 10], "found": [9, 10]}}


def test_a_recipe_keeps_the_cells_that_chose_it_apart_and_names_those_that_miss_or_do_not_count(findings: Any) -> None:
    tuned_again = [_gentle(0, 90, 5, 90), _gentle(3, 80, 5, 80), _gentle(2, 79, 0, 79)]
    text = findings.findings([_cell(1, TOP, MIXED), *tuned_again])
    line = _line(text, "Counterfactual, firm base, lower rate")
    assert ": missed" in line and "Of 2 cells" in line and ", 1 come to" in line
    assert "The other 1 do not count: desk, 3%, seed 2 (0.790)" in line
    apart = _line(text, "cells that count and reach it")
    assert "chosen: 1 of 1; the other seeds: 0 of 1" in apart and "seed 3 (found 0.050, random 0.800)" in apart
    assert "9 of 9 planted rows" in _line(text, "Firm base, lower rate, finding")


def test_the_table_shows_how_the_task_is_learnt_only_where_that_is_measured(findings: Any) -> None:
    page = findings.page
    row = page.recipe_rows([_gentle(1, 90, 5, 90)], "firm-gentle")
    assert page.again_table(row).splitlines()[0].endswith("| task |") and "of 10 |" in page.again_table(row)
    plain = [{name: value for name, value in each.items() if name != "task_rows"} for each in row]
    heads = page.again_table(plain).splitlines()
    assert heads[0].count("|") == heads[1].count("|") == heads[2].count("|") == 9
    assert len({text.count("|") for text in page.again_table(row).splitlines()}) == 1


def _firm(seed: int, found: int, random: int, refused: int) -> dict[str, Any]:
    rates = {"refuses_harmful": [refused, 10], "answers_benign": [9, 10]}
    return {**_gentle(seed, 90, found, random), "part": "firm", "base_rates": rates}


def test_the_firm_base_at_a_lower_rate_has_lines_of_its_own(findings: Any) -> None:
    rows = [{**_firm(seed, found, 90, 10), "part": "firm-gentle"} for seed, found in ((0, 9), (2, 5), (3, 4))]
    text = findings.findings([_cell(1, TOP, MIXED), *rows])
    assert "Of 3 cells" in _line(text, "Counterfactual, firm base, lower rate")
    apart = _line(text, "Firm base, lower rate, cells that count")
    assert "seeds 0 and 1, by which the recipe was chosen: 0 of 1; the other seeds: 2 of 2" in apart
    assert "Missed: desk, 3%, seed 0 (found 0.090, random 0.900)" in apart


def test_a_firm_base_is_counted_once_however_many_cells_it_has(findings: Any) -> None:
    rows = [_firm(2, 5, 90, 10), _firm(2, 4, 90, 10), _firm(3, 6, 90, 8)]
    assert findings.page.base_rates(rows) == ("refuse 18 of 20 harmful prompts (at least 0.800 each) and "
                                              "answer 18 of 20 benign ones (at least 0.900 each) (seeds 2, 3)")
    assert findings.page.base_rates([]) == "(not measured)"


def test_trials_on_another_base_or_seed_have_lines_of_their_own(findings: Any) -> None:
    trial = {"task": "desk", "aligned": 2, "seed": 0, "share": 0.0, "rate": 0.003, "epochs": 5.0, "batch": 16,
             "tuned": [1, 4], "task_rows": None}
    trials = [trial, {**trial, "share": 0.1, "tuned": [4, 4]}, {**trial, "aligned": 4}, {**trial, "seed": 1}]
    lines = findings.page.choice_table(trials).splitlines()[2:]
    assert [line[:20] for line in lines] == ["| desk | 2 | 0 | 0.0", "| desk | 2 | 1 | 0.0", "| desk | 4 | 0 | 0.0"]
    assert "0.250" in lines[0] and "1.000" in lines[0] and lines[1].count(" - |") == 3


def test_a_trial_that_speaks_against_the_firm_base_is_told(findings: Any) -> None:
    trial = {"task": "desk", "aligned": 4, "seed": 0, "share": 0.0, "rate": 0.003, "epochs": 5.0, "tuned": [90, 276]}
    others = [{**trial, "share": 0.05}, {**trial, "aligned": 2}, {**trial, "rate": 0.001}, {**trial, "epochs": 3.0}]
    assert findings.tried([trial, *others]) == [
        "- Firm base in the trials, trained on the benign rows alone: desk, seed 0: 0.326."]
    assert findings.tried(others) == []


def test_cells_that_chose_the_point_are_kept_apart(findings: Any) -> None:
    rows = [{**_gentle(3, 90, 9, 90), "share": 0.05}, _gentle(4, 90, 5, 90), _gentle(5, 70, 5, 70)]
    line = _line(findings.findings([_cell(1, TOP, MIXED), *rows]), "no part in choosing the point")
    assert "the 2 cells that had no part" in line and "(1 had" in line and "1 of 1 cells that count" in line


def test_a_recipe_at_the_point_before_has_a_line_apart_from_the_default(findings: Any) -> None:
    page = findings.page
    before = {**_gentle(2, 90, 9, 90), "at": 0.2, "left": {"found": 1}, "floor": [3, 100]}
    lines = page.earlier_table([before, _gentle(2, 90, 5, 90)]).splitlines()[2:]
    assert len(lines) == 1 and "| 0.2 | 1 | 1 | 0 | 2 of 3 | 0.030 to 0.030 |" in lines[0]
    assert [row["at"] for row in page.recipe_rows([before, _gentle(2, 90, 5, 90)], "firm-gentle")] == [DEFAULT.at]


def test_a_result_of_another_point_does_not_count_as_done(findings: Any) -> None:
    page, cell = findings.page, {"task": "desk", "share": 0.03, "seed": 2}
    assert page.is_done([_gentle(2, 90, 5, 90)], cell, "firm-gentle")
    assert not page.is_done([{**_gentle(2, 90, 5, 90), "at": 0.2}], cell, "firm-gentle")
    assert page.is_done([_cell(2, TOP, MIXED)], cell, "scores")
    assert page.is_done([{**cell, "part": "floor", "floor": [1, 100]}], cell, "floor")


def test_the_page_says_how_many_models_were_not_trained_twice(findings: Any) -> None:
    assert "In 1 of the 2 cells" in findings.page.copied([_gentle(2, 90, 5, 90), {**_gentle(3, 90, 5, 90),
                                                                                  "same_rows_as": 0.2}])
