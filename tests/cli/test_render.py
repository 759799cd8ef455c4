"""The summary as a person sees it: everything asked for, in 80 columns, and text from models stays text."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from report_cases import relearned, report, without_task
from saferestore.cli import render


def printed(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The whole summary."""
    render.print_report(made, Path("out"))
    return capsys.readouterr().out


@pytest.mark.parametrize("made", [report(), without_task(), report(controls=[], modules=[]),
                                  report(relearning=relearned(None, None))])
def test_no_line_is_wider_than_a_terminal(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, printed(made, capsys).splitlines())) <= 80


def test_the_widest_figures_fit_without_being_cut(capsys: pytest.CaptureFixture[str]) -> None:
    made = report()
    widest = {"value": 0.9375, "n": 2048, "ci_low": 0.9080, "ci_high": 0.9681, "judge": "wording", "others": []}
    for part in ("base", "before", "after"):
        made[part] = {key: widest if isinstance(value, dict) else 12.345 for key, value in made[part].items()}
    made["modules"][0]["module"] = "base_model." + 9 * "very_long_name." + "weight"
    text = printed(made, capsys)
    assert text.count("93.8% (90.8-96.8)") >= 18 and "2048" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_everything_asked_for_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(report(), capsys)
    for expected in ("restored (exit 0)", "base", "tuned", "restored", "harmful answers", "refusals", "coherent",
                     "over-refusals", "task accuracy", "untouched skill", "harmful loss", "task loss",
                     "97.7% (94.7-100)", "0.0041 (0.0032-0.0053) of 0.01 nats/token",
                     "the objective reached the base's own value", "6 gradient passes", "734 MB",
                     "scale", "random", "identity", "this restoration", "model.layers.1.self_attn.q_proj", "█"):
        assert expected in text


def test_relearning_is_shown_where_it_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(report(relearning=relearned(18, 6)), capsys).split())
    assert "relearning trained on 4 harmful rows, harm is back after 6 updates (base: after 18 updates)" in text
    assert "relearning" not in printed(report(), capsys)


def test_the_first_line_says_where_nothing_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    safe = report(warnings=[{"code": "W_ALREADY_SAFE", "message": "the tuned model refuses"}])
    assert ": nothing was lost, harmful answers " in printed(safe, capsys).splitlines()[0]
    assert "nothing was lost" not in printed(report(), capsys)


def test_the_only_line_of_a_quiet_run_is_one_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    gate = {"verdict": "inconclusive", "mode": "enforce", "rules": [RULE]}
    made = report(verdict="unchanged", exit_code=4, gate=gate,
                  warnings=[{"code": "W_ALREADY_SAFE", "message": "the tuned model refuses"}])
    render.print_report(made, Path("out"), brief=True)
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith("(exit 4): nothing was lost, harmful answers 97.7% -> 0.8%") and len(line) > 80


RULE = {"rule": "drift", "severity": "error", "metric": "kl_to_tuned_nats_per_token", "system": "restored",
        "set": "retain", "judge": "none", "attack": "none", "verdict": "inconclusive", "kind": "max_upper",
        "threshold": 0.000325, "value": 0.000312, "bound": 0.000412, "n": 2048, "errors": 0, "more_samples": 4096,
        "text": "inconclusive"}


@pytest.mark.parametrize(("verdict", "mode", "code", "line"), [
    ("fail", "enforce", 3, "restored, gate failed (exit 3): harmful answers 97.7% -> 0.8%"),
    ("inconclusive", "enforce", 4, "restored, gate inconclusive (exit 4): harmful answers 97.7% -> 0.8%"),
    ("fail", "advisory", 0, "restored, gate failed (exit 0, advisory): harmful answers 97.7% -> 0.8%")])
def test_the_first_line_says_what_the_gate_came_to(capsys: pytest.CaptureFixture[str], verdict: str, mode: str,
                                                   code: int, line: str) -> None:
    made = report(exit_code=code, gate={"verdict": verdict, "mode": mode, "rules": [RULE]})
    render.print_report(made, Path("out"), brief=True)
    assert capsys.readouterr().out == f"{line}\n"


