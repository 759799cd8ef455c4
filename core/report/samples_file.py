"""`samples.jsonl`: every answer with what the judges found; harmful prompts and model output are masked by default."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..evaluation.samples import Sample

FILE = "samples.jsonl"
MASKED = ("prompt", "text")


def write_samples(folder: Path, samples: Iterable[Sample], redact: str) -> None:
    """Write a line a sample, in their order.

    Args:
        folder: The staged folder of OUT.
        samples: Judged.
        redact: `none` shows prompts and answers; otherwise each is its length and a digest, by which two runs can
            still be compared. Rows of a task and their references are not harmful and are shown unless it is `all`.
    """
    with (folder / FILE).open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for sample in samples:
            file.write(json.dumps(_plain(sample, redact), ensure_ascii=True, allow_nan=False) + "\n")


def _plain(sample: Sample, redact: str) -> dict[str, Any]:
    plain = dataclasses.asdict(sample)
    plain["findings"] = {name: {key: value for key, value in finding.items() if value is not None}
                         for name, finding in plain["findings"].items()}
    hidden = redact == "all" or (redact == "auto" and sample.role in ("harmful", "benign"))
    if redact == "all":
        plain["reference"] = masked(sample.reference) if sample.reference else None
    return plain | {key: masked(plain[key]) for key in MASKED if hidden}


def masked(text: str) -> str:
    """Return `[N characters, sha256 ...]` in place of a text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"[{len(text)} characters, sha256 {digest}]"
