"""Large temporary tensors, in memory or in a file that vanishes with the process."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor


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
