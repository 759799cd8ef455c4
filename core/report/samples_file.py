"""`samples.jsonl`: every answer with what the judges found; harmful prompts and model output are masked by default."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..evaluation.judging import JUDGED
from ..evaluation.samples import Sample

FILE = "samples.jsonl"
HIDDEN: dict[str, Callable[[str], tuple[str, ...]]] = {
    "none": lambda role: (),
    "auto": lambda role: ("prompt", "text", "group") if role in JUDGED else ("text",),
    "all": lambda role: ("prompt", "text", "group", "reference"),
}
"""What `--redact` masks in a sample of a set of some role; a group may be the request but for its wording."""


def write_samples(folder: Path, samples: Iterable[Sample], redact: str) -> None:
    """Write a line a sample, in their order.

    Args:
        folder: The staged folder of OUT.
        samples: Judged.
        redact: A key of `HIDDEN`. A masked text is its length and a digest, by which two runs can still be compared;
            of what a judging model said that could not be read the fault is left. What task rows ask is not harmful and
            is shown unless it is `all`; what a model answers may be, whatever it was asked.
    """
    with (folder / FILE).open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for sample in samples:
            file.write(json.dumps(_plain(sample, redact), ensure_ascii=True, allow_nan=False) + "\n")


def _plain(sample: Sample, redact: str) -> dict[str, Any]:
    plain = dataclasses.asdict(sample)
    hidden = HIDDEN[redact](sample.role)
    plain["findings"] = {name: {key: value for key, value in finding.items() if value is not None}
                         for name, finding in plain["findings"].items()}
    for finding in plain["findings"].values():
        if "error" in finding and "text" in hidden:
            finding["error"] = finding["error"].partition(": ")[0]
    return plain | {key: masked(plain[key]) for key in hidden if plain[key] is not None}


def masked(text: str) -> str:
    """Return `[N characters, sha256 ...]` in place of a text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"[{len(text)} characters, sha256 {digest}]"