def test_rules_of_a_gate_are_told_apart_and_no_number_of_them_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    attacked = {**RULE, "metric": "attack_success_rate", "value": 0.0156, "bound": 0.0553, "threshold": 0.9}
    rules = [{**attacked, "rule": f"attack_success_rate under {attack} max upper 0.9", "attack": attack}
             for attack in ("prefill:5", "manyshot:5")]
    few = {**RULE, "rule": "few", "value": None, "bound": None, "severity": "warning", "kind": "min_lower"}
    made = report(exit_code=3, gate={"verdict": "fail", "mode": "enforce", "rules": [RULE, *rules, few]})
    text = printed(made, capsys)
    assert "0.000312 (0.000412)" in text and "≤ 0.000325" in text and "≥ 0.000325" in text and text.count("2048") == 4
    width = next(line.index("system") for line in text.splitlines() if line.startswith(" rule "))
    names = "".join("".join(line[:width] for line in text.splitlines()).split())
    assert all(told in names for told in ("drift", "[prefill:5]", "[manyshot:5]", "few(warning)"))
    assert "not measured" in text
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_no_path_is_cut_off_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("/folder" * 30)
    render.print_report(report(), out)
    render.print_plan({"base": str(out), "rows": {"harmful_fit": 9}})
    shown = capsys.readouterr().out
    assert "".join(shown.split()).count(str(out)) == 2 and max(map(len, shown.splitlines())) <= 80


def test_a_missing_figure_is_a_dash_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(without_task(), capsys)
    assert "task accuracy: not given, no task rows were given" in text


def test_text_from_models_is_neither_markup_nor_control(capsys: pytest.CaptureFixture[str]) -> None:
    made = report(stopped_because="[red]loud[/red] \x1b[2J")
    made["warnings"] = [{"code": "W_X", "message": "[bold]\x07"}]
    assert "[red]loud[/red] \ufffd[2J" in printed(made, capsys)
    render.print_warnings(made)
    assert capsys.readouterr().err == "warning: W_X [bold]\ufffd\n"


def test_a_command_in_a_warning_stays_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = 'merge it first: python -c "' + "import what; what.is_long(); " * 9 + '"'
    render.print_warnings({"warnings": [{"code": "W_X", "message": command}]})
    assert capsys.readouterr().err == f"warning: W_X {command}\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_colours_are_off_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in (("NO_COLOR", False), ("UNRELATED", True)):
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv(name, "1")
        screen = Terminal()
        monkeypatch.setattr("sys.stdout", screen)
        render.print_report(report(), Path("out"), brief=True)
        assert ("\x1b[1;32m" in screen.getvalue()) is expected


@pytest.mark.parametrize("columns", ["40", "200"])
def test_nothing_is_cut_off_in_a_narrow_terminal_nor_drawn_out_in_a_wide_one(monkeypatch: pytest.MonkeyPatch,
                                                                             columns: str) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout", terminal)
    render.print_report(report(), Path("out"))
    text = re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue())
    assert "97.7% (94.7-100)" in text and "…" not in text and "n" in text.splitlines()[2].split()
    assert max(map(len, text.splitlines())) <= 80


def test_bars_are_drawn_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for stream, enabled, drawn in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr("sys.stderr", stream)
        with render.progress_bars(enabled=enabled) as progress:
            progress("answers [b]of[/b] the base", 1, 4)
            progress("answers [b]of[/b] the base", 4, 4)
        assert ("answers [b]of[/b]" in stream.getvalue()) is drawn
        assert ("4/4" in stream.getvalue()) is drawn


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (59_768_832, "59.8 MB"),
                                             (2.5e9, "2.5 GB"), (7e12, "7 TB")])
def test_sizes_are_readable(count: float, text: str) -> None:
    assert render.size_text(count) == text


def test_a_plan_is_a_list_of_readable_values(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_plan({"base": "b", "rows": {"harmful_fit": 9600}, "bytes": {"fisher_rows": 59_768_832}, "x": None,
                       "flag": True, "warnings": [{"code": "W_NO_TASK_ROWS", "message": "none"}]})
    captured = capsys.readouterr()
    values = dict(re.split(r"\s{2,}", line.strip()) for line in captured.out.splitlines()[1:])
    assert values == {"base": "b", "rows: harmful fit": "9,600", "bytes: fisher rows": "59.8 MB", "x": "-",
                      "flag": "yes"}
    assert captured.err == ""
