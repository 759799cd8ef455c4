"""What every test stands on: no network, no inherited settings, and one real run for all that look at it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEMO = ("restore", "sample_data/base", "sample_data/tuned", "--task", "sample_data/records/task.jsonl", "-o", "out")
"""The command of `make demo` and of the README."""

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SAFERESTORE_") or name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
            monkeypatch.delenv(name)


@dataclass(frozen=True)
class Finished:
    """One command line, run in a process of its own."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    folder: Path


def run_cli(*arguments: str, cwd: Path) -> Finished:
    """Run `saferestore` as a user does."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "saferestore.cli", *arguments], cwd=cwd, capture_output=True,
                          text=True, check=False)
    return Finished(done.returncode, done.stdout, done.stderr, time.perf_counter() - begin, cwd)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The restoration of the sample model, run once for all tests that look at what it leaves."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    return run_cli(*DEMO, cwd=folder)
