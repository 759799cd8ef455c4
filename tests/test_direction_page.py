"""The page of docs/benchmarks/direction.py: shares of the plain gradient's drift, by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import direction  # noqa: E402


def row(engine: str, seed: int, fit: float, held_out: float) -> dict[str, object]:
    return {"pair": ("llama", "mixed", "adapter", seed), "engine": engine, "scores": "2", "damping": 0.1, "fit": fit,
            "held_out": held_out}


def test_drift_is_shown_as_a_share_of_the_plain_gradients() -> None:
    rows = [row("identity", 0, 4.0, 8.0), row("identity", 1, 1.0, 2.0), row("ekfac", 0, 1.0, 4.0),
            row("ekfac", 1, 1.0, 0.25)]
    text = direction.page(rows, "abc")
    # geometric means: sqrt(1/4 x 1) on fit rows, sqrt(1/2 x 1/8) on unseen ones; t with 1 degree of freedom is 12.7062
    spread = math.exp(12.7062 * abs(math.log(0.5) - math.log(0.125)) / 2)
    assert "| ekfac | 2 | 0.1 | 0.5 (" in text and f"0.25 ({0.25 / spread:.3g}-{0.25 * spread:.3g})" in text
    assert "| identity | 2 | - | 1 | 1 |" in text
    assert "2 pairs" in text and "seed 0, seed 1" in text and "abc" in text


def test_one_pair_has_no_interval() -> None:
    assert direction.share([math.log(0.25)]) == "0.25"
