"""`saferestore probe`: settings in, the document out."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest
import saferestore.core
from probe_cases import probed, unmeasured
from saferestore.cli.app import run
from saferestore.core.config import ProbeConfig
from saferestore.core.errors import UsageError


class Seen:
    """What the pipeline was called with, and what it is to return."""

    def __init__(self) -> None:
        self.configs: list[ProbeConfig] = []
        self.found = probed()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    made = Seen()

    def probe(config: ProbeConfig, out: Path | None, *, plots: Path | None, progress: Any) -> dict[str, Any]:
        made.configs.append(config)
        return made.found

    module = types.SimpleNamespace(probe=probe)
    monkeypatch.setitem(__import__("sys").modules, "saferestore.core.pipeline", module)
    monkeypatch.setattr(saferestore.core, "pipeline", module, raising=False)
    monkeypatch.chdir(tmp_path)
    return made


SPECIAL = {"dtype": "float32", "products": 12}


@pytest.mark.parametrize("field", [f for f in dataclasses.fields(ProbeConfig) if f.name != "model"],
                         ids=lambda field: field.name)
def test_every_setting_can_be_changed_by_its_flag(seen: Seen, field: dataclasses.Field) -> None:
    flag = f"--{field.name.replace('_', '-')}"
    if isinstance(field.default, bool):
        arguments, value = [flag], True
    elif field.default == ():
        arguments, value = [flag, "one", flag, "two"], ("one", "two")
    else:
        value = SPECIAL.get(field.name, 9 if isinstance(field.default, int | float) else "given")
        arguments = [flag, str(value)]
    assert run(["probe", "m", *arguments]) == 0
    assert getattr(seen.configs[0], field.name) == value


def test_the_terminal_shows_what_it_is_who_serves_it_losses_lines_and_curvature(
        seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "m"]) == 0
    shown = capsys.readouterr().out
    for text in ("tuned: LoRA rank 8 on LlamaForCausalLM", "1,000 parameters in 2 layers", "in 2 modules", "refuses",
                 "0.4 to 0.6", "1 gaps", "Gauss-Newton", "2 ± 1e-09", "-0.5 ± 0.01 30", "3 ± 0.5",
                 "0.25 (0.2 to 0.3)", "25% (20 to 30)", "100 coordinates of the adapter",
                 "leading curvature of harmful Hessian by layer and module", "0 ██████"):
        assert text in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_long_numbers_are_not_cut(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    for row in seen.found["curvature"]["matrices"]:
        row["density"]["mean_eigenvalue"] = {"value": -0.000226, "ci_low": -7.43e-05, "ci_high": 0.000388}
        row["negative_mass"] = {"value": 0.4723, "ci_low": 0.4523, "ci_high": 0.4923}
        row["largest"][0] = row["smallest"][0] = {"value": -0.001234, "error_at_most": 0.000432}
        row["trace"] |= {"value": 5.48, "bound_95": 71.3}
    assert run(["probe", "m"]) == 0
    shown = capsys.readouterr().out
    assert "harmful Gauss-Newton  -0.00023 (-7.4e-05 to 0.00039)  47.2% (45.2 to 49.2)" in shown
    assert shown.count("harmful Gauss-Newton  -0.00123 ± 0.0004  -0.00123 ± 0.0004  30 ") == 1
    assert "harmful Gauss-Newton  5.48 ± 70" in shown
    assert "\u2026" not in shown and max(map(len, shown.splitlines())) <= 80


def test_answers_of_several_kinds_cut_no_loss(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    for row in seen.found["losses"]:
        row |= {"loss_nats_per_token": 0.000331, "ci_low": 0.000301, "ci_high": 0.000388, "n": 512}
    seen.found["inputs"]["data"]["harmful"]["answers"] = {"given": 300, "affirmative opening": 212}
    assert run(["probe", "m"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("0.000331        0.000301 to 0.000388  512 ") == 2 and "\u2026" not in shown
    assert "opening" in shown and max(map(len, shown.splitlines())) <= 80


def test_an_adapter_that_cannot_be_measured_is_described(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    seen.found = unmeasured()
    assert run(["probe", "m"]) == 0
    out, err = capsys.readouterr()
    assert "not measured: the adapter has no exact LoRA form" in " ".join(out.split()) and "W_NO_LORA_FORM" in err


def test_json_is_the_document_and_nothing_else(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == probed()


def test_quiet_is_one_line(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    seen.found["inputs"]["model"]["ref"] = "hub/a-model-of-a-long-name-8B-Instruct+somebody/its-adapter-of-a-long-name"
    assert run(["probe", "m", "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_settings_can_be_printed_and_read_again(seen: Seen, capsys: pytest.CaptureFixture[str],
                                                tmp_path: Path) -> None:
    assert run(["probe", "m", "--points", "5", "--task", "t.jsonl", "--print-config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(["probe", "m", "-c", "c.yaml"]) == 0
    assert seen.configs[0] == ProbeConfig(model="m", points=5, task=("t.jsonl",))


@pytest.mark.parametrize(("flags", "said"), [
    (["--points", "4"], "must be odd"), (["--points", "0"], "must be odd"), (["--products", "6"], "too few"),
    (["--rows", "0"], "must be positive"), (["--dtype", "int8"], "unknown value"), (["--seed", "-1"], "negative")])
def test_impossible_settings_are_refused(seen: Seen, flags: list[str], said: str,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "m", *flags]) == UsageError.exit_code
    assert said in capsys.readouterr().err and not seen.configs


def test_a_folder_that_holds_files_is_refused_before_anything_is_done(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine", encoding="utf-8")
    assert run(["probe", "m", "-o", "out"]) == UsageError.exit_code and not seen.configs


@pytest.mark.parametrize("flag", ["-o", "--plots"])
def test_what_is_read_is_never_replaced(seen: Seen, tmp_path: Path, flag: str,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    """By --force, which lets a folder with files be replaced."""
    (tmp_path / "in" / "adapter").mkdir(parents=True)
    (tmp_path / "in" / "rows.txt").write_text("please\n", encoding="utf-8")
    for read in (["in/adapter"], ["m", "--base", "in/adapter"], ["m", "--chat-template", "in/rows.txt"],
                 *(["m", f"--{name}", "in/rows.txt"] for name in ("harmful", "benign", "task"))):
        assert run(["probe", *read, flag, "in", "--force"]) == UsageError.exit_code
        assert f"OUT would replace {read[-1]} - in" in capsys.readouterr().err and not seen.configs


@pytest.mark.parametrize("plots", ["out", "out/plots"])
def test_pictures_alone_have_a_folder_of_their_own(seen: Seen, plots: str,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "m", "-o", "out", "--plots", plots]) == UsageError.exit_code
    assert f"one folder to write lies in another - {plots}, out" in capsys.readouterr().err and not seen.configs


def test_the_schema_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "probe"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Document of saferestore probe"
