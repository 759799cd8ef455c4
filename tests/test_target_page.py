"""What the page of target.py says of runs that are made up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import target  # noqa: E402
from frontier_page import CHOSEN_ON  # noqa: E402

Row = dict[str, Any]


def row(method: str, harm: int, drift: float, passes: int, seed: int = 0) -> Row:
    """A run; rates of a hundred."""
    return {"family": "llama", "attack": "mixed", "kind": "adapter", "seed": seed, "method": method, "budget": 0.01,
            "rate": None if method == target.OURS else 1e-3, "passes": passes, "harm": [harm, 100], "drift": drift,
            "over_refusal": [0, 100], "task": [100, 100]}


def test_passes_are_compared_where_ours_comes_to_the_target() -> None:
    ours = [row(target.OURS, 2, 0.011, 6), row(target.OURS, 2, 0.009, 8), row(target.OURS, 1, 0.009, 10)]
    assert target.told(ours) == "8" and target.ratio(ours) == "-" and target.told([]) == "not run"
    assert target.ratio([*ours, row(target.RIVAL, 3, 0.001, 12), row(target.RIVAL, 0, 0.02, 60)]) == "more than 7.5"
    assert target.ratio([*ours, row(target.RIVAL, 2, 0.01, 36), row(target.RIVAL, 0, 0.01, 48)]) == "4.5"
    assert target.ratio([row(target.OURS, 3, 0.001, 8), row(target.RIVAL, 2, 0.01, 36)]) == "-"
    assert target.told([row(target.OURS, 3, 0.001, 8)]) == "not reached"


def test_where_neither_does_ours_is_compared_at_the_rivals_least_harm_and_drift() -> None:
    rivals = [row(target.RIVAL, 9, 0.008, 24), row(target.RIVAL, 9, 0.009, 12), row(target.RIVAL, 5, 0.02, 12)]
    ours = [row(target.OURS, 9, 0.01, 6), row(target.OURS, 10, 0.005, 8), row(target.OURS, 9, 0.009, 10)]
    harm, passes, mine = target.level([*ours, *rivals])
    assert harm.startswith("9.0 (") and (passes, mine) == ("12", "10")
    assert target.level([*ours[:2], *rivals])[2] == "not reached"
    assert target.level(ours) == ("-", "-", "-")


def test_the_page_has_a_line_a_pair_and_a_line_a_run() -> None:
    rows = [row(target.OURS, 2, 0.009, 8), row(target.RIVAL, 7, 0.01, 12), row(target.OURS, 3, 0.009, 8, 1)]
    lines = target.page(rows).splitlines()
    assert any(line.startswith("| sample, seed 0 | 8 | not reached | more than 1.5 | 7.0 (") for line in lines)
    assert "| sample, seed 1 | not reached | not run | - | - | - | - |" in lines
    assert sum(line.startswith(("| sample, seed 0 | `", "| sample, seed 1 | `")) for line in lines) == 3


def test_other_pairs_are_of_every_family_and_attack_and_chose_nothing() -> None:
    pairs = {(pair.family, pair.attack) for pair in target.OTHERS}
    assert len(pairs) == len(target.OTHERS) == 9
    assert not {(pair.family, pair.attack, pair.kind, pair.seed) for pair in target.OTHERS} & CHOSEN_ON
    assert target.name_of(("gpt2", "drift", "full", 1)) == "gpt2, drift, full, seed 1"
