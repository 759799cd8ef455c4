"""`saferestore score`: settings in, the document out."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest
import saferestore.core
from saferestore.cli.app import run
from saferestore.core.config import ScoreConfig
from saferestore.core.errors import MismatchError, UsageError

ROW = {"rank": 1, "line": 12, "id": "a", "influence_nats_per_token": 2.5e-4, "loss_nats_per_token": 0.4,
       "answer_tokens": 30, "text": "Sure, [bold]first\x1b[31m gather " + "x" * 90}
MODULE = {"module": "model.layers.0.self_attn.q_proj", "layer": 0, "kind": "attention",
          "safety_gain_nats_per_token": 0.5, "task_cost_nats_per_token": 0.01, "update_share": 1.0,
          "gradient_share": 1.0, "inside_share": 0.01, "inside_share_random": 0.001}
FOUND: dict[str, Any] = {
    "exit_code": 0, "settings": {"top": 20}, "modules": [MODULE],
    "layers": [{"name": "0", "safety_gain_nats_per_token": 0.5, "task_cost_nats_per_token": 0.01}],
    "kinds": [{"name": "attention", "safety_gain_nats_per_token": 0.5, "task_cost_nats_per_token": 0.01}],
    "safety": {"leading_eigenvectors": 16, "inside_share": 0.01, "inside_share_random": 0.001},
    "rows": {"removed": 1, "scored": 40, "at": 0.36, "threshold_nats_per_token": 1e-4, "most_harmful": [ROW]},
    "warnings": [{"code": "W_NO_TASK_ROWS", "message": "none"}]}
Called = list[tuple[ScoreConfig, Path | None, dict[str, Any]]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Called:
    seen: Called = []

    def score(config: ScoreConfig, out: Path | None, *, progress: Any, **more: Any) -> dict[str, Any]:
        seen.append((config, out, more))
        return FOUND

    module = types.SimpleNamespace(score=score)
    monkeypatch.setitem(__import__("sys").modules, "saferestore.core.pipeline", module)
    monkeypatch.setattr(saferestore.core, "pipeline", module, raising=False)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.parametrize("field", [f for f in dataclasses.fields(ScoreConfig) if f.name not in ("base", "tuned")],
                         ids=lambda field: field.name)
def test_every_setting_can_be_changed_by_its_flag(called: Called, field: dataclasses.Field) -> None:
    flag = f"--{field.name.replace('_', '-')}"
    special = {"dtype": "float32", "way": "cg", "at": "0.75", "remove": "20", "objective": "match", "redact": "none"}
    if isinstance(field.default, bool):
        arguments, value = [flag], True
    elif field.default == ():
        arguments, value = [flag, "one", flag, "two"], ("one", "two")
    else:
        value = special.get(field.name, 9 if isinstance(field.default, int | float) else "given")
        arguments = [flag, str(value)]
    assert run(["score", "b", "t", *arguments]) == 0
    assert getattr(called[0][0], field.name) == value


def test_where_a_run_writes_and_whether_it_goes_on_reach_the_pipeline(called: Called) -> None:
    assert run(["score", "b", "t", "-o", "out", "--write-clean", "c.jsonl", "--resume"]) == 0
    assert called == [(ScoreConfig(base="b", tuned="t"), Path("out"),
                       {"clean": Path("c.jsonl"), "resume": True, "restart": False})]


def test_what_is_read_is_never_replaced(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/model").mkdir(parents=True)
    Path("in/rows.jsonl").write_text("{}\n", encoding="utf-8")
    for read in (["b", "in/model"], *(["b", "t", f"--{name}", "in/rows.jsonl"] for name in (
            "train", "harmful", "safe", "benign", "task", "chat-template"))):
        assert run(["score", *read, "-o", "in", "--force"]) == UsageError.exit_code
        assert f"OUT would replace {read[-1]} - in" in capsys.readouterr().err and not called


@pytest.mark.parametrize(("top", "left"), [(1, 2), (2, 1), (3, 0)])
def test_modules_beyond_those_asked_for_are_counted(called: Called, capsys: pytest.CaptureFixture[str], top: int,
                                                    left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [{**MODULE, "module": f"model.layers.0.mlp.{name}_proj"} for name in ("up", "down", "gate")]
    monkeypatch.setitem(FOUND, "modules", modules)
    monkeypatch.setitem(FOUND, "settings", {"top": top})
    assert run(["score", "b", "t"]) == 0
    said = capsys.readouterr().out
    assert sum("model.layers.0.mlp" in line for line in said.splitlines()) == top
    assert f"{left} more modules" in said if left else "more modules" not in said


def test_what_is_printed_fits_80_columns_and_no_text_of_a_row_is_obeyed(
        called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "b", "t", "-o", "out"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("1 of 40 rows cost safety above 0.0001 nats per token\n")
    assert all(len(line) <= 80 for line in captured.out.splitlines())
    assert "0.00025" in captured.out and "[bold]" in captured.out and "\x1b" not in captured.out
    assert "q_proj" in captured.out and "██████ 0.5" in captured.out
    assert "attention" in captured.out and "1% inside the task's 16 leading directions" in captured.out
    assert "99% outside" in captured.out
    assert captured.err == "warning: W_NO_TASK_ROWS none\n"
    assert run(["score", "b", "t", "-q"]) == 0
    assert capsys.readouterr().out == "1 of 40 rows cost safety above 0.0001 nats per token\n"


def test_an_answer_cuts_no_number_of_its_row(called: Called, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**ROW, "line": 123456, "influence_nats_per_token": -0.000123, "loss_nats_per_token": 0.000331,
           "text": "[1234 characters, sha256 0123456789abcdef]"}
    monkeypatch.setitem(FOUND, "rows", {**FOUND["rows"], "most_harmful": [row]})
    assert run(["score", "b", "t"]) == 0
    shown = capsys.readouterr().out
    assert " 123456  -0.000123  0.000331  30 " in shown and "\u2026" not in shown
    assert "0123456789abcdef]" in shown and all(len(line) <= 80 for line in shown.splitlines())


def test_without_rows_the_first_line_says_how_to_have_them(called: Called, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(FOUND, "rows", None)
    assert run(["score", "b", "t"]) == 0
    assert "add --train FILE" in capsys.readouterr().out.splitlines()[0]


def test_json_is_exactly_the_document(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "b", "t", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


def test_the_settings_are_printed_and_read_back(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "b", "t", "--train", "x", "--print-config"]) == 0
    Path("c.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["score", "-c", "c.yaml"]) == 0
    assert called[0][0] == ScoreConfig(base="b", tuned="t", train="x")


def test_to_resume_and_to_restart_are_not_both_to_be_had(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "b", "t", "-o", "out", "--resume", "--restart"]) == 2
    assert "to begin again - --resume --restart" in capsys.readouterr().err and not called


def test_resume_without_a_folder_is_a_usage_error(called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "b", "t", "--resume"]) == 2
    assert "--out" in capsys.readouterr().err and not called


def test_checkpoints_that_do_not_fit_exit_5(called: Called, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MismatchError("down_proj.weight has shape (1, 2)", hint="give the base")

    monkeypatch.setattr(saferestore.core.pipeline, "score", refuse)
    assert run(["score", "b", "t"]) == 5
    assert capsys.readouterr().err == "error: down_proj.weight has shape (1, 2)\nhint: give the base\n"


def test_the_schema_of_the_document_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "score"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Document of saferestore score"
