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
    assert "Counterfactual, 5 epochs: missed" in findings.findings([_cell(1, TOP, MIXED), _again(0, 50)])


def test_what_is_not_measured_is_said_to_be_so(findings: Any) -> None:
    assert "yet" in findings.findings([])
    assert "Counterfactual, 5 epochs**: not measured" in findings.findings([_cell(1, TOP, MIXED)])
