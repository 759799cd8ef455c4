"""Large temporary tensors: the same on disk as in memory, and nothing left behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from saferestore.core.data.scratch import is_small, scratch_tensor


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_what_is_written_is_read_back(on_disk: bool, dtype: torch.dtype):
    made = scratch_tensor((3, 5, 7), dtype, on_disk=on_disk)
    values = torch.arange(105).view(3, 5, 7).to(dtype)
    made.copy_(values)
    assert made.shape == (3, 5, 7) and made.dtype == dtype and torch.equal(made, values)


def test_a_tensor_on_disk_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = scratch_tensor((1000,), torch.float32, on_disk=True)
    made.fill_(1.0)
    assert not list(tmp_path.iterdir())
    assert float(made.sum()) == 1000


def test_two_tensors_on_disk_do_not_share_a_file():
    first, second = (scratch_tensor((10,), torch.float32, on_disk=True) for _ in range(2))
    first.fill_(1.0)
    second.fill_(2.0)
    assert float(first.sum()) == 10


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match="missing"):
        scratch_tensor((10,), torch.float32, on_disk=True)


def test_small_is_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert is_small(1_024_000) and not is_small(1_024_001)


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_where_the_system_does_not_say_what_is_free_everything_is_small(error: type, monkeypatch: pytest.MonkeyPatch):
    def unknown(_: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", unknown)
    assert is_small(10**15)
