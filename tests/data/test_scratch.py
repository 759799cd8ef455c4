"""Large temporary tensors: the same on disk as in memory, and nothing left behind."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from saferestore.core.data.scratch import is_small, scratch_tensor
from saferestore.core.errors import SaferestoreError


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


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_before_anything_is_written(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int):
    def full(*_: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SaferestoreError, match="no space left") as caught:
        scratch_tensor((10,), torch.float32, on_disk=True)
    assert str(tmp_path) in caught.value.what and "TMPDIR" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_other_failures_of_the_disk_keep_their_own_words(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "posix_fallocate", broken, raising=False)
    with pytest.raises(OSError, match="broken"):
        scratch_tensor((10,), torch.float32, on_disk=True)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room")
def test_the_room_of_a_tensor_on_disk_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file with holes would be found too large only when a page is written, by a signal that ends the process."""
    blocks = []
    real = os.unlink
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "unlink", lambda path: (blocks.append(os.stat(path).st_blocks), real(path)))
    scratch_tensor((100_000,), torch.float32, on_disk=True)
    assert 512 * blocks[0] >= 400_000


def test_where_room_cannot_be_reserved_the_file_still_has_its_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    made = scratch_tensor((1000,), torch.float32, on_disk=True)
    made.fill_(2.0)
    assert float(made.sum()) == 2000


def test_small_is_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert is_small(1_024_000) and not is_small(1_024_001)


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_where_the_system_does_not_say_what_is_free_everything_is_small(error: type, monkeypatch: pytest.MonkeyPatch):
    def unknown(_: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", unknown)
    assert is_small(10**15)
