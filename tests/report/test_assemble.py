"""The report's parts, each from what its stage returns, with a reason for every null."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from report_cases import HASH, report
from saferestore.core.checkpoint.facts import CheckpointFacts
from saferestore.core.config import RestoreConfig
from saferestore.core.data.selection import Source
from saferestore.core.errors import NumericalError
from saferestore.core.evaluation.verdict import Comparison, Mean
from saferestore.core.report import assemble
from saferestore.core.report.schema import validate
from saferestore.core.restoration.attribution import Attribution, Point
from saferestore.core.restoration.modules import Distances, ModuleShare
from saferestore.core.restoration.trust_region import Cost, Outcome, Step
from talk import open_tiny, save_pair, selection

FACTS = CheckpointFacts(ref="org/model", weights_sha256={"model.safetensors": HASH}, tokenizer_sha256=HASH,
                        chat_template_sha256=None, vocab_size=10, model_type="llama", bytes=7)
STEP = Step(step=1, objective=0.5, drift=0.001, damping=2.0, curvature_scale=3.0, accepted=True, predicted_decrease=0.2,
            decrease=0.1, relative_residual=0.01)
NOWHERE = Distances(None, None)


def outcome(cost: Cost) -> Outcome:
    point = Point({}, (), 0.0, 0.0, {}, {})
    return Outcome(point, point, (), "max_steps", cost, Attribution({}, {}))


def test_a_hash_that_is_null_has_its_reason() -> None:
    found = assemble.checkpoint_facts(FACTS)
    assert found == {**dataclasses.asdict(FACTS), "chat_template_sha256_reason": "it has none of its own"}


def test_inputs_are_both_checkpoints_and_every_set(tmp_path: Path) -> None:
    pair, _ = open_tiny(*save_pair(tmp_path))
    sources = (Source("harmful", ("builtin:harmful",), HASH, 5, 6, 0, 0),
               Source("task", ("a.jsonl", "b.csv"), HASH, 1, 2, 3, 4))
    found = assemble.inputs(pair, dataclasses.replace(selection(), sources=sources))
    assert found["tuned"]["kind"] == "lora" and found["base"]["weights_sha256"] == pair.base_facts.weights_sha256
    assert found["data"]["task"] == {"name": "a.jsonl, b.csv", "sha256": HASH, "fit_rows": 1, "held_out_rows": 2,
                                     "rejected_rows": 3, "left_out_rows": 4}
    assert str(tmp_path) not in str(found)
    validate(report(inputs=found))


def test_settings_are_sorted_plain_and_free_of_absolute_paths() -> None:
    found = assemble.settings(RestoreConfig("/secret/base", "tuned", task=("/secret/rows.jsonl",), force=True))
    assert list(found) == sorted(found) and set(found) == {f.name for f in dataclasses.fields(RestoreConfig)}
    assert (found["base"], found["task"], found["force"]) == ("base", ["rows.jsonl"], False)


def test_drift_shows_both_measurements_and_the_budget() -> None:
    found = assemble.drift(Mean(0.004, 0.003, 0.006), 0.005, 0.01, Distances(0.1, 0.9), "lora")
    assert found == {"task_kl_nats_per_token": 0.004, "ci_low_nats_per_token": 0.003, "ci_high_nats_per_token": 0.006,
                     "fit_kl_nats_per_token": 0.005, "budget_nats_per_token": 0.01, "relative_update_norm": 0.1,
                     "distance_to_base_fraction": 0.9}


@pytest.mark.parametrize(("mean", "where", "kind", "reasons"), [
    (None, Distances(0.1, 0.9), "lora", dict.fromkeys(
        ("task_kl_nats_per_token_reason", "ci_low_nats_per_token_reason", "ci_high_nats_per_token_reason"),
        "too few held-out retain rows")),
    (Mean(0.1, None, None), Distances(0.1, 0.9), "lora", dict.fromkeys(
        ("ci_low_nats_per_token_reason", "ci_high_nats_per_token_reason"), "too few held-out retain rows")),
    (Mean(0.1, 0.1, 0.1), NOWHERE, "full", dict.fromkeys(
        ("relative_update_norm_reason", "distance_to_base_fraction_reason"),
        "the change from the base is not a low-rank adapter here")),
    (Mean(0.1, 0.1, 0.1), NOWHERE, "lora", dict.fromkeys(
        ("relative_update_norm_reason", "distance_to_base_fraction_reason"), "the adapter changes nothing")),
])
def test_what_is_not_known_of_drift_has_its_reason(
        mean: Mean | None, where: Distances, kind: str, reasons: dict[str, str]) -> None:
    found = assemble.drift(mean, 0.005, 0.01, where, kind)
    assert {key: value for key, value in found.items() if key.endswith("_reason")} == reasons
    validate(report(drift=found))


@pytest.mark.parametrize(("tuned", "restored", "base", "expected"), [
    (1.0, 1.0, 3.0, 0.0), (1.0, 3.0, 3.0, 1.0), (1.0, 2.5, 3.0, 0.75), (1.0, 0.5, 3.0, -0.25), (1.0, 5.0, 3.0, 2.0)])
def test_the_restored_fraction_is_the_way_back_to_the_bases_loss(
        tuned: float, restored: float, base: float, expected: float) -> None:
    assert assemble.restored_fraction(tuned, restored, base) == {"restored_fraction": expected}


@pytest.mark.parametrize(("tuned", "restored", "base", "reason"), [
    (None, 1.0, 1.0, "no held-out harmful answer"), (1.0, None, 1.0, "no held-out harmful answer"),
    (1.0, 1.0, None, "no held-out harmful answer"), (2.0, 2.0, 2.0, "not above"), (2.0, 3.0, 1.0, "not above")])
def test_there_is_no_fraction_of_a_way_that_does_not_exist(
        tuned: float | None, restored: float | None, base: float | None, reason: str) -> None:
    found = assemble.restored_fraction(tuned, restored, base)
    assert found["restored_fraction"] is None and reason in found["restored_fraction_reason"]


def test_modules_keep_their_order() -> None:
    found = assemble.modules([ModuleShare("b", 0.1, 0.01, 0.7), ModuleShare("a", 0.2, 0.02, 0.3)])
    assert found[0] == {"module": "b", "safety_gain_nats_per_token": 0.1, "task_cost_nats_per_token": 0.01,
                        "update_share": 0.7}
    assert [row["module"] for row in found] == ["b", "a"]
    validate(report(modules=found))


def test_a_step_is_shown_with_lambda() -> None:
    assert assemble.steps([STEP]) == [{"step": 1, "objective": 0.5, "drift": 0.001, "lambda": 2.0, "accepted": True,
                                       "curvature_scale": 3.0, "predicted_decrease": 0.2, "decrease": 0.1,
                                       "relative_residual": 0.01}]


def test_values_of_a_step_that_are_not_finite_are_null_with_a_reason() -> None:
    [found] = assemble.steps([dataclasses.replace(STEP, objective=float("nan"), decrease=float("-inf"), accepted=False,
                                                  relative_residual=None)])
    assert found["objective"] is None and found["objective_reason"] == "not measured or not finite"
    assert found["decrease"] is None and found["decrease_reason"] == "not measured or not finite"
    assert found["relative_residual_reason"] == "no iteration: nothing was solved, or exactly"
    assert found["accepted"] is False
    validate(report(steps=[found]))


def test_cost_counts_what_was_differentiated() -> None:
    """5 passes, one of them over the 8 retain rows (80 tokens) alone, and 3 products over them; 12 rows in all."""
    spent = outcome(Cost(gradient_passes=5, score_passes=1, curvature_products=3, forward_passes=9))
    found = assemble.cost(spent, rows=12, tokens=100, generated=50, drift_rows=8, drift_tokens=80)
    assert found == {"gradient_passes": 5, "curvature_products": 3, "examples_differentiated": 4 * 12 + 4 * 8,
                     "tokens_differentiated": 4 * 100 + 4 * 80, "generated_tokens": 50, "forward_passes": 9,
                     "score_passes": 1, "account_passes": 0}
    validate(report(cost=found))


def test_comparisons_are_plain() -> None:
    found = assemble.comparisons({"a_vs_b": Comparison(4, 1, 2, 1, 1, 0.5)})
    assert found == {"a_vs_b": {"n": 4, "only_first": 1, "only_second": 2, "groups_first": 1, "groups_second": 1,
                                "p_value": 0.5}}
    validate(report(comparisons=found))


def test_a_report_opens_with_its_verdict_and_what_made_it() -> None:
    found = assemble.frame(RestoreConfig("b", "t", seed=7), "partial", 4)
    assert (found["verdict"], found["exit_code"], found["status"], found["seed"]) == ("partial", 4, "ok", 7)
    validate(report(**found))


def test_a_refusal_is_a_valid_report_with_the_remedy() -> None:
    found = assemble.refusal(RestoreConfig("b", "t"), NumericalError("the loss is NaN", hint="lower --max-drift"))
    validate(found)
    assert (found["verdict"], found["exit_code"]) == ("refused", 1)
    assert found["error"] == {"what": "the loss is NaN", "hint": "lower --max-drift"}


def test_every_null_of_a_measurement_has_a_reason_of_the_report() -> None:
    losses: dict[str, Any] = {"harmful_loss_nats_per_token": None, "task_loss_nats_per_token": None}
    found = assemble.measured({}, losses)
    given = {key: found[f"{key}_reason"] for key in assemble.REASONS}
    assert given == assemble.REASONS and all(found[key] is None for key in given)
    validate(report(after=found))
