"""What a run took: the `run` object of every document, which alone differs from run to run."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

Json = dict[str, Any]


@dataclass
class Clock:
    """Seconds by stage, for the report's volatile `run` object."""

    started: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + round(time.perf_counter() - begin, 3)

    def run(self) -> Json:
        """Return the `run` object: everything that differs from run to run."""
        return {"started_utc": self.started, "seconds": self.seconds, "peak_memory_bytes": peak_memory()}


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes: of the GPU where one is used, else resident; None if unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, the others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
