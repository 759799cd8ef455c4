"""`saferestore restore`: settings in, report out, one exit code, two lines of error."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
import typer
import yaml
from report_cases import report, without_task
from saferestore.cli import app
from saferestore.cli.app import commands, run
from saferestore.core.config import RestoreConfig
from saferestore.core.errors import MismatchError, NumericalError, SaferestoreError, UsageError
from saferestore.core.report.schema import validate

from .conftest import Pipeline

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def two_lines(captured: str) -> tuple[str, str]:
    """The error and the hint, which are all there is on stderr."""
    error, hint = captured.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    return error[7:], hint[6:]


def test_every_setting_is_an_option_with_the_same_default(pipeline: Pipeline) -> None:
    assert run(["restore", "b", "t", "-o", "out"]) == 0
    assert pipeline.called == [(RestoreConfig(base="b", tuned="t"), Path("out"))]
    assert pipeline.earlier == [(False, False)]


@pytest.mark.parametrize(("flag", "earlier"), [("--resume", (True, False)), ("--restart", (False, True))])
def test_an_interrupted_run_is_gone_on_with_or_dropped(pipeline: Pipeline, flag: str,
                                                       earlier: tuple[bool, bool]) -> None:
    assert run(["restore", "b", "t", "-o", "out", flag]) == 0
    assert pipeline.earlier == [earlier]


@pytest.mark.parametrize("field", [f for f in dataclasses.fields(RestoreConfig) if f.name not in ("base", "tuned")],
                         ids=lambda field: field.name)
def test_every_setting_can_be_changed_by_its_flag(pipeline: Pipeline, field: dataclasses.Field) -> None:
    special = {"objective": "match", "engine": "cg", "dtype": "float32", "redact": "all",
               "gate_mode": "advisory", "method": "anchor-cg", "strength": 0.5, "limit": 0.5}
    together = {"strength": ["--method", "scale"], "unaligned": ["--method", "resta"]}.get(field.name, [])
    flag = f"--{field.name.replace('_', '-')}"
    if isinstance(field.default, bool):
        arguments, value = [f"--no-{field.name}" if field.default else flag], not field.default
    elif field.default == ():
        arguments, value = [flag, "one", flag, "two"], ("one", "two")
    else:
        value = special.get(field.name, 7 if isinstance(field.default, int | float) else "given")
        arguments = [flag, str(value)]
    assert run(["restore", "b", "t", "-o", "out", *arguments, *together]) == 0
    assert getattr(pipeline.called[0][0], field.name) == value


def test_a_batch_may_be_as_large_as_memory_allows(pipeline: Pipeline, capsys: Capture) -> None:
    assert run(["restore", "b", "t", "-o", "out", "--batch-size", "auto"]) == 0
    assert pipeline.called[0][0].batch_size == "auto"
    assert run(["restore", "b", "t", "-o", "out", "--batch-size", "large"]) == 2
    assert two_lines(capsys.readouterr().err)[0] == "must be auto or a number above 0 - --batch-size large"


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
        pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.yaml").write_text("max-drift: 0.1\nmax_steps: 1\nseed: 1\ntask: rows.jsonl\n", encoding="utf-8")
    monkeypatch.setenv("SAFERESTORE_MAX_STEPS", "2")
    monkeypatch.setenv("SAFERESTORE_SEED", "2")
    assert run(["restore", "b", "t", "-o", "out", "-c", "c.yaml", "--seed", "3"]) == 0
    config = pipeline.called[0][0]
    assert (config.max_drift, config.max_steps, config.seed, config.task) == (0.1, 2, 3, ("rows.jsonl",))


def test_several_files_in_one_variable_are_parted_by_blanks(
        pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFERESTORE_TASK", "one.jsonl two.csv:csv")
    assert run(["restore", "b", "t", "-o", "out"]) == 0
    assert pipeline.called[0][0].task == ("one.jsonl", "two.csv:csv")


def test_a_configuration_may_name_the_models_too(pipeline: Pipeline) -> None:
    Path("c.yaml").write_text("base: b\ntuned: t\ntask: [x, y]\nsystem_prompt: null\n", encoding="utf-8")
    assert run(["restore", "-o", "out", "--config", "c.yaml"]) == 0
    assert pipeline.called[0][0] == RestoreConfig(base="b", tuned="t", task=("x", "y"))


def test_the_printed_configuration_is_read_back(pipeline: Pipeline, capsys: Capture) -> None:
    assert run(["restore", "b", "t", "--task", "x", "--no-controls", "--print-config"]) == 0
    Path("c.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["restore", "-c", "c.yaml", "-o", "out"]) == 0
    assert pipeline.called[0][0] == RestoreConfig(base="b", tuned="t", task=("x",), controls=False)


@pytest.mark.parametrize(("arguments", "code"), [(("b", "t", "--json"), 2), (("b", "t", "--print-config"), 0)])
def test_a_closed_stdout_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: Capture,
                                              arguments: tuple[str, ...], code: int):
    """Python has none at all where the shell's `>&-` closed it."""
    monkeypatch.setattr("sys.stdout", None)
    assert run(["restore", *arguments]) == code
    assert ("no folder to write" in capsys.readouterr().err) is (code == 2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_programs_read_is_utf_8_whatever_the_terminal_has(
        pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Files of --config are, JSON is by its standard, and both come from a pipe."""
    name = "Modelle/größer \u2603"

    def told(*arguments: str) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            run(["restore", name, "t", *arguments])
            stream.flush()
        return stream.buffer.getvalue()

    Path("c.yaml").write_bytes(told("--print-config"))
    assert run(["restore", "-c", "c.yaml", "-o", "out"]) == 0
    assert pipeline.called[0][0].base == name
    pipeline.outcome = report(stopped_because=name)
    assert json.loads(told("-o", "out", "--json").decode("utf-8"))["stopped_because"] == name
    pipeline.outcome = UsageError(f"no such folder - {name}", hint="h")
    assert json.loads(told("-o", "out", "--json").decode("utf-8"))["error"]["what"] == f"no such folder - {name}"


def test_a_plan_is_printed_without_a_run(pipeline: Pipeline, capsys: Capture) -> None:
    assert run(["restore", "b", "t", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "memory: peak bytes" in text and "2 GB" in text and "a, b" in text
    assert run(["restore", "b", "t", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"harmful": 64}
    assert [out for _, out in pipeline.called] == [None, None]


@pytest.mark.parametrize(("flags", "said"), [([], "warning: W_NO_TASK_ROWS none\n"), (["-q"], ""),
                                             (["--json"], "warning: W_NO_TASK_ROWS none\n")])
def test_warnings_of_a_plan_are_those_of_a_run(pipeline: Pipeline, capsys: Capture, flags: list[str],
                                               said: str) -> None:
    assert run(["restore", "b", "t", "--dry-run", *flags]) == 0
    assert capsys.readouterr().err == said


def test_a_plan_finds_an_out_that_cannot_be_written(pipeline: Pipeline, capsys: Capture) -> None:
    Path("out").write_text("", encoding="utf-8")
    assert run(["restore", "b", "t", "-o", "out", "--dry-run"]) == 2
    assert not pipeline.called


def test_json_is_exactly_the_report(pipeline: Pipeline, capsys: Capture) -> None:
    pipeline.outcome = without_task()
    assert run(["restore", "b", "t", "-o", "out", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == without_task()
    assert captured.err == "warning: W_NO_TASK_ROWS no task rows were given\n"


@pytest.mark.parametrize(("verdict", "code"), [("restored", 0), ("partial", 4), ("unchanged", 3)])
@pytest.mark.parametrize("flags", [[], ["--json"], ["-q"], ["--no-progress"]])
def test_the_exit_code_is_the_verdict_s_whatever_is_printed(
        pipeline: Pipeline, capsys: Capture, verdict: str, code: int, flags: list[str]) -> None:
    pipeline.outcome = report(verdict=verdict, exit_code=code)
    assert run(["restore", "b", "t", "-o", "out", *flags]) == code
    assert verdict in capsys.readouterr().out


def test_quiet_prints_one_line(pipeline: Pipeline, capsys: Capture) -> None:
    pipeline.outcome = without_task()
    assert run(["restore", "b", "t", "-o", "out", "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "restored (exit 0): harmful answers 97.7% -> 0.8%\n" and captured.err == ""


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_refused_report_is_an_error_and_still_the_document(
        pipeline: Pipeline, capsys: Capture, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "environment":
        monkeypatch.setenv("SAFERESTORE_JSON", "1")
    pipeline.outcome = {
        "schema_version": "1.0", "command": "restore", "status": "error", "exit_code": 1, "verdict": "refused",
        "error": {"what": "the loss is not finite", "hint": "lower --max-drift"}, "warnings": []}
    assert run(["restore", "b", "t", "-o", "out", *(["--json"] if by == "flag" else [])]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == pipeline.outcome
    assert two_lines(captured.err) == ("the loss is not finite", "lower --max-drift")


@pytest.mark.parametrize(("error", "code", "what", "hint"), [
    (UsageError("no rows - x.jsonl", hint="add rows"), 2, "no rows - x.jsonl", "add rows"),
    (MismatchError("keys differ - t", hint="merge it"), 5, "keys differ - t", "merge it"),
    (NumericalError("the loss is NaN - step 2", hint="lower --max-drift"), 1, "the loss is NaN - step 2",
     "lower --max-drift"),
    (SaferestoreError("no space left on the disk - out", hint="free some"), 1, "no space", "free some"),
    (KeyboardInterrupt(), 130, "interrupted", "run the same command again"),
    (OSError(28, "No space left on device", "cache/blob"), 1, "no space left on the disk - cache/blob", "free some"),
    (RuntimeError("write: No space left on device"), 1, "no space left on the disk - write", "free some"),
    (MemoryError(), 1, "out of memory", "--batch-size"),
    (RuntimeError("shape\n  mismatch \x1b[31m"), 1, "RuntimeError: shape mismatch \ufffd[31m", "--debug"),
    (ValueError("x" * 1000), 1, "ValueError: xxx", "--debug"),
    (ModuleNotFoundError("No module named 'bits'"), 1, "No module named 'bits'", "pip install")])
def test_every_failure_is_two_lines_and_its_exit_code(
        pipeline: Pipeline, capsys: Capture, error: BaseException, code: int, what: str, hint: str) -> None:
    pipeline.outcome = error
    assert run(["restore", "b", "t", "-o", "out"]) == code
    captured = capsys.readouterr()
    found = two_lines(captured.err)
    assert what in found[0] and hint in found[1] and len(found[0]) <= 300
    assert captured.out == ""
    assert not Path("out").exists()


def test_a_ctrl_c_that_a_library_makes_an_error_of_its_own_is_one(pipeline: Pipeline, capsys: Capture,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "interrupts", [])
    pipeline.outcome = AttributeError("module 'numpy._core' has no attribute 'x'")
    assert run(["restore", "b", "t", "-o", "out"]) == 1
    assert "numpy" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        app.interrupt()
    assert run(["restore", "b", "t", "-o", "out"]) == 130
    assert two_lines(capsys.readouterr().err)[0].startswith("interrupted")


def test_a_hint_is_never_cut(pipeline: Pipeline, capsys: Capture) -> None:
    command = 'merge it first: python -c "' + "import what; what.is_long(); " * 20 + '"'
    pipeline.outcome = MismatchError("w" * 1000, hint=command)
    assert run(["restore", "b", "t", "-o", "out", "--json"]) == 5
    captured = capsys.readouterr()
    what, hint = two_lines(captured.err)
    assert (len(what), hint) == (300, command)
    assert json.loads(captured.out)["error"] == {"what": what, "hint": command}


@pytest.mark.parametrize("error", [UsageError("u", hint="h"), MismatchError("m", hint="h"),
                                   NumericalError("n", hint="h"), RuntimeError("r"), KeyboardInterrupt()])
def test_with_json_a_failure_is_one_document_too(pipeline: Pipeline, capsys: Capture, error: BaseException) -> None:
    pipeline.outcome = error
    code = run(["restore", "b", "t", "-o", "out", "--json"])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    validate(document)
    assert document["verdict"] == "refused" and document["exit_code"] == code
    assert document["error"]["what"] == two_lines(captured.err)[0]


def test_a_traceback_is_shown_on_demand(pipeline: Pipeline, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.outcome = RuntimeError("deep")
    assert run(["restore", "b", "t", "-o", "out", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SAFERESTORE_DEBUG", "1")
    assert run(["restore", "b", "t", "-o", "out"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "0", "false", "False", "no", "off", "f", "N"])
def test_a_flag_that_the_environment_leaves_off_is_off_in_a_failure_too(
        pipeline: Pipeline, capsys: Capture, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SAFERESTORE_JSON", value)
    monkeypatch.setenv("SAFERESTORE_DEBUG", value)
    assert run(["restore", "b", "t", "-o", "out"]) == 0
    assert capsys.readouterr().out.startswith("restored")
    pipeline.outcome = RuntimeError("deep")
    assert run(["restore", "b", "t", "-o", "out", "--force"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and two_lines(captured.err)[0] == "RuntimeError: deep"


@pytest.mark.parametrize(("arguments", "what", "hint"), [
    (["restore"], "missing argument 'BASE'", "saferestore restore --help"),
    (["restore", "b"], "missing argument 'TUNED'", "saferestore restore --help"),
    (["restore", "b", "t"], "no folder to write - --out", "-o OUT"),
    (["restore", "b", "t", "-o", "out", "--max-drif", "1"], "no such option: --max-drif", "--max-drift"),
    (["restore", "b", "t", "-o", "out", "--max-drift", "much"], "--max-drift", "saferestore restore --help"),
    (["restore", "b", "t", "-o", "out", "--max-drift", "nan"], "--max-drift", "above 0"),
    (["restore", "b", "t", "-o", "out", "--engine", "fischer"], "--engine fischer", "did you mean fisher?"),
    (["restore", "b", "t", "-o", "out", "--config", "none.yaml"], "none.yaml", "readable YAML"),
    (["restore", "b", "t", "-o", "out", "--resume", "--restart"], "to begin again - --resume --restart", "one of them"),
    (["restore", "b", "t", "--dry-run", "--resume"], "no folder with an interrupted run - --out", "-o OUT"),
    (["restore", "b", "t", "-o"], "requires an argument", "see: saferestore restore --help"),
    (["restore", "b", "t", "--json=3"], "option '--json' does not take a value", "see: saferestore restore --help"),
    (["--version=3"], "option '--version' does not take a value", "see: saferestore --help"),
    (["restor"], "no such command 'restor'", "restore"),
    (["restore", "b", "t", "u", "-o", "out"], "unexpected extra argument", "saferestore restore --help")])
def test_wrong_usage_says_what_and_how(
        pipeline: Pipeline, capsys: Capture, arguments: list[str], what: str, hint: str) -> None:
    assert run(arguments) == 2
    found = two_lines(capsys.readouterr().err)
    assert what in found[0] and hint in found[1]
    assert not pipeline.called


def test_an_unknown_key_of_the_file_names_the_nearest(pipeline: Pipeline, capsys: Capture) -> None:
    Path("c.yaml").write_text("max_drfit: 0.1\n", encoding="utf-8")
    assert run(["restore", "b", "t", "-o", "out", "-c", "c.yaml"]) == 2
    assert two_lines(capsys.readouterr().err) == ("unknown key `max_drfit` - c.yaml", "did you mean max_drift?")


@pytest.mark.parametrize(("line", "what"), [
    ("train: [a, b]", "train: ['a', 'b']"), ("device: [cpu]", "device: ['cpu']"),
    ("system_prompt: {Note: be brief}", "system_prompt: {'Note': 'be brief'}"),
    ("system_prompt: yes", "system_prompt: True"), ("seed: true", "seed: True"), ("batch_size: on", "batch_size: True"),
    ("harmful: {a: b}", "harmful: {'a': 'b'}"), ("task: [[a], b]", "task: [['a'], 'b']"),
    ("controls: [no]", "controls: [False]")])
def test_a_value_of_another_kind_in_the_file_is_refused_and_not_taken_as_its_text(
        pipeline: Pipeline, capsys: Capture, line: str, what: str) -> None:
    Path("c.yaml").write_text(line, encoding="utf-8")
    assert run(["restore", "b", "t", "-o", "out", "-c", "c.yaml"]) == 2
    found = two_lines(capsys.readouterr().err)
    assert found[0] == f"not a value of this setting - {what}" and "give one value" in found[1]
    assert not pipeline.called


def test_a_folder_with_files_is_refused_before_any_work(pipeline: Pipeline, capsys: Capture) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("", encoding="utf-8")
    assert run(["restore", "b", "t", "-o", "out"]) == 2
    assert "--force" in two_lines(capsys.readouterr().err)[1] and not pipeline.called
    assert run(["restore", "b", "t", "-o", "out", "--force"]) == 0


def test_a_tilde_that_the_shell_left_in_out_is_the_home_folder(
        pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/c.yaml").write_text("seed: 5", encoding="utf-8")
    assert run(["restore", "b", "t", "--out=~/out", "--config=~/c.yaml"]) == 0
    assert [(config.seed, out) for config, out in pipeline.called] == [(5, tmp_path / "home/out")]
    assert run(["restore", "b", "t", "-o", "~nobody-of-this-name/out"]) == 0
    assert pipeline.called[-1][1] == Path("~nobody-of-this-name/out")


def test_the_help_names_no_type_of_the_program(capsys: Capture) -> None:
    for command in ("restore", "eval", "compare", "probe", "score"):
        assert run([command, "--help"]) == 0
        assert "list[" not in (text := capsys.readouterr().out) and "-o, --out OUT" in text


def test_the_help_of_a_command_names_only_options_that_it_has(capsys: Capture) -> None:
    for command in ("restore", "eval", "compare", "probe", "score"):
        assert run([command, "--help"]) == 0
        text = capsys.readouterr().out
        listed = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)(?: / (--[a-z-]+))?", text, re.MULTILINE))
        assert set(re.findall(r"--[a-z]+[a-z-]*", text)) <= {flag for pair in listed for flag in pair}


def test_what_reads_the_same_settings_says_so_in_the_same_words() -> None:
    """Options of one row of `options.py`; those of a command's own may differ."""
    helps: dict[str, set[str]] = {}
    for command in typer.main.get_command(commands).commands.values():
        for option in command.params:
            helps.setdefault(option.name or "", set()).add(getattr(option, "help", None) or "")
    own = {"base", "tuned", "model", "command", "out", "harmful", "task", "benign", "untouched", "train", "max_drift",
           "fit_rows", "batch_size", "rank", "seed", "gate_mode", "redact", "points", "reach", "top"}
    assert {name for name, told in helps.items() if len(told) > 1} <= own


def test_help_lists_the_exit_codes(capsys: Capture) -> None:
    for arguments in (["--help"], ["restore", "--help"], []):
        assert run(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {code}  " in text for code in (0, 1, 2, 3, 4, 5, 130))
        assert all(len(line) <= 80 for line in text.splitlines())


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("saferestore 0.")


def test_the_schema_is_printed_as_json(capsys: Capture) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Report of saferestore restore"


def test_a_failure_of_another_command_is_the_same_two_lines(capsys: Capture) -> None:
    assert run(["schema", "--bad"]) == 2
    assert "no such option" in two_lines(capsys.readouterr().err)[0]


def test_the_yaml_that_is_printed_holds_every_setting(capsys: Capture) -> None:
    run(["restore", "b", "t", "--print-config"])
    assert set(yaml.safe_load(capsys.readouterr().out)) == {f.name for f in dataclasses.fields(RestoreConfig)}


def test_there_are_no_short_flags_beyond_the_common_ones() -> None:
    command = typer.main.get_command(commands)
    shorts = {o for name in command.commands for p in command.commands[name].params for o in p.opts if len(o) == 2}
    assert shorts <= {"-o", "-c", "-q", "-v"}
