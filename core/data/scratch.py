"""Large temporary tensors, in memory or in a file that vanishes with the process."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

SHARE = 0.25
"""Part of the memory that is free now that one kept tensor may take."""


def is_small(size: int) -> bool:
    """Tell whether `size` bytes are less than a quarter of the free memory; where that is unknown they are."""
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
    """
    if not on_disk:
        return torch.empty(*shape, dtype=dtype)
    count = math.prod(shape)
    handle, path = tempfile.mkstemp(prefix="saferestore-")
    try:
        os.ftruncate(handle, count * dtype.itemsize)
        return torch.from_file(path, shared=True, size=count, dtype=dtype).view(*shape)
    finally:
        os.close(handle)
        os.unlink(path)
