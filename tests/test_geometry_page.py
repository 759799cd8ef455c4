"""The words on docs/benchmarks/geometry.md follow from the numbers."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.geometry.verdict import HEADLINE, LABELS

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("geometry_tables")


@pytest.fixture
def words(tables: Any) -> Any:
    return importlib.import_module("geometry_findings")


def measured(value: float | None) -> dict[str, dict[str, float | None]]:
    return {name: {"value": value, "ci_low": value, "ci_high": value} for name in LABELS}


def cell(seed: int = 0, *, harmful: float | None = 0.9, task: float = 0.5, control: float = 0.1, safety: float = 0.02,
         outcome: str = "preserved") -> dict[str, Any]:
    """A cell as geometry.py writes it, each number a little different from seed to seed."""
    near = 0.001 * seed
    value = None if harmful is None else harmful + near

    def shares(own: float) -> list[dict[str, Any]]:
        return [{"gradient": name, "k": 10, "value": share + near, "random": 0.001}
                for name, share in (("safety", own), ("harmful", 0.1), ("benign", 0.1), ("task", 0.4))]

    return {"family": "llama", "seed": seed, "method": "DoRA", "data": "mixed", "verdict": outcome,
            "outcomes": dict.fromkeys(HEADLINE, outcome), "harmful_answers": {"base": 0.0, "tuned": 0.9},
            "tuned": {"harmful": measured(value), "task": measured(task), "benign": measured(task)},
            "controls": {"shuffled": {"harmful": measured(control)}},
            "itself": {"harmful": {"eigenspace_overlap": {"value": 0.8}}},
            "harmful_minus": {name: measured(value and value - task) for name in ("task", "benign")},
            "shares": {"base": shares(0.1), "tuned": shares(safety)}}


def found(words: Any, **numbers: Any) -> str:
    return " ".join(words.findings([cell(seed, **numbers) for seed in range(3)]).split())


def test_a_mean_has_the_interval_of_students_t_over_bases(tables: Any) -> None:
    cells = [{"family": "llama", "seed": seed, "x": x} for seed, x in ((0, 1.0), (0, 3.0), (1, 4.0), (2, 6.0))]
    mean = tables.over_seeds(cells, lambda one: one["x"])
    assert (mean.value, mean.bases) == (4.0, 3)
    assert mean.half == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    assert tables.over_seeds(cells[:2], lambda one: one["x"]) == tables.Mean(2.0, None, 1)
    assert tables.over_seeds(cells, lambda _: None) is None


def test_a_claim_that_holds_is_said_to_hold(words: Any) -> None:
    text = found(words)
    assert "C1 in llama holds in every cell** (3 of 3)." in text
    assert "against `shuffled`, above it: loss surfaces by +0.80 ± 0.00, loss changes" in text
    assert "not told" not in text and "below it" not in text and "`another base` was not measured" in text
    assert "kept better than task rows on 4 of 4 measures" in text
    assert "this half of C2 holds" in text and "(it fell: it moved out)" in text


def test_a_claim_that_fails_is_said_to_fail(words: Any) -> None:
    text = found(words, harmful=0.3, task=0.8, control=0.6, safety=0.7, outcome="not_preserved")
    assert "C1 in llama holds in no cell** (0 of 3); cells that fail, by measure: loss surfaces (3)" in text
    assert "against `shuffled`, below it: loss surfaces by -0.30" in text
    assert "kept worse than task rows on 4 of 4 measures" in text
    assert "C2 fails" in text and "it did not move out" in text


def test_seeds_that_differ_more_than_the_models_tell_nothing_apart(words: Any) -> None:
    cells = [cell(seed, harmful=value, control=0.5, safety=share)
             for seed, (value, share) in enumerate(((0.1, 0.1), (0.5, 0.7), (0.9, 0.4)))]
    text = " ".join(words.findings(cells).split())
    assert "not told from it: loss surfaces" in text and "No difference that can be told" in text
    assert "C2 is not shown" in text and "a move is not shown" in text


def test_of_one_base_cells_decide_about_rows_and_nothing_else_is_concluded(words: Any) -> None:
    text = " ".join(words.findings([cell()]).split())
    assert "(one base: no interval)" in text and "so nothing is concluded" in text and "one base, so no" in text
    assert "kept better than task rows on 4 of 4 measures" in text


def test_a_measure_that_is_not_defined_is_a_dash(tables: Any, words: Any) -> None:
    cells = [cell(seed, harmful=None) for seed in range(3)]
    assert "| llama | surfaces | - | 0.50 ± 0.00 |" in tables.all_measures(cells)
    assert "| 0 / 0 / 3 |" in tables.stand_out(cells)
    assert "loss surfaces -" in words.findings(cells)


def test_tables_say_what_a_model_has_with_itself(tables: Any) -> None:
    lines = tables.all_measures([cell(seed) for seed in range(3)]).splitlines()
    assert next(line for line in lines if "surfaces |" in line).endswith("| 1 |")
    assert next(line for line in lines if "overlap |" in line).endswith("| 0.80 ± 0.00 |")


def test_nothing_measured_is_said(words: Any) -> None:
    assert words.findings([]) == "Nothing is measured yet."
