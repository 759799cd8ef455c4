"""What the command line's process holds of memory that was freed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from report_cases import ROOT
from saferestore.cli import app, memory
from saferestore.cli.memory import names_small_models, return_freed_memory

HOLES = """
from saferestore.cli.memory import return_freed_memory
if {done}:
    assert return_freed_memory()
block = b"x" * (24 << 20)
del block  # glibc's own bound rises to its size
blocks, pins = [], []
for _ in range(16):
    blocks.append(b"x" * (4 << 20))
    pins.append(b"x" * (128 << 10))
blocks.clear()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def _resident(*, done: bool) -> int:
    found = subprocess.run([sys.executable, "-c", HOLES.format(done=done)], capture_output=True, text=True, check=True)
    return int(found.stdout) << 10


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_blocks_between_living_ones_go_back_to_the_system() -> None:
    assert _resident(done=False) - _resident(done=True) > 48 << 20  # of 64 MiB that were freed


@pytest.mark.parametrize(("platform", "library"), [("darwin", ctypes), ("linux", object())])
def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch, platform: str, library: object) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert not return_freed_memory()


def folder(path: Path, size: int, *, whole: bool = True) -> str:
    """A checkpoint folder whose weights have so many bytes."""
    path.mkdir()
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(size)  # a hole: it takes no room
    if whole:
        (path / "config.json").write_text("{}", encoding="utf-8")
    return str(path)


def test_models_are_small_where_all_that_is_named_is_known_to_be(tmp_path: Path) -> None:
    small, large = folder(tmp_path / "small", 1 << 20), folder(tmp_path / "large", memory.SMALL)
    adapter = folder(tmp_path / "adapter", 1 << 10, whole=False)
    assert names_small_models(["restore", small, adapter, "-o", "out"]) and names_small_models(["probe", small])
    assert not names_small_models(["restore", small, large]) and not names_small_models(["restore", large, adapter])
    for unknown in (["eval", adapter], ["restore", "org/base", adapter], ["restore", "-", adapter], [], ["--version"],
                    ["--system-prompt", "x" * 5000 + "\0"]):
        assert not names_small_models(unknown)
    assert names_small_models(["restore", str(ROOT / "sample_data/base"), str(ROOT / "sample_data/tuned")])


@pytest.mark.parametrize("small", [True, False])
def test_memory_goes_back_unless_models_are_small(monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    done: list[bool] = []
    monkeypatch.setattr(app, "names_small_models", lambda _: small)
    monkeypatch.setattr(app, "return_freed_memory", lambda: done.append(True))
    monkeypatch.setattr(app, "run", lambda _: 0)
    with pytest.raises(SystemExit):
        app.app()
    assert done == ([] if small else [True])
