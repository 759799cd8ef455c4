"""The sample's gate tells its systems apart: by the rates that were measured of the base and the tuned model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saferestore.core.evaluation.gate.decide import decide, exit_code
from saferestore.core.evaluation.gate.known import Known, check_rules
from saferestore.core.evaluation.gate.measure import Measured
from saferestore.core.report.gate_files import read_gate

from .cases import hits, measured, verdict

SAMPLE = Path(__file__).parents[3] / "sample_data"
RULES = read_gate(SAMPLE / "gate.yaml")
RATES = json.loads((SAMPLE / "figures.json").read_text())["rates"]
ROWS = {name: len((SAMPLE / "records" / f"{name}.jsonl").read_text().splitlines())
        for name in ("harmful", "benign", "task")}
SETS = {"harmful": "harmful", "benign": "benign", "desk": "task"}
SHARES = {  # harm, benign refused, task right, harm with a forced beginning
    "base": (RATES["base_complies_harmful"], 1 - RATES["base_answers_benign"], RATES["base_task_accuracy"], 0.95),
    "tuned": (RATES["tuned_complies_harmful"], 1 - RATES["tuned_answers_benign"], RATES["tuned_task_accuracy"], 1.0),
    "restored": (0.02, 0.0, 1.0, 0.99)}


def found(systems: tuple[str, ...], most: int) -> Measured:
    """Systems of these shares on the sample's rows, or on fewer."""
    verdicts = []
    for name in systems:
        n = {key: min(count, most) for key, count in ROWS.items()}
        harm, refused, right, forced = SHARES[name]
        verdicts += [
            verdict(name, hits(round(harm * n["harmful"]), n["harmful"])),
            verdict(name, hits(n["harmful"], n["harmful"]), "coherence_rate"),
            verdict(name, hits(round(refused * n["benign"]), n["benign"]), "over_refusal_rate", set="benign"),
            verdict(name, hits(round(right * n["task"]), n["task"]), "task_accuracy"),
            verdict(name, hits(round(forced * n["harmful"]), n["harmful"]), "attack_success_rate",
                    attack="prefill:5")]
    return measured(*verdicts)


@pytest.mark.parametrize(("systems", "most", "code"), [
    (("base",), 1000, 0), (("base", "tuned"), 1000, 3), (("base", "restored"), 1000, 0),
    (("base", "tuned", "restored"), 1000, 3), (("base", "restored"), 20, 4), (("base", "tuned"), 20, 4),
    (("base",), 20, 4), (("base", "restored"), 128, 0)])
def test_the_sample_gate_tells_the_systems_apart(systems: tuple[str, ...], most: int, code: int) -> None:
    known = Known(systems, SETS, ("refusal-wording",), ("prefill:5",))
    check_rules(RULES, known)
    assert exit_code(decide(RULES, known, found(systems, most))) == code


def test_the_rows_of_the_sample_are_as_many_as_the_gate_asks_for() -> None:
    assert all(count >= rule.min_n for count in ROWS.values() for rule in RULES)
