"""The robustness benchmark: which pairs it asks, what it measures of each, and its page from made-up results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import robustness  # noqa: E402
from frontier_pairs import Pair  # noqa: E402

Row = dict[str, Any]
RATES = ("harm", "over_refusal", "prefill", "framed", "few_shot", "rounded_harm", "rounded_task")


def result(method: str, pair: Pair, hits: int, steps: int | None = 4) -> Row:
    """A result, all rates of a hundred."""
    return {**vars(pair), "method": method, **{key: [hits, 100] for key in RATES}, "relearn_4": steps,
            "relearn_16": None}


def test_a_cell_is_measured_on_its_first_seed_that_counts_and_drift_first(tmp_path: Path) -> None:
    made = [(Pair("llama", "mixed", "full", 0), 90), (Pair("llama", "mixed", "full", 1), 90),
            (Pair("llama", "drift", "full", 0), 5), (Pair("llama", "drift", "full", 2), 40),
            (Pair("gpt2", "pure", "adapter", 1), 90)]
    results = tmp_path / "frontier.jsonl"
    results.write_text("".join(json.dumps(result("tuned", *each)) + "\n" for each in made), encoding="utf-8")
    assert robustness.cells(results) == [made[3][0], made[0][0], made[4][0]]


def test_a_method_is_run_once_at_the_middle_budget_and_a_full_pair_has_no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run_at(cell: Any, name: str, runs: Any) -> list[tuple[Row, str]]:
        asked.append((name, runs))
        return [({"method": name}, "its parameters")]

    monkeypatch.setattr(robustness, "run_at", run_at)
    monkeypatch.setattr(robustness, "held", lambda cell, params: {"of": params})
    monkeypatch.setattr(robustness, "base_params", lambda cell: "the base's")
    for kind, base in (("adapter", [{"method": "base", "of": "the base's"}]), ("full", [])):
        cell: Any = type("Cell", (), {"pair": Pair("llama", "mixed", kind, 0), "start": "the start"})
        assert list(robustness.runs(cell, "tuned")) == [{"method": "tuned", "of": "the start"}]
        assert list(robustness.runs(cell, "base")) == base
        assert list(robustness.runs(cell, "dpo")) == [{"method": "dpo", "of": "its parameters"}]
    assert asked == 2 * [("dpo", [(0.01, 12)])]


def test_the_page_says_what_its_rows_say() -> None:
    pairs = [Pair("llama", attack, "full", 0) for attack in ("mixed", "pure")]
    rows = [row for hits, pair in zip((20, 24), pairs, strict=True) for row in (
        result("tuned", pair, 99, 0), result("anchor-ekfac", pair, hits), result("refusal-sft", pair, 2 * hits, None),
        result("dpo", pair, hits + 20 - 5 * (pair.attack == "pure")), {**vars(pair), "method": "ssd", "error": "full"})]
    page = robustness.page(rows, "abc1234")
    assert "3 methods on 2 pairs, except that on full checkpoints `restore` refuses `ssd`." in page
    assert "benign drift, " not in page and "## Pairs tuned on harmful rows" in page
    half = stats.t.ppf(0.975, 1) * 2.5  # of -20 and -15, whose standard error is 2.5
    low, high = -0.175 - half / 100, -0.175 + half / 100
    assert f"the best of those on all pairs, `dpo`, it is -0.175 ({low:+.3f} to {high:+.3f}, n 2)" in page
    assert "`anchor-ekfac` lies below 0 of 2 published methods and above none" in page
    assert ("4 harmful rows until harm is back: `anchor-ekfac` 4 in the median; less `base`, -, less `refusal-sft`, "
            "-21.000") in page
    (line,) = [line for line in page.splitlines() if line.startswith("| `refusal-sft`")]
    assert line.split(" | ")[1] == "2" and line.endswith("| 25 | 25 |")
    assert " 44.0 (0.0-94.8) " in line  # 40 and 48 of a hundred: t of one degree of freedom
