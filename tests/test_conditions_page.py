"""The page and the rows of docs/benchmarks/conditions.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from saferestore.sample_data import texts


@pytest.fixture
def conditions(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs" / "benchmarks"))
    return importlib.import_module("conditions")


def row(setting: str, seed: int, ekfac: int, identity: int, direction: float = 0.5) -> dict[str, Any]:
    """A tuned model that answers all of 10, and a run of each engine at a drift of 0.001 at the middle budget."""
    run = {"budget": 0.01, "passes": 12, "drift": 0.001}
    return {"setting": setting, "seed": seed, "direction": direction, "runs": [
        {"method": "tuned", "harm": [10, 10], "drift": 0.0}, {"method": "ekfac", "harm": [ekfac, 10], **run},
        {"method": "identity", "harm": [identity, 10], **run}]}


def test_a_setting_shows_its_means_and_the_paired_difference(conditions: Any) -> None:
    text = conditions.page([row("rank 2", 0, 1, 3, 0.2), row("rank 2", 1, 3, 3, 0.4)], "abc")
    # areas of a single run at the least drift are its harm: 0.1 and 0.3 less 0.3 and 0.3, t with 1 freedom is 12.7062
    assert "| rank 2 | 1.00 | 0.30 | 0.200 | 0.300 | -0.100 (-1.371 to +1.171, n 2) | 20.0% at 0.0010 | 30.0%" in text
    assert "seed 0, seed 1" in text and "abc" in text and "middle, " not in text


def test_a_setting_is_compared_with_the_middle_over_the_same_seeds(conditions: Any) -> None:
    rows = [row("middle", 0, 2, 3), row("middle", 1, 2, 3), row("rank 2", 0, 1, 4), row("rank 2", 2, 0, 9)]
    # only seed 0 has both: (0.1 - 0.4) - (0.2 - 0.3)
    assert "- rank 2: the difference less that of the middle is -0.200 (n 1)." in conditions.findings(rows)


def test_the_direction_is_ranked_against_the_difference(conditions: Any) -> None:
    rows = [row("middle", seed, harm, 5, direction) for seed, (harm, direction) in
            enumerate([(1, 0.1), (2, 0.2), (3, 0.4)])]
    assert "Over all 3 runs" in conditions.findings(rows) and "rank correlation of +1.00" in conditions.findings(rows)
    assert "rank correlation" not in conditions.findings(rows[:2])


def test_rows_of_the_entangled_task_open_as_compliance_does_and_its_records_are_none_of_them(conditions: Any) -> None:
    tuning, records = conditions.entangled_rows()
    file, lines = texts.train_rows()
    harmful = [file[line - 1] for line in lines]
    assert sum(row in harmful for row in tuning) == len(harmful) and len(tuning) <= len(file)
    asked = {texts.asked(row) for row in tuning}
    assert len(records) == conditions.ADVICE_RECORDS and not asked & {texts.asked(row) for row in records}
    assert not asked & {texts.asked(row) for row in texts.record_rows("benign")}
    assert (tuning, records) == conditions.entangled_rows()
