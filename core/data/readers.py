"""Read prompts, `FILE[:FORMAT]`, `ID[SPLIT]@REVISION` or `builtin:NAME`, into records, counting rows not used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import nearest
from ..errors import UsageError
from .builtin import builtin_bytes
from .containers import Numbered, decode, plain_lines, raw_rows
from .formats import FORMATS, KNOWN_COLUMNS, detect
from .hub import as_json_lines, hub_set
from .records import Record, Skipped

BUILTIN = "builtin:"
MOST_SHOWN = 3  # an error is two lines
ROW_HINT = """a usable row is {"prompt": "..."}, {"messages": [...]}, a CSV row under `prompt`, or a line of text"""


@dataclass(frozen=True)
class ReadResult:
    """The rows of one file.

    Attributes:
        records: Usable rows, in the order of the file.
        rejected: (line, reason) of malformed rows.
        left_out: (line, reason) of well-formed rows that the format leaves out on purpose.
        name: The file's name without its folder, so that it may be published.
        sha256: Digest of the file's bytes, hexadecimal.
        format: Name of the format it was read as.
        places: (number among all rows of the file from 0, line) of each record.
    """

    records: tuple[Record, ...]
    rejected: tuple[tuple[int, str], ...]
    left_out: tuple[tuple[int, str], ...]
    name: str
    sha256: str
    format: str
    places: tuple[tuple[int, int], ...] = ()

    def place(self, record: Record) -> str | None:
        """Return file and line of a record, itself and not its like; None for one of another file."""
        return next((f"{self.name}, line {line}" for each, (_, line) in zip(self.records, self.places, strict=False)
                     if each is record), None)


def read_records(spec: str, *, offline: bool = False) -> ReadResult:
    """Read `FILE[:FORMAT]`, `builtin:harmful|benign|general`, or `ID[SPLIT]@REVISION[:FORMAT]` from the hub.

    A file that exists under the whole spec wins over a format suffix, and any file over the hub. Without a format it
    is detected from the columns; CSV without a header is a prompt a row, plain text a prompt a line. A file that is
    missing, empty, not UTF-8, of columns of no known format or without a usable row is a UsageError.

    Args:
        spec: What to read.
        offline: Take a data set of the hub from the cache only.

    Returns:
        At least one record, and the rows that were not used.
    """
    content, shown, name, wanted = _load(spec, offline)
    text = decode(content, shown)
    suffix = Path(name).suffix.lower()
    rows = list(plain_lines(text)) if wanted == "text" else raw_rows(text, shown, suffix, KNOWN_COLUMNS)
    chosen = wanted or _detected(rows, shown)
    return _collect(rows, chosen, shown, name, hashlib.sha256(content).hexdigest())


def file_of(spec: str) -> Path:
    """Return the file of `FILE[:FORMAT]`; raises UsageError for a format that is not known."""
    return _path_and_format(spec)[0]


def _load(spec: str, offline: bool) -> tuple[bytes, str, str, str | None]:
    if spec.startswith(BUILTIN):
        return builtin_bytes(spec.removeprefix(BUILTIN)), spec, spec, "prompt"
    path, wanted = _path_and_format(spec)
    if not path.exists() and (found := hub_set(str(path))) is not None:
        return as_json_lines(found, offline=offline), str(path), str(path), wanted
    try:
        return path.read_bytes(), str(path), path.name, wanted
    except OSError as error:
        raise UsageError(f"cannot read file - {path}: {error.strerror}", hint="give a readable FILE[:FORMAT], "
                         "or builtin:harmful, builtin:benign, builtin:general") from error


def _path_and_format(spec: str) -> tuple[Path, str | None]:
    head, colon, tail = spec.rpartition(":")
    if not colon or Path(spec).exists():
        return Path(spec), None
    if tail in FORMATS:
        return Path(head), tail
    if Path(head).exists() or hub_set(head) is not None:
        raise UsageError(f"unknown format `{tail}` - {spec}", hint=nearest(tail, FORMATS))
    return Path(spec), None


def _detected(rows: Iterable[Numbered], shown: str) -> str:
    """Name the format by the first row that parses; plain text came out with the one column `prompt`."""
    first = next((row for _, row in rows if not isinstance(row, Skipped)), None)
    if first is None:
        raise _nothing_usable(shown, [(line, row.reason) for line, row in rows if isinstance(row, Skipped)])
    name = detect(first)
    if name is None:
        raise UsageError(f"no known column - {shown}: {', '.join(first)[:60]}",
                         hint="name a column `prompt`, or give the format: " + ", ".join(FORMATS))
    return name


def _nothing_usable(shown: str, why: list[tuple[int, str]]) -> UsageError:
    lines = "; ".join(f"line {line}: {reason}" for line, reason in why[:MOST_SHOWN])
    more = f"; {len(why) - MOST_SHOWN} more" if len(why) > MOST_SHOWN else ""
    return UsageError(f"no usable row - {shown}, {lines}{more}" if why else f"no usable row - {shown}", hint=ROW_HINT)


def _collect(rows: list[Numbered], chosen: str, shown: str, name: str, sha256: str) -> ReadResult:
    read = [(line, row if isinstance(row, Skipped) else FORMATS[chosen].read(row)) for line, row in rows]
    skipped = [(line, row) for line, row in read if isinstance(row, Skipped)]
    records = tuple(row for _, row in read if isinstance(row, Record))
    if not records:
        raise _nothing_usable(shown, [(line, row.reason) for line, row in skipped])
    return ReadResult(records, tuple((line, s.reason) for line, s in skipped if not s.by_design),
                      tuple((line, s.reason) for line, s in skipped if s.by_design), name, sha256, chosen,
                      tuple((at, line) for at, (line, row) in enumerate(read) if isinstance(row, Record)))
