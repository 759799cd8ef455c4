"""`saferestore compare`: settings in, the document out."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest
import saferestore.core
from saferestore.cli.app import run
from saferestore.cli.render_compare import sparkline
from saferestore.core.config import CompareConfig
from saferestore.core.errors import MismatchError, UsageError
from saferestore.core.geometry.verdict import HEADLINE

SURFACE = {"losses_nats_per_token": {"harmful": [1.0, None, 2.0]}, "gaps": {"harmful": 1}}
FOUND: dict[str, Any] = {
    "exit_code": 0, "verdict": "preserved", "sentences": ["the geometry of the harmful loss is preserved", "more"],
    "losses": [{"system": "base", "set": "harmful", "loss_nats_per_token": 1.5, "ci_low": 1, "ci_high": 2, "n": 12}],
    "similarity": [{"against": "tuned", "set": "harmful", "measure": "surface_pearson", "value": 0.9, "ci_low": 0.8,
                    "ci_high": 1.0}],
    "interpolation": {"steps": [0, 0.5, 1], **SURFACE},
    "shares": [{"system": "tuned", "gradient": "task", "k": 5, "value": 0.2, "ci_low": 0.1, "ci_high": 0.3,
                "random": 0.01}],
    "modules": [{"tensor": f"m.{layer}.a.weight", "shape": [16, 8], "norm": 1.0, "relative_norm": 0.1 * (layer + 1),
                 "effective_rank": 2.0, "rank_limit": 8} for layer in range(2)],
    "warnings": [{"code": "W_NO_TASK_ROWS", "message": "none"}]}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[CompareConfig, Path | None]]:
    seen: list[tuple[CompareConfig, Path | None]] = []

    def compare(config: CompareConfig, out: Path | None, *, plots: Path | None, progress: Any) -> dict[str, Any]:
        seen.append((config, out))
        return FOUND

    module = types.SimpleNamespace(compare=compare)
    monkeypatch.setitem(__import__("sys").modules, "saferestore.core.pipeline", module)
    monkeypatch.setattr(saferestore.core, "pipeline", module, raising=False)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.parametrize("field", [f for f in dataclasses.fields(CompareConfig) if f.name not in ("base", "tuned")],
                         ids=lambda field: field.name)
def test_every_setting_can_be_changed_by_its_flag(called: list[tuple[CompareConfig, Path | None]],
                                                  field: dataclasses.Field) -> None:
    flag, special = f"--{field.name.replace('_', '-')}", {"dtype": "float32", "unrelated": "reinitialised"}
    if isinstance(field.default, bool):
        arguments, value = [flag], True
    elif field.default == ():
        arguments, value = [flag, "one", flag, "two"], ("one", "two")
    else:
        value = special.get(field.name, 9 if isinstance(field.default, int | float) else "given")
        arguments = [flag, str(value)]
    assert run(["compare", "b", "t", *arguments]) == 0
    assert getattr(called[0][0], field.name) == value


def test_the_defaults_are_those_of_the_settings(called: list[tuple[CompareConfig, Path | None]]) -> None:
    assert run(["compare", "b", "t", "-o", "out"]) == 0
    assert called == [(CompareConfig(base="b", tuned="t"), Path("out"))]


def test_what_is_printed_fits_80_columns_and_begins_with_the_verdict(
        called: list[tuple[CompareConfig, Path | None]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "b", "t"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("the geometry of the harmful loss is preserved\n")
    assert all(len(line) <= 80 for line in captured.out.splitlines()) and "0.90" in captured.out
    assert "relative size of the change by layer and module" in captured.out and "     1 ██████" in captured.out
    assert captured.err == "warning: W_NO_TASK_ROWS none\n"
    assert run(["compare", "b", "t", "-q"]) == 0
    assert capsys.readouterr().out == "the geometry of the harmful loss is preserved\n"


def test_wide_numbers_cut_no_measure_s_name(called: list[tuple[CompareConfig, Path | None]],
                                            monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"value": -0.0005, "ci_low": -0.0003, "ci_high": 0.0013}
    monkeypatch.setitem(FOUND, "similarity", [{"against": who, "set": "harmful", "measure": measure, **wide}
                                              for who in ("tuned", "reinitialised") for measure in HEADLINE])
    monkeypatch.setitem(FOUND, "sentences", ["verdict", "a long sentence of many words, " * 4])
    assert run(["compare", "b", "t"]) == 0
    shown = capsys.readouterr().out
    for text in (" harmful rows", "  surfaces ", "  loss changes ", "  losses of rows ", "  leading curvature ",
                 "-0.0005 (-0.0003 to 0.0013)"):
        assert text in shown
    assert "\u2026" not in shown and max(map(len, shown.splitlines())) <= 80
    assert [line[:3] for line in shown.splitlines()[1:4]] == [" - ", "   ", ""]


def test_a_tensor_s_long_name_says_that_its_beginning_is_left_out(
        called: list[tuple[CompareConfig, Path | None]], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    row = {**FOUND["modules"][0], "tensor": "model.language_model.layers.17.feed_forward.experts.gate_up_proj.weight"}
    monkeypatch.setitem(FOUND, "modules", [row])
    assert run(["compare", "b", "t"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "gate_up_proj" in line]
    assert line.startswith(f" ...{row['tensor'][-43:]}  0.1 ")


def test_json_is_exactly_the_document(called: list[tuple[CompareConfig, Path | None]],
                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "b", "t", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


def test_the_settings_are_printed_and_read_back(called: list[tuple[CompareConfig, Path | None]],
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "b", "t", "--task", "x", "--print-config"]) == 0
    Path("c.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["compare", "-c", "c.yaml"]) == 0
    assert called == [(CompareConfig(base="b", tuned="t", task=("x",)), None)]


@pytest.mark.parametrize(("changes", "what"), [
    ({"points": 4}, "odd"), ({"unrelated": "other"}, "--unrelated other"), ({"reach": 0.0}, "--reach"),
    ({"rows": 0}, "--rows"), ({"seed": -1}, "--seed"), ({"dtype": "int8"}, "--dtype")])
def test_settings_that_could_only_fail_later_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        CompareConfig(base="b", tuned="t", **changes)


@pytest.mark.parametrize("flag", ["-o", "--plots"])
def test_what_is_read_is_never_replaced(called: list[tuple[CompareConfig, Path | None]], flag: str,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/model").mkdir(parents=True)
    Path("in/rows.txt").write_text("please\n", encoding="utf-8")
    for read in (["b", "in/model"], ["b", "t", "--chat-template", "in/rows.txt"], *(
            ["b", "t", f"--{name}", "in/rows.txt"] for name in ("harmful", "benign", "task"))):
        assert run(["compare", *read, flag, "in", "--force"]) == UsageError.exit_code
        assert f"OUT would replace {read[-1]} - in" in capsys.readouterr().err and not called


def test_a_sparkline_leaves_gaps_blank() -> None:
    assert sparkline([0.0, None, 1.0]) == "▁ █" and sparkline([2.0, 2.0]) == "▁▁" and sparkline([None]) == " "


def test_checkpoints_that_do_not_fit_exit_5(called: list[tuple[CompareConfig, Path | None]],
                                            monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MismatchError("down_proj.weight has shape (1, 2)", hint="give the base")

    monkeypatch.setattr(saferestore.core.pipeline, "compare", refuse)
    assert run(["compare", "b", "t", "--json"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "compare" and document["exit_code"] == 5
