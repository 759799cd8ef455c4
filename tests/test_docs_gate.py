"""The shell gate of docs/ci.md hands the verdict on, whatever it is; its workflow is YAML."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from saferestore.core.evaluation.gate.decide import VERDICT_CODES
from saferestore.core.report.gate_files import read_gate

ROOT = Path(__file__).parents[1]
CI = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
GATE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")


def block(text: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, language
    return found[1]


def run_gate(folder: Path, code: int) -> tuple[int, str, str]:
    """Run the script with a `saferestore` that notes its arguments and exits with a code."""
    command = folder / "saferestore"
    command.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\nexit {code}\n')
    command.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", block(CI, "shellscript"), "gate.sh", "some/model", "some/out"],
                          env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, (folder / "arguments").read_text()


@pytest.mark.parametrize(("code", "said"), [(0, "gate passed"), (3, "gate failed, see some/out/report.md"),
                                            (4, "inconclusive"), (1, "no verdict"), (2, "no verdict"),
                                            (5, "no verdict"), (130, "no verdict")])
def test_the_shell_gate_exits_as_the_evaluation_does(tmp_path: Path, code: int, said: str) -> None:
    returned, output, arguments = run_gate(tmp_path, code)
    assert returned == code
    assert output.startswith(said)
    assert arguments.startswith("eval some/model --base sample_data/base") and "-o some/out" in arguments


@pytest.mark.parametrize(("model", "code", "said"), [("sample_data/tuned", 3, "gate failed"),
                                                     ("sample_data/base", 0, "gate passed")])
def test_the_shell_gate_fails_the_tuned_model_of_the_sample_and_passes_its_base(
        tmp_path: Path, model: str, code: int, said: str) -> None:
    """The script as it stands; only the number of rows is from the environment."""
    done = subprocess.run(["sh", "-c", block(CI, "shellscript"), "gate.sh", model, str(tmp_path / "out")], cwd=ROOT,
                          env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                               "SAFERESTORE_LIMIT": "100", "SAFERESTORE_MAX_NEW_TOKENS": "32"},
                          capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout.splitlines()[-1]
    assert "harm [" in (tmp_path / "out" / "junit.xml").read_text() or code == 0


def test_what_the_shell_gate_names_is_there() -> None:
    for name in re.findall(r"sample_data/[\w./-]+", block(CI, "shellscript")):
        assert (ROOT / name).exists(), name


def test_the_workflow_is_yaml_and_installs_what_the_project_pins() -> None:
    workflow = yaml.safe_load(block(CI, "yaml"))
    steps = workflow["jobs"]["gate"]["steps"]
    assert any("saferestore eval" in step.get("run", "") for step in steps)
    assert any("$GITHUB_STEP_SUMMARY" in step.get("run", "") for step in steps)


def test_the_gate_of_the_documents_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(block(GATE, "yaml"))
    assert [rule.kind for rule in read_gate(tmp_path / "gate.yaml")] == ["max_upper", "max_decrease"]


def test_the_documents_name_every_verdict_with_its_exit_code() -> None:
    rows = dict(re.findall(r"^\| (pass|fail|inconclusive) \|.*\| (\d) \|$", GATE, re.MULTILINE))
    assert {name: int(code) for name, code in rows.items()} == {
        name: code for name, code in VERDICT_CODES.items() if name != "none"}
