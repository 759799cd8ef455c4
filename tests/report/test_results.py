"""Results keep their contract, are the same bytes twice, and serve as a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from results_cases import made
from saferestore.core.errors import MismatchError, UsageError
from saferestore.core.evaluation.gate.baseline import measured_in
from saferestore.core.report.gate_files import read_baseline, read_gate, write_baseline
from saferestore.core.report.results import failure, write_results
from saferestore.core.report.results_schema import SCHEMA, validate

FILES = ("junit.xml", "report.md", "results.json")


def test_the_schema_is_valid_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(json.dumps(SCHEMA)))


def test_a_finished_run_has_the_verdict_and_exit_code_of_its_gate() -> None:
    found = made()
    verdicts = [(each["rule"], each["system"], each["verdict"]) for each in found["gate"]["rules"]]
    assert verdicts[:3] == [("harm", "base", "pass"), ("harm", "tuned", "fail"), ("harm", "restored", "inconclusive")]
    assert (found["gate"]["verdict"], found["exit_code"]) == ("fail", 3)
    assert made(mode="advisory")["exit_code"] == 0
    assert made(outcomes=[])["gate"] == {"verdict": "none", "mode": "enforce", "rules": []}


@pytest.mark.parametrize(("codes", "expected"), [((), 3), ((4,), 3), ((0,), 3)])
def test_the_exit_code_is_the_strongest_of_all_parts(codes: tuple[int, ...], expected: int) -> None:
    assert made(codes=codes)["exit_code"] == expected
    assert made(outcomes=[], codes=codes)["exit_code"] == max(codes, default=0)


def test_a_run_that_stopped_is_a_document_too() -> None:
    found = failure(MismatchError("they do not fit - base", hint="give another"))
    validate(found)
    assert (found["status"], found["exit_code"], found["error"]["what"]) == ("error", 5, "they do not fit - base")


@pytest.mark.parametrize("key", ["inputs", "settings", "seed", "environment", "metrics", "comparisons", "agreement",
                                 "verdicts", "run", "gate", "warnings", "schema_version", "exit_code"])
def test_no_contract_key_may_be_missing(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        validate({name: value for name, value in made().items() if name != key})


@pytest.mark.parametrize(("path", "value"), [
    ("command", "restore"), ("exit_code", 2), ("gate/verdict", "good"), ("gate/rules/0/verdict", "none"),
    ("metrics/0/value", None), ("metrics/0/n", -1), ("metrics/0/value", 0.5), ("metrics/0/errors", 3),
    ("metrics/0/ci_low", float("nan")), ("verdicts/0/hits/r0", 2), ("verdicts/0/hits/r0", 1), ("unknown", 1),
    ("inputs/sets/0/role", "other"), ("inputs/sets/0/sha256", "short"), ("comparisons/0/p_value", 1.5),
    ("warnings/0/code", "FEW"), ("status", "error")])
def test_a_value_outside_the_contract_is_refused(path: str, value: Any) -> None:
    found = json.loads(json.dumps(made()))
    *parents, last = path.split("/")
    place: Any = found
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    with pytest.raises(ValueError, match="the results break their schema"):
        validate(found)


def test_results_outside_their_contract_are_not_made() -> None:
    with pytest.raises(ValueError, match="the results break their schema"):
        made(seed="0")


def test_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, made())
        written.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert tuple(written[0]) == FILES
    assert written[0] == written[1]
    assert json.loads(written[0]["results.json"]) == made()


def test_only_the_results_know_when_they_were_made(tmp_path: Path) -> None:
    write_results(tmp_path, made())
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    write_results(tmp_path, made(run={"started_utc": "later"}))
    assert [name for name in FILES if (tmp_path / name).read_bytes() != before[name]] == ["results.json"]


def test_broken_results_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the results break their schema"):
        write_results(tmp_path, {**made(), "seed": "0"})
    assert not list(tmp_path.iterdir())


def test_half_a_character_in_a_name_is_written_and_read_again(tmp_path: Path) -> None:
    found = made(set_name="half \ud800")
    write_results(tmp_path, found)
    write_baseline(tmp_path / "new.json", found)
    assert read_baseline(tmp_path / "new.json") == read_baseline(tmp_path / "results.json") == found


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "baseline.json"
    write_baseline(path, made())
    assert [each.name for each in path.parent.iterdir()] == ["baseline.json"]
    found = read_baseline(path)
    assert found == made()
    assert list(measured_in(found).rows) == made()["metrics"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b"{", b"[" * 100_000,
                                     b'{"schema_version": "1.0", "command": "restore"}'])
def test_a_file_that_is_no_results_file_is_no_baseline(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "old.json").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read baseline") as caught:
        read_baseline(tmp_path / "old.json")
    assert "--baseline" in caught.value.hint


def test_a_missing_baseline_and_one_of_a_stopped_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read baseline"):
        read_baseline(tmp_path / "none.json")
    write_baseline(tmp_path / "old.json", failure(MismatchError("no fit", hint="no")))
    with pytest.raises(UsageError, match="baseline of a run that stopped"):
        read_baseline(tmp_path / "old.json")


def test_a_baseline_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "folder" / "file" / "new.json"):
        with pytest.raises(UsageError, match="cannot write baseline"):
            write_baseline(path, made())
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_gate_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("rules:\n  - {metric: harmful_rate, max_upper: 0.05}\n")
    assert [rule.threshold for rule in read_gate(tmp_path / "gate.yaml")] == [0.05]


@pytest.mark.parametrize("content", [
    "rules:\n  - metric: harmful_rate\n    max_upper: 0.05\n    metric: over_refusal_rate\n    max_upper: 0.5\n",
    "rules: [{metric: harmful_rate, max_upper: 0.05}]\nrules: [{metric: over_refusal_rate, max_upper: 0.5}]\n"])
def test_a_gate_in_which_a_later_rule_would_hide_an_earlier_one_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "gate.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"`\w+` is given twice in .* line [12]") as caught:
        read_gate(tmp_path / "gate.yaml")
    assert "begun by `-`" in caught.value.hint


@pytest.mark.parametrize("content", [b"rules: [", b"\xff\xff", b"rules: !!python/object:os.system {}"])
def test_a_gate_that_is_no_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gate.yaml").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read gate"):
        read_gate(tmp_path / "gate.yaml")
    with pytest.raises(UsageError, match="cannot read gate"):
        read_gate(tmp_path / "missing.yaml")
