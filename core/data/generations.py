"""Answers that exist already, read from a file as other tools write it, so that they can be scored with no model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..config import nearest
from ..errors import UsageError
from .containers import Numbered, decode, raw_rows
from .formats import ANSWERS, PROMPTS
from .generation_formats import GENERATION_FORMATS, Generated, Source
from .records import Skipped

__all__ = ["GENERATION_FORMATS", "Generated", "Generations", "read_generations"]

KNOWN = frozenset((*PROMPTS, *ANSWERS))
HINT = "give lm-eval samples, a garak report, XSTest completions, or rows with a prompt and an answer column"


@dataclass(frozen=True)
class Generations:
    """The answers of one file.

    Attributes:
        rows: In the order of the file.
        rejected: (line, reason) of malformed rows.
        left_out: (line, reason) of rows that are no answers, or the same answer again.
        name: The file's name without its folder.
        sha256: Digest of the file's bytes, hexadecimal.
        format: Name of the format it was read as.
    """

    rows: tuple[Generated, ...]
    rejected: tuple[tuple[int, str], ...]
    left_out: tuple[tuple[int, str], ...]
    name: str
    sha256: str
    format: str


def read_generations(path: Path, wanted: str | None = None) -> Generations:
    """Read answers from a file.

    Args:
        path: JSON lines, a JSON array, or CSV with a header.
        wanted: Name of a format; None tells it from the columns.

    Returns:
        At least one answer, and the rows that were not used.

    Raises:
        UsageError: The file cannot be read, is of no known format, or has no usable row.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read file - {path}: {error.strerror}", hint=HINT) from error
    rows = raw_rows(decode(content, str(path)), str(path), path.suffix.lower(), KNOWN)
    name = _format(rows, wanted, path)
    source = Source(path, _named_model(rows))
    read = [(line, row if isinstance(row, Skipped) else GENERATION_FORMATS[name].read(line, row, source))
            for line, row in rows]
    skipped = [(line, found) for line, found in read if isinstance(found, Skipped)]
    answers, again = _once([row for _, found in read if not isinstance(found, Skipped) for row in found])
    rejected = tuple((line, skip.reason) for line, skip in skipped if not skip.by_design)
    if not answers:
        detail = f", line {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
        raise UsageError(f"no usable answer - {path}{detail}", hint=HINT)
    left = sorted([(line, skip.reason) for line, skip in skipped if skip.by_design]
                  + [(row.line, "the same answer again") for row in again])
    return Generations(tuple(answers), rejected, tuple(left), path.name, hashlib.sha256(content).hexdigest(), name)


def _format(rows: list[Numbered], wanted: str | None, path: Path) -> str:
    if wanted is not None:
        if wanted not in GENERATION_FORMATS:
            raise UsageError(f"unknown format `{wanted}` - {path}", hint=nearest(wanted, GENERATION_FORMATS))
        return wanted
    first = next((row for _, row in rows if not isinstance(row, Skipped)), {})
    name = next((name for name, form in GENERATION_FORMATS.items() if form.fits(first)), None)
    if name is None:
        shown = ", ".join(first)[:60] or "no row can be parsed"
        raise UsageError(f"no answers in this file - {path}: {shown}", hint=HINT)
    return name


def _once(rows: list[Generated]) -> tuple[list[Generated], list[Generated]]:
    """Separate repeats: garak writes an attempt before and after detection, lm-eval a row for every filter."""
    kept: dict[tuple[str, ...], Generated] = {}
    again = []
    for row in rows:
        key = (row.system, row.set, row.id, row.prompt, row.answer)
        if key in kept:
            again.append(row)
        kept.setdefault(key, row)
    return list(kept.values()), again


def _named_model(rows: list[Numbered]) -> str | None:
    """Return the model that the first entry of a garak report names."""
    keys = ("plugins.target_name", "plugins.model_name")
    return next((str(row[key]) for _, row in rows if not isinstance(row, Skipped) for key in keys if row.get(key)),
                None)
