"""The page of docs/benchmarks/objectives.py by hand, its pairs, and that another objective is the same rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.evaluation.preparation import prepare
from talk import examiner, open_tiny, record, refuses, save_pair, script, selection

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import frontier_page  # noqa: E402
import objectives  # noqa: E402
from frontier_robustness import Cell  # noqa: E402


def rows_of(seed: int, harm: dict[str, int]) -> list[dict[str, Any]]:
    """One run an objective at the least drift that counts: its area is its share of the tuned model's harm."""
    pair = {"family": "llama", "attack": "mixed", "kind": "adapter", "seed": seed}
    rates = {key: [seed, 100] for key in ("refused", "over_refusal", "task")}
    return [{**pair, "method": "tuned", "harm": [100, 100], "drift": 0.0, **rates},
            *({**pair, "method": name, "harm": [hits, 100], "budget": 0.01, "passes": 12, "drift": 0.001, **rates}
              for name, hits in harm.items())]


def test_areas_are_means_over_complete_pairs_and_rates_are_pooled() -> None:
    harm = dict.fromkeys(objectives.NAMES, 50) | {"anchor-ekfac": 20, "match-ekfac": 60}
    other = harm | {"anchor-ekfac": 40, "match-ekfac": 90}
    text = objectives.page([*rows_of(1, harm), *rows_of(3, other), *rows_of(0, {"anchor-ekfac": 99})], "abc")
    half = 12.7062 * 0.05  # t with 1 degree of freedom
    assert "| `anchor` | 0.300 | - | 30.0 (0.0-100.0) | 2.0 (0.0-14.7) |" in text and "| 0.0010 |" in text
    assert f"| `match` | 0.750 | +0.450 ({0.45 - half:+.3f} to {0.45 + half:+.3f}) | 75.0 (" in text
    assert "| nothing | - | - | 100.0 (" in text and "abc" in text
    assert "chosen: llama, mixed, adapter, 1; llama, mixed, adapter, 3." in text


def test_no_pair_had_a_part_in_choosing_and_every_family_and_kind_is_there() -> None:
    keys = [(pair.family, pair.attack, pair.kind, pair.seed) for pair in objectives.PAIRS]
    assert not frontier_page.CHOSEN_ON.intersection(keys)
    assert len({(family, kind) for family, _, kind, _ in keys}) == 6


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_another_objective_is_what_prepare_would_have_posed(tmp_path: Path, objective: str) -> None:
    rows = selection(harmful=[record("bad thing"), record("bad deed")], retain=[record("bread")])

    def posed(terms: str) -> Any:
        session = open_tiny(*save_pair(tmp_path / terms))[1]
        with script(tuned=refuses(), base=refuses("bad")):
            return prepare(session, examiner(session), rows, objective=terms, on_disk=False, with_harmful=True)

    every, own = posed("anchor+match+ascent"), posed(objective)
    cell = Cell(*[None] * 5, every, *[None] * 3)  # type: ignore[arg-type]
    made = objectives.with_objective(cell, objective).prepared.problem
    wanted = [(loss.name, loss.value(own.problem.live.model)) for loss in own.problem.safety]
    assert [(loss.name, loss.value(made.live.model)) for loss in made.safety] == wanted
    assert made.drift is every.problem.drift and len(wanted) == objective.count("+") + 1
