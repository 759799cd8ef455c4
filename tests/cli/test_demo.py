"""The command of the README, run as a user runs it, and what it leaves behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.report.schema import validate
from safetensors import safe_open

from ..conftest import Finished

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "report.html", "saferestore.json",
         *(f"reproduce/{name}" for name in ("config.yaml", "COMMAND.txt", "requirements.txt", "SHA256SUMS"))}


@pytest.fixture(scope="module")
def out(demo: Finished) -> Path:
    assert demo.returncode == 0, demo.stderr
    return demo.folder / "out"


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "saferestore.json").read_text(encoding="utf-8"))


def test_the_folder_holds_what_is_promised_and_nothing_beside_it(out: Path) -> None:
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == FILES
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "sample_data"]


def test_the_report_is_valid_and_says_restored(report: dict[str, Any]) -> None:
    validate(report)
    assert (report["verdict"], report["exit_code"], report["status"]) == ("restored", 0, "ok")


def test_the_summary_is_on_stdout_within_80_columns(demo: Finished) -> None:
    lines = demo.stdout.splitlines()
    assert lines[0].startswith("restored (exit 0): harmful answers ")
    assert max(map(len, lines)) <= 80
    assert all(word in demo.stdout for word in ("task accuracy", "scale", "random", "identity", "moved most"))


def test_stderr_holds_nothing_but_our_own_warnings(demo: Finished) -> None:
    assert [line for line in demo.stderr.splitlines() if not line.startswith("warning: W_")] == []


def test_the_checksums_hold(out: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "reproduce/SHA256SUMS"], cwd=out, check=True)


def test_no_file_shows_where_it_was_made(out: Path) -> None:
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(out.parent).encode() not in content and str(Path.home()).encode() not in content, path


def test_the_adapter_is_plain_lora_of_one_rank(out: Path) -> None:
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["lora_alpha"] == config["r"] and not config.get("rank_pattern") and not config.get("use_dora")
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(name).get_shape()[0] for name in list(file.keys()) if "lora_A" in name} == {config["r"]}


def test_the_saved_command_and_settings_are_those_of_the_run(demo: Finished, out: Path) -> None:
    words = (out / "reproduce" / "COMMAND.txt").read_text(encoding="utf-8").split()
    assert words[:4] == ["saferestore", "restore", "sample_data/base", "sample_data/tuned"]
    assert words[-2:] == ["-o", "OUT"]
