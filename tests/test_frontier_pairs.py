"""What the pairs of frontier.py are tuned on."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from saferestore.core.errors import UsageError
from saferestore.sample_data import texts

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("frontier_pairs")


def _harmful(rows: list[Any]) -> int:
    file, lines = texts.train_rows()
    known = [file[line - 1] for line in lines]
    return sum(row in known for row in rows)


def test_the_attacks_hold_as_many_harmful_rows_as_they_say_and_are_drawn_alike_each_time(pairs: Any) -> None:
    made = {name: make() for name, (make, _) in pairs.ATTACKS.items()}
    assert _harmful(made["mixed"]) == pytest.approx(0.1 * len(made["mixed"]), abs=1)
    assert _harmful(made["pure"]) == len(made["pure"]) == pairs.PURE_ROWS
    assert _harmful(made["drift"]) == 0 and len(made["drift"]) == 2 * pairs.DRIFT_ROWS
    assert {name: make() for name, (make, _) in pairs.ATTACKS.items()} == made


def test_no_harmless_row_asks_what_the_records_ask(pairs: Any) -> None:
    secret = {texts.asked(row) for row in texts.record_rows("benign")}
    assert secret and not secret & {texts.asked(row) for row in pairs.ATTACKS["drift"][0]()}


def test_every_pair_of_the_benchmark_is_named_once(pairs: Any) -> None:
    names = [pair.name for pair in pairs.all_pairs((0, 1, 2))]
    assert len(set(names)) == len(names) == 54


def test_a_method_that_restore_refuses_on_a_pair_is_refused_there(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frontier = importlib.import_module("frontier")
    inputs = SimpleNamespace(pair=SimpleNamespace(kind="full"), data=SimpleNamespace(harmful=[1]))
    monkeypatch.setattr(frontier, "given", lambda *_: inputs)
    monkeypatch.setattr(frontier, "endpoints", lambda *_: [])
    for name in ("ssd", "safemerge"):
        with pytest.raises(UsageError, match=f"works on an adapter.*--method {name}"):
            frontier.run_method(None, name)
    inputs.pair.kind = "lora"
    assert frontier.run_method(None, "ssd") == []
