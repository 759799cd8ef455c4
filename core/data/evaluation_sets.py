"""The sets of an evaluation: named, read, told apart by what they are for, and sampled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import EvalConfig
from ..errors import UsageError
from .readers import ReadResult, read_records
from .records import Record, conversation_digest
from .selection import limited

FLAGS = ("harmful", "benign", "task", "untouched")
BUILTIN = {"harmful": "builtin:harmful", "benign": "builtin:benign"}
"""Sets that stand in where no set at all is given."""

FORMAT_ROLES = {"gsm8k": "task", "choice": "task", "alpaca": "task", "xstest-safe": "benign"}
"""Format -> what `--set` takes its rows for; others are `harmful`, a chat file whose rows all have answers `task`."""

ANSWERED_ARE_TASK = ("chat", "sharegpt")
LABELS = {"safe": "benign", "unsafe": "harmful"}
"""Labels of XSTest rows -> what they are for; such a file becomes a set of each."""

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)")


@dataclass(frozen=True)
class EvaluationSet:
    """Prompts of one purpose.

    Attributes:
        name: As rules and results call it.
        role: harmful, benign, task or untouched.
        records: What is asked.
        file: Name of the file, without its folder.
        sha256: Of the file.
        rejected: (line, reason) of malformed rows.
        left_out: Rows that the format leaves out on purpose.
    """

    name: str
    role: str
    records: tuple[Record, ...]
    file: str
    sha256: str
    rejected: tuple[tuple[int, str], ...]
    left_out: int


def read_sets(config: EvalConfig) -> tuple[EvaluationSet, ...]:
    """Read every set of an evaluation.

    Without any set the built-in harmful and benign prompts are taken. A file without a name is called by its flag, or
    by its stem where the flag is given more than once.

    Args:
        config: Files, `limit` and seed.

    Returns:
        At least one set; each has a row.

    Raises:
        UsageError: A file that gives no row (see `read_records`), two sets of one name, a `--set` without a name, or
            a task row without an answer.
    """
    given = [(flag, spec) for flag in (*FLAGS, "set") for spec in getattr(config, flag)]
    found = [each for flag, spec in given or list(BUILTIN.items())
             for each in _read(flag, spec if given else BUILTIN[flag], len(getattr(config, flag)) > 1, config.offline)]
    twice = next((name for name, count in Counter(each.name for each in found).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"two sets of one name - {twice}", hint=f"name one of them: NAME=FILE, such as {twice}-2=FILE")
    return tuple(_limited(each, config) for each in found)


def _read(flag: str, spec: str, many: bool, offline: bool) -> Iterator[EvaluationSet]:
    match = None if Path(spec).exists() else _NAMED.fullmatch(spec)
    name, file = match.groups() if match else (None, spec)
    if flag == "set" and name is None:
        raise UsageError(f"a set without a name - --set {spec}", hint=f"write --set NAME={spec}")
    result = read_records(file, offline=offline)
    name = name or (Path(result.name).stem if many else flag)
    if flag != "set":
        yield _set(name, flag, result.records, result)
        return
    parts: dict[str, list[Record]] = {}
    for record in result.records:
        parts.setdefault(_role(record, result), []).append(record)
    for role, records in parts.items():
        yield _set(name if len(parts) == 1 else f"{name}-{role}", role, records, result)


def _role(record: Record, result: ReadResult) -> str:
    """What `--set` takes a row for; a chat file is a task file when all its rows have answers."""
    if result.format == "xstest":
        return LABELS.get(str(record.meta.get("label")), "harmful")
    if result.format in ANSWERED_ARE_TASK and all(each.answer for each in result.records):
        return "task"
    return FORMAT_ROLES.get(result.format, "harmful")


def _set(name: str, role: str, records: Sequence[Record], result: ReadResult) -> EvaluationSet:
    _need_answers(name, role, records, result)
    return EvaluationSet(name, role, tuple(_distinct(records)), result.name, result.sha256, result.rejected,
                         len(result.left_out))


def _distinct(records: Iterable[Record]) -> Iterator[Record]:
    """Leave out rows that are there already (asked twice they would count twice), and give each its own id."""
    seen, ids = set(), set()
    for record in records:
        if (record.id, record.messages) not in seen:
            own = record.id if record.id not in ids else f"{record.id}#{conversation_digest(record.messages)[:8]}"
            yield record if own == record.id else replace(record, id=own)
            ids.add(own)
            seen.add((record.id, record.messages))


def _need_answers(name: str, role: str, records: Sequence[Record], result: ReadResult) -> None:
    if role not in ("task", "untouched"):
        return
    missing = next((record for record in records if not record.answer and "choices" not in record.meta), None)
    if missing is not None:
        raise UsageError(f"row without an answer - set {name}: {result.place(missing)}",
                         hint="every row of a task set needs its answer")


def _limited(each: EvaluationSet, config: EvalConfig) -> EvaluationSet:
    return replace(each, records=limited(each.records, config.limit, config.seed))
