"""Bytes to numbered rows: JSON arrays, JSON lines, CSV with or without a header, and plain lines.

Nothing here knows what a column means. Keys come out in lower case, because published files spell the same
column `goal` and `Goal`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import shlex
from collections.abc import Iterator, Mapping

from ..errors import UsageError
from .records import Skipped

Row = Mapping[str, object]
Numbered = tuple[int, Row | Skipped]

CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
DELIMITERS = (",", ";", "\t")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
BINARY = (
    (b"\x1f\x8b", "gzip", "unpack it: gunzip -k {}"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it: unzip {}; export a spreadsheet to CSV"),
    (b"PAR1", "Parquet", "export it to JSON lines, with pandas: "
     "read_parquet(FILE).to_json(FILE.jsonl, orient='records', lines=True)"),
    (b"", "binary, with NUL bytes", "export it to UTF-8 text: JSON lines, CSV, or a prompt a line"),
)
"""How a file that is no text begins, what it is, and the way out; the last is of any that holds NUL."""
MOST_SHOWN = 5  # line numbers; an error is two lines
LONGEST_CELL = 2**31 - 1  # csv refuses cells above 128 KiB, which model output exceeds; a C long must hold it


def decode(content: bytes, name: str) -> str:
    """Return the text of a UTF-8 file, without its byte order mark.

    Raises:
        UsageError: The file is empty or no text, or lines are not UTF-8 (the first are named, all are counted).
    """
    _refuse_binary(content, name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where, hint = _not_utf8(content, name)
        raise UsageError(f"not UTF-8 - {name}{where}", hint=hint) from error
    if not text.strip():
        raise UsageError(f"empty file - {name}", hint="give a file with at least one row")
    return text


def _refuse_binary(content: bytes, name: str) -> None:
    """Refuse what no encoding makes text of; UTF-16 holds NUL, too, but says what it is."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" not in content and _is_utf8(content):
        return
    for start, kind, hint in BINARY:
        if content.startswith(start) and (start or b"\0" in content):
            raise UsageError(f"not text but {kind} - {name}", hint=hint.format(shlex.quote(name)))


def _not_utf8(content: bytes, name: str) -> tuple[str, str]:
    """Return which lines are at fault, but not in UTF-16, which ends lines in other bytes; and the way out."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ": it begins as UTF-16 does", f"convert it: iconv -f utf-16 -t utf-8 {shlex.quote(name)}"
    lines = content.split(b"\n")
    bad = [number for number, line in enumerate(lines, start=1) if not _is_utf8(line)]
    shown = ", ".join(map(str, bad[:MOST_SHOWN])) + (", ..." if len(bad) > MOST_SHOWN else "")
    mixed = any(_is_utf8(line) and not line.isascii() for line in lines)
    return (f", line {shown}" if len(bad) == 1 else f", {len(bad)} lines: {shown}",
            "mend these lines alone: others hold UTF-8 letters" if mixed
            else f"convert it: iconv -f latin1 -t utf-8 {shlex.quote(name)}")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def raw_rows(text: str, name: str, suffix: str, known: frozenset[str]) -> list[Numbered]:
    """Return (line number, row) of every row, by what the file holds and then by its suffix.

    A JSON array or CSV that cannot be parsed, or CSV columns none of which is known, is a UsageError.

    Args:
        text: The whole file.
        name: What errors call it.
        suffix: Its lower-case suffix with the dot, or "".
        known: Column names that make a first CSV row a header.

    Returns:
        One pair a row, in the order of the file; a `Skipped` where the row cannot be parsed.
    """
    if suffix in JSON_SUFFIXES or _looks_like_json(text):
        return list(_json_array(text, name) if text.lstrip().startswith("[") else _json_lines(text))
    usual = CSV_SUFFIXES.get(suffix, ",")
    delimiter = None if suffix == ".txt" else _header_delimiter(text, usual, known)
    if suffix in CSV_SUFFIXES or delimiter is not None:
        return list(_csv_rows(text, name, delimiter or usual, known))
    return list(plain_lines(text))


def plain_lines(text: str) -> Iterator[Numbered]:
    """Yield every line that is not blank as a row with the one column `prompt`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _looks_like_json(text: str) -> bool:
    first = text.lstrip().split("\n", 1)[0]
    if first.rstrip() == "[" or first.startswith(("[{", '["', "[ {")):
        return True
    return first.startswith("{") and isinstance(_parsed(first), Mapping)


def _json_lines(text: str) -> Iterator[Numbered]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> Row | Skipped:
    try:
        return _as_row(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return Skipped(f"not JSON ({getattr(error, 'msg', 'nested too deeply')})")


def _as_row(value: object) -> Row | Skipped:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, Mapping):
        return Skipped("neither an object nor a text")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Skipped("half of a surrogate pair, which is no text")
    return {str(key).strip().lower(): cell for key, cell in value.items()}


def _json_array(text: str, name: str) -> Iterator[Numbered]:
    """Yield the elements of one array with the line each begins on, which json.loads does not tell."""
    decoder, blank = json.JSONDecoder(), " \t\r\n,"
    position = text.index("[") + 1
    while True:
        while text[position:position + 1] and text[position] in blank:
            position += 1
        if text[position:position + 1] == "]":
            return
        line = text.count("\n", 0, position) + 1
        try:
            value, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"not a JSON array - {name}, line {line}",
                             hint="mend that element, or write one object a line (.jsonl)") from error
        yield line, _as_row(value)


def _header_delimiter(text: str, usual: str, known: frozenset[str]) -> str | None:
    """Return what stands between the names of a header: the usual, or another where that leaves it one cell; or None.

    Spreadsheets of many languages write CSV with semicolons.
    """
    csv.field_size_limit(LONGEST_CELL)
    first = next(io.StringIO(text.lstrip(), newline=""))
    names = {delimiter: _names(next(csv.reader([first], delimiter=delimiter))) for delimiter in (usual, *DELIMITERS)}
    tried = names if len(names[usual]) == 1 else (usual,)
    return next((delimiter for delimiter in tried if not known.isdisjoint(names[delimiter])), None)


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _csv_rows(text: str, name: str, delimiter: str, known: frozenset[str]) -> Iterator[Numbered]:
    cells = [(line, row) for line, row in _csv_cells(text, name, delimiter) if any(map(str.strip, row))]
    header = _names(cells[0][1])
    if not known.isdisjoint(header):
        return (_under_header(line, row, header) for line, row in cells[1:])
    if all(len(row) == 1 for _, row in cells):
        return ((line, {"prompt": row[0]}) for line, row in cells)
    shown = ", ".join(header)[:60]
    raise UsageError(f"no known column - {name}: {shown}",
                     hint=f"name one column `prompt`, or read it a line a prompt: {name}:text")


def _csv_cells(text: str, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST_CELL)
    # strict, because a quote that never closes would otherwise swallow the rest of the file without a word
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"not CSV - {name}, line {line}: {error}",
                             hint="quote cells that hold quotes or line ends") from error
        if row is None:
            return
        yield line, row
        line = reader.line_num + 1


def _under_header(line: int, row: list[str], header: list[str]) -> Numbered:
    if len(row) != len(header):
        return line, Skipped(f"{len(row)} cells under a header of {len(header)}")
    return line, dict(zip(header, row, strict=True))
