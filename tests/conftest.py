"""What every test stands on: no network, no inherited settings, and one real run for all that look at it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
DEMO = ("restore", "sample_data/base", "sample_data/tuned", "--task", "sample_data/records/task.jsonl", "-o", "out")
"""The command of `make demo` and of the README."""

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # as many processes as cores: a thread each
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

SLOW = ("test_docs_commands", "test_pipeline_eval", "cli/test_eval", "cli/test_score", "test_demo")
"""Files of long tests, begun first so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(name in item.nodeid for name in SLOW))  # stable: files keep their order


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
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Finished:
    """The restoration of the sample model, run once for all tests that look at what it leaves."""
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder, told = shared / "demo", shared / "demo.json"
    with FileLock(shared / "demo.lock"):
        if not told.exists():
            folder.mkdir()
            (folder / "sample_data").symlink_to(ROOT / "sample_data")
            told.write_text(json.dumps(asdict(run_cli(*DEMO, cwd=folder)), default=str), encoding="utf-8")
    found = json.loads(told.read_text(encoding="utf-8"))
    return Finished(**{**found, "folder": Path(found["folder"])})
