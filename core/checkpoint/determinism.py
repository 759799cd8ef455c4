"""The same bits every time, on a GPU too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def deterministic(*, on: bool) -> Iterator[None]:
    """Allow only algorithms that repeat bit for bit inside, if `on`; where torch has none it raises RuntimeError.

    On a CPU nothing changes: sums there come in one order for a number of threads.

    Args:
        on: False leaves everything as it is.

    Yields:
        Nothing.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if on:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def cumulative_sum(t: Tensor, dim: int) -> Tensor:
    """Return `torch.cumsum` of floats, taken on the CPU inside `deterministic`: a GPU has none that repeats."""
    return t.cpu().cumsum(dim).to(t.device) if torch.are_deterministic_algorithms_enabled() else t.cumsum(dim)
