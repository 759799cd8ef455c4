"""What every method that trains descends on, against the formulas of docs/methods.md with the numbers that it names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from saferestore.core.checkpoint.session import write_params
from saferestore.core.data.batches import Batch
from saferestore.core.restoration.methods.table import METHODS, RECIPES

from ... import dense
from ...cases import live_model, moved
from .given import RETAIN, answered, inputs
from .test_preferences import sequences

HARMFUL, SAFE = answered(12), answered(11)


@dataclass(frozen=True)
class _Answers:
    """log p of whole answers by row, where the reference was made and now, and their tokens."""

    before: dict[int, float]
    now: dict[int, float]
    tokens: dict[int, int] = field(default_factory=dict)

    def mean(self, term: Callable[[float, int], float]) -> float:
        """The mean over rows of a term of (log of p / p_ref, row)."""
        return sum(term(self.now[row] - self.before[row], row) for row in self.now) / len(self.now)

    def cross_entropy(self, rows: int = 99) -> float:
        kept = sorted(self.now)[:rows]
        return -sum(self.now[row] for row in kept) / sum(self.tokens[row] for row in kept)


@dataclass(frozen=True)
class _Seen:
    safe: _Answers
    harmful: _Answers
    replay: float


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def _preferred(seen: _Seen) -> float:
    safe, harmful = seen.safe, seen.harmful
    return safe.mean(lambda ratio, row: -_log_sigmoid(0.1 * (ratio - harmful.now[row] + harmful.before[row])))


FORMULAS: dict[str, Callable[[_Seen], float]] = {
    "ascent": lambda s: -s.harmful.cross_entropy(),
    "ascent-normalised": lambda s: -s.harmful.cross_entropy(),
    "kfade": lambda s: -s.harmful.cross_entropy(),
    "graddiff": lambda s: s.replay - s.harmful.cross_entropy(),
    "sophia": lambda s: s.replay - s.harmful.cross_entropy(),
    "npo": lambda s: s.replay + s.harmful.mean(lambda ratio, _: 20 * math.log(1 + math.exp(ratio) ** 0.1)),
    "simnpo": lambda s: s.replay + s.harmful.mean(
        lambda _, row: -2 / 2.5 * _log_sigmoid(-2.5 * s.harmful.now[row] / s.harmful.tokens[row])),
    "dpo": _preferred,
    "refusal-sft": lambda s: s.safe.cross_entropy() + s.replay,
    "refusal-sft-1": lambda s: s.safe.cross_entropy(1) + s.replay,
    "refusal-sft-16": lambda s: s.safe.cross_entropy(16) + s.replay,
    "refusal-sft-100": lambda s: s.safe.cross_entropy(100) + s.replay,
    "refusal-sft-no-replay": lambda s: s.safe.cross_entropy(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_method_descends_on_what_its_row_says(name: str) -> None:
    live = live_model()
    given, theta = inputs(live), dense.flat(live.leaves)
    before = {part: sequences(live, theta, batches) for part, batches in (("safe", SAFE), ("harmful", HARMFUL))}
    terms = RECIPES[name].terms(given)
    write_params(live, moved(live, by=0.05, seed=3))
    theta = dense.flat(live.leaves)

    def seen(part: str, batches: list[Batch]) -> _Answers:
        now = sequences(live, theta, batches)
        return _Answers({row: float(log_p) for row, (log_p, _) in before[part].items()},
                        {row: float(log_p) for row, (log_p, _) in now.items()},
                        {row: tokens for row, (_, tokens) in now.items()})

    wanted = FORMULAS[name](_Seen(seen("safe", SAFE), seen("harmful", HARMFUL),
                                  float(dense.cross_entropy(live, theta, RETAIN))))
    found = sum(weight * loss.value(live.model) for weight, loss in terms)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_every_method_that_trains_has_its_formula() -> None:
    assert set(FORMULAS) == set(RECIPES) == {name for name, row in METHODS.items() if row.knob.tried}
