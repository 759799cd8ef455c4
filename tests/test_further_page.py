"""docs/benchmarks/further.py: the search along a change on a problem by hand, its pairs, and the page's differences."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from saferestore.core.restoration.settings import Settings

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import frontier_page  # noqa: E402
import further  # noqa: E402

START, END = {"x": torch.zeros(1)}, {"x": torch.ones(1)}


def found(monkeypatch: pytest.MonkeyPatch, least: float, *, budget: float = 10.0) -> float:
    """The factor for S = (t - least)^2 and P = D = t^2 / 100 at t times the change."""
    place = {"t": 0.0}

    def at(power: float) -> float:
        return place["t"] ** power

    monkeypatch.setattr(further, "write_params", lambda _, params: place.update(t=float(params["x"])))
    monkeypatch.setattr(further, "values", lambda *_: (at(2) / 100, at(2) / 100))
    safety = SimpleNamespace(value=lambda _: (place["t"] - least) ** 2)
    problem: Any = SimpleNamespace(live=SimpleNamespace(model=None), drift=None, kept_low=None, safety=(safety,))
    factor, params = further.along(problem, Settings(max_drift=budget, drift_weight=0.1), START, END)
    assert float(params["x"]) == pytest.approx(factor)
    return factor


@pytest.mark.parametrize(("least", "factor"), [(0.9, 1.0), (1.0, 1.0), (1.12, 1.1), (1.2, 1.2), (5.0, 1.3)])
def test_the_change_grows_as_long_as_the_objective_falls(
        monkeypatch: pytest.MonkeyPatch, least: float, factor: float) -> None:
    assert found(monkeypatch, least) == factor


def test_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, 5.0, budget=1.12**2 / 100) == 1.1


def test_pairs_had_no_part_in_choosing_the_steps() -> None:
    keys = {(pair.family, pair.attack, pair.kind, pair.seed) for pair in further.PAIRS}
    looked_at = {("llama", "mixed", "adapter", 1), ("gpt2", "mixed", "full", 2), ("qwen2", "pure", "full", 2)}
    assert not looked_at & keys and len(keys) == 10 and not frontier_page.CHOSEN_ON & keys


def test_the_page_has_paired_differences_by_what_pairs_were_tuned_on() -> None:
    rows: list[dict[str, Any]] = []
    for seed, attack, alone, more in ((0, "mixed", 40, 20), (1, "mixed", 60, 50), (2, "drift", 10, 10)):
        pair = {"family": "llama", "attack": attack, "kind": "adapter", "seed": seed}
        rates = {key: [seed, 100] for key in ("over_refusal", "task", "untouched")}
        rows.append({**pair, "method": "tuned", "harm": [100, 100], "drift": 0.0, **rates})
        rows += [{**pair, "method": name, "harm": [hits, 100], "drift": 0.001, "budget": 0.01, "passes": 12,
                  "strength": at, **rates}
                 for name, hits, at in ((further.OURS, alone, "1"), (further.FURTHER, more, "1.2"))]
    text = further.page(rows, "abc")
    half = 12.7062 * 0.05  # t with 1 degree of freedom
    ends = f"{-0.15 - half:+.3f} to {-0.15 + half:+.3f}"
    assert f"| tuned on harmful rows | further | 0.350 | -0.150 ({ends}, n 2)" in text
    assert "| all | further | 0.267 |" in text and "| 1.2, 1.2, 1.2 | 26.7 (" in text and "abc" in text
    assert "| benign drift | steps alone | 0.100 | - | - | 10.0 (" in text
