"""The page of docs/benchmarks/leading.py: shares of the gain, by hand; and that a cut engine keeps what it says."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.curvature.engines import EngineInputs

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import leading  # noqa: E402


def rows_of(seed: int, harm: dict[str, int]) -> list[dict[str, Any]]:
    """One run a method at the least drift that counts: its area is its share of the tuned model's harm."""
    pair = {"family": "llama", "attack": "mixed", "kind": "adapter", "seed": seed}
    run = {"budget": 0.01, "passes": 12, "drift": 0.001}
    return [{**pair, "method": "tuned", "harm": [100, 100], "drift": 0.0},
            *({**pair, "method": name, "harm": [hits, 100], **run} for name, hits in harm.items())]


def test_shares_of_the_gain_are_those_of_means_over_complete_pairs() -> None:
    harm = dict.fromkeys(leading.NAMES, 50) | {"anchor-identity": 90, "anchor-ekfac": 40, "anchor-ekfac-12": 45}
    other = harm | {"anchor-identity": 70, "anchor-ekfac": 20, "anchor-ekfac-12": 35}
    incomplete = {"anchor-identity": 1, "anchor-ekfac": 99}
    text = leading.page([*rows_of(1, harm), *rows_of(2, other), *rows_of(0, incomplete)], "abc")
    # 12 kept: areas 0.45 and 0.35, whole 0.4 and 0.2, identity 0.9 and 0.7; t with 1 degree of freedom is 12.7062
    half = 12.7062 * 0.05
    assert f"| 12 | 0.400 | +0.100 ({0.1 - half:+.3f} to {0.1 + half:+.3f}) | -0.400 (" in text
    assert "| 80% |" in text and "| whole | 0.300 | - | -0.500 (-0.500 to -0.500) | 100% |" in text
    assert "| `identity` | 0.800 | +0.500 (+0.500 to +0.500) | - | 0% |" in text
    assert "2 pairs: llama, mixed, adapter, 1; llama, mixed, adapter, 2." in text and "abc" in text


def test_a_cut_engine_is_made_with_so_many_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, object] = {}
    monkeypatch.setattr(leading.kfac, "ekfac", lambda live, losses, **more: made.update(more, live=live, losses=losses))
    inputs = EngineInputs("live", ("loss",), 5, False, 1, None, deque())  # type: ignore[arg-type]
    leading.cut(6).make(inputs)
    assert made == {"live": "live", "losses": ("loss",), "seed": 5, "whole": 6, "leading": 6}
