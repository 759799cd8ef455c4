"""Large temporary tensors, in memory or in a file that vanishes with the process."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import SaferestoreError

SHARE = 0.25
"""Part of the memory that is free now that one kept tensor may take."""


def is_small(size: int, device: torch.device | None = None) -> bool:
    """Tell whether `size` bytes are less than a quarter of the free memory; where that is unknown they are.

    Args:
        size: Bytes.
        device: Whose memory; None: the host's.

    Returns:
        Whether they are few.
    """
    if device is not None and device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return size <= SHARE * (torch.cuda.mem_get_info(device)[0] + unused)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # macOS and Windows do not say
        return True
    return size <= SHARE * free


def scratch_tensor(shape: Sequence[int], dtype: torch.dtype, *, on_disk: bool) -> Tensor:
    """Return an uninitialised CPU tensor.

    Args:
        shape: Its shape; at least one element.
        dtype: Its type.
        on_disk: Map it onto a file of the temporary folder (TMPDIR) that is unlinked at once: the system writes
            pages out when memory is short, and nothing is left behind even after kill -9.

    Returns:
        The tensor.

    Raises:
        SaferestoreError: The disk of the temporary folder is full.
        OSError: That folder cannot be written.
    """
    if not on_disk:
        return torch.empty(*shape, dtype=dtype)
    count = math.prod(shape)
    handle, path = tempfile.mkstemp(prefix="saferestore-")
    try:
        _reserve(handle, count * dtype.itemsize)
        return torch.from_file(path, shared=True, size=count, dtype=dtype).view(*shape)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SaferestoreError(f"no space left on the disk for temporary files - {os.path.dirname(path)}",
                               hint="set TMPDIR to a folder with more room, or leave out --low-memory") from error
    finally:
        os.close(handle)
        os.unlink(path)


def _reserve(handle: int, size: int) -> None:
    """Give a file its length and its room: a hole that finds the disk full later kills the process with SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:  # macOS and Windows
        os.ftruncate(handle, size)
