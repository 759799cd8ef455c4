"""The words on docs/benchmarks/methods-run.md follow from its runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
GOOD = {"moved": 0.1, "finite": True, "drift": 0.009, "safety_before": 2.0, "safety": 1.0, "seconds": 3.0}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("methods_run")


def _row(method: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {"family": "llama", "attack": "mixed", "kind": "adapter", "seed": seed, "method": method, **GOOD, **changes}


@pytest.mark.parametrize(("changes", "told"), [
    ({}, None), ({"drift": 0.0101}, None), ({"drift": 0.0102}, "over the budget"), ({"moved": 0.0}, "did nothing"),
    ({"finite": False}, "not finite"), ({"drift": float("nan")}, "not finite"),
    ({"safety": float("inf")}, "not finite"), ({"error": "no rows"}, "refused: no rows")])
def test_a_run_is_at_fault_where_it_is_not_as_it_should_be(script: Any, changes: dict[str, Any],
                                                          told: str | None) -> None:
    assert script.fault(_row("scale", **changes)) == told


def test_the_page_counts_every_run_and_names_those_at_fault(script: Any) -> None:
    rows = [_row("scale"), _row("scale", 1, moved=0.3, safety=3.0), _row("dpo", moved=0.0), _row("dpo", 1, error="x")]
    text = script.page(rows, "abc")
    assert "2 of 54 pairs (seed 0, 1), 4 runs; commit abc" in text
    assert "- 2 of 4 runs moved the model" in text and "- Did nothing: 1: `dpo` 1." in text
    assert "- Over the budget: 0." in text and "- `dpo`: refused: x" in text
    assert "| `scale` | 2 | 0.2 | 2 of 2 | 1 of 2 | 3.0 | none |" in text  # the median of 0.1 and 0.3
    assert "| `dpo` | 2 | 0 | 1 of 1 | 1 of 1 | 3.0 | llama mixed adapter 0: did nothing; llama mixed adapter 1: " \
           "refused |" in text


def test_the_methods_are_those_of_the_program(script: Any) -> None:
    from saferestore.core.config import ENGINES
    from saferestore.core.restoration.methods.table import METHODS

    assert set(script.NAMES) == set(METHODS) | {f"anchor-{engine}" for engine in ENGINES}
