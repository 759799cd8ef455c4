"""A run is repeated by what it leaves behind, byte for byte but for times and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_cases import ROOT

from ..conftest import Finished, run_cli

SMALL = ("--max-steps", "2", "--fit-rows", "16", "--held-out-rows", "16", "--max-new-tokens", "16")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Finished]:
    """A small restoration, and the same from the settings that it wrote, in processes of their own."""
    folder = tmp_path_factory.mktemp("repeat")
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    first = run_cli("restore", "sample_data/base", "sample_data/tuned", "--task", "sample_data/records/task.jsonl",
                    "-o", "first", *SMALL, cwd=folder)
    return first, run_cli("restore", "-c", "first/reproduce/config.yaml", "-o", "second", "--json", cwd=folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_run(content: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(content).items() if key != "run"}


def test_the_same_settings_give_the_same_bytes(runs: tuple[Finished, Finished]) -> None:
    first, second = (files(done.folder / name) for done, name in zip(runs, ("first", "second"), strict=True))
    assert first and first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] in ([], ["saferestore.json"])
    assert without_run(first["saferestore.json"]) == without_run(second["saferestore.json"])


def test_json_on_stdout_is_the_report_that_is_written(runs: tuple[Finished, Finished]) -> None:
    written = (runs[1].folder / "second" / "saferestore.json").read_bytes()
    assert without_run(runs[1].stdout.encode()) == without_run(written)


def test_the_exit_code_is_the_same_and_that_of_the_report(runs: tuple[Finished, Finished]) -> None:
    assert {done.returncode for done in runs} == {json.loads(runs[1].stdout)["exit_code"]}
