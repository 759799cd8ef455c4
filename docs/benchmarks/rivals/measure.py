"""What both sides of `run.py` share; nothing but the standard library, for two environments import it."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable

REPEATS = 5
PRODUCTS = 20


def alternated(work: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of several pieces of work done in turn, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, do in work.items():
            began = time.perf_counter()
            do()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {f"{name}_seconds": statistics.median(taken) for name, taken in seconds.items()}


def finish(found: dict) -> None:
    """Print the result as the last line."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps({**found, "peak_mib": peak}), flush=True)
