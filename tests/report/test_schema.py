"""The report keeps its contract; every way to break it is named."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from report_cases import relearned, report, without_task
from saferestore.core.report.schema import SCHEMA, validate


def test_the_schema_is_valid_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(json.dumps(SCHEMA)))


def test_a_finished_report_is_valid() -> None:
    validate(report())


def test_a_report_without_task_rows_is_valid() -> None:
    validate(without_task())


def test_relearning_may_stand_in_a_report() -> None:
    validate(report(relearning=relearned(None, 6)))
    validate(report(relearning=[], relearning_reason="not asked for, --relearn 0"))


@pytest.mark.parametrize("change", [{"system": "tuned"}, {"steps": -1}, {"steps": 1.5}, {"harmful": [-1]}, {"more": 1}])
def test_a_row_of_relearning_outside_the_contract_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the report breaks its schema"):
        validate(report(relearning=[{**relearned(2, 2)[0], **change}]))


def test_a_refusal_needs_only_its_error() -> None:
    validate({"schema_version": "1.0", "command": "restore", "status": "error", "exit_code": 1, "verdict": "refused",
              "error": {"what": "the loss is not finite", "hint": "lower --max-drift"}, "warnings": []})


@pytest.mark.parametrize("key", sorted(set(report()) - {"comparisons"}))
def test_no_contract_key_may_be_missing(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        validate({name: value for name, value in report().items() if name != key})


def found(made: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The object that holds the value at a path, and the value's key in it."""
    *parents, last = path.split("/")
    place: Any = made
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    return place, last


def broken(path: str, value: Any) -> dict[str, Any]:
    """The report with one value replaced, or made where there was none."""
    made = report()
    place, last = found(made, path)
    place[last] = value
    return made


@pytest.mark.parametrize(("path", "value"), [
    ("verdict", "refused"), ("verdict", "good"), ("exit_code", 7), ("schema_version", "0.9"), ("unknown", 1),
    ("after/harmful_rate/value", 1.2), ("after/harmful_rate/n", 0), ("after/harmful_rate/extra", 1),
    ("after/harmful_rate", {}), ("after/harmful_rate", 0.5), ("after/loss", 0.5), ("controls/0/name", "wish"),
    ("warnings", [{"code": "NO_PREFIX", "message": ""}]), ("inputs/base/weights_sha256", {"a": "short"}),
    ("cost/gradient_passes", -1), ("cost/gradient_passes", 1.5), ("outputs/adapter_model.safetensors", {}),
    ("inputs/data", {}), ("steps/0/accepted", "yes"), ("seed", "0")])
def test_a_value_outside_the_contract_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match="the report breaks its schema"):
        validate(broken(path, value))


@pytest.mark.parametrize("path", ["after/task_loss_nats_per_token", "drift/task_kl_nats_per_token", "steps/1/lambda",
                                  "run/seconds/total", "restored_fraction"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(path: str, value: float) -> None:
    with pytest.raises(ValueError, match="is no JSON number"):
        validate(broken(path, value))


@pytest.mark.parametrize("path", ["after/task_accuracy", "base/harmful_loss_nats_per_token", "restored_fraction",
                                  "drift/distance_to_base_fraction", "controls/0/harmful_rate",
                                  "outputs/roundtrip_max_abs_error"])
def test_a_null_needs_its_reason(path: str) -> None:
    made = broken(path, None)
    with pytest.raises(ValueError, match="null without"):
        validate(made)
    place, last = found(made, path)
    place[f"{last}_reason"] = "not measured"
    validate(made)
