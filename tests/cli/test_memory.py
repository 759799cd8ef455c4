"""What the command line's process holds of memory that was freed."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
from saferestore.cli.memory import return_freed_memory

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
