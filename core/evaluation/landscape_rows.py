"""The rows that two models are compared on: prompts with answers, and the base's own refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.session import Session
from ..config import CompareConfig
from ..data.batches import Batch
from ..data.readers import ReadResult, read_records
from ..data.records import Record
from ..data.selection import sample
from ..geometry.similarity import need_rows
from ..geometry.slices import Rows
from .room import parts_with_room
from .systems import Answer, Examiner

Warnings = tuple[tuple[str, str], ...]
BUILTIN = {"harmful": "builtin:harmful", "benign": "builtin:benign", "task": "builtin:general"}
"""Sets that stand in for files that are not given."""


@dataclass(frozen=True)
class ComparedSets:
    """What was read.

    Attributes:
        records: Set name -> rows.
        read: Set name -> the files they came from.
        warnings: What the user should know.
    """

    records: Mapping[str, tuple[Record, ...]]
    read: Mapping[str, tuple[ReadResult, ...]]
    warnings: Warnings


def read_sets(config: CompareConfig) -> ComparedSets:
    """Read the sets of a comparison and take a sample of each.

    Args:
        config: Files, `rows` and seed.

    Returns:
        The sets. `UsageError` says which file has no usable row, or which set is too small.
    """
    read = {name: tuple(read_records(spec, offline=config.offline) for spec in getattr(config, name) or (builtin,))
            for name, builtin in BUILTIN.items()}
    records = {name: sample([r for result in results for r in result.records], config.rows, config.seed)
               for name, results in read.items()}
    need_rows({name: len(found) for name, found in records.items()})
    warnings = [("W_ROWS_REJECTED", f"{result.name}: {len(result.rejected)} rows not used, the first in line "
                 f"{result.rejected[0][0]}: {result.rejected[0][1]}")
                for results in read.values() for result in results if result.rejected]
    if not config.task:
        warnings.append(("W_NO_TASK_ROWS", "no --task file: general requests with the tuned model's own answers stand "
                         "for the task"))
    return ComparedSets(records, read, tuple(warnings))


@dataclass(frozen=True)
class ComparedRows:
    """The same rows in batches.

    Attributes:
        rows: Of all sets.
        safe: Harmful prompts with the base's own refusals; empty where it refuses too few.
        counts: Rows of each set, and what was left out.
        warnings: What the user should know.
    """

    rows: Rows
    safe: Sequence[Batch]
    counts: Mapping[str, int]
    warnings: Warnings


def answered_rows(session: Session, examiner: Examiner, sets: ComparedSets) -> ComparedRows:
    """Answer what has no answer by the tuned model, and harmful prompts by the base, too.

    A harmful row is a given answer or a harmful answer of the tuned model's; prompts that it refuses are left out and
    counted.

    Args:
        session: The pair; the base is in memory while it answers.
        examiner: How models are asked.
        sets: The rows.

    Returns:
        Rows in batches; prompts without room for an answer are left out, as a warning says. `UsageError` says which set
        is too small, and how many rows are needed.
    """
    fitting, told = parts_with_room(sets.records, examiner.setting())
    open_rows = {name: [r for r in records if not r.answer] for name, records in fitting.items()}
    asked = examiner.ask_sets(session.adapter().model, open_rows, "answers of the tuned model")
    found = {name: _pairs(examiner, records, asked[name], name == "harmful")
             for name, records in fitting.items()}
    need_rows({name: len(pairs) for name, pairs in found.items()})
    with session.base() as model:
        refusals = [a for a in examiner.ask(model, fitting["harmful"], "answers of the base model")
                    if a.verdict.refused]
    left_out = len(fitting["harmful"]) - len(found["harmful"])
    warnings = [("W_ALREADY_SAFE", f"{left_out} harmful rows left out: the tuned model gives no harmful answer to "
                 "them")] if left_out else []
    warnings += told
    enough = len(refusals) >= 2
    if not enough:
        warnings.append(("W_BASE_COMPLIES", "the base refuses too few harmful prompts: no safety gradient"))
    safe = examiner.batches([(a.record, examiner.answer_tokens(a)) for a in refusals]) if enough else ()
    counts = {**{f"{name}_rows": len(pairs) for name, pairs in found.items()},
              "safe_rows": len(refusals), "harmful_rows_left_out": left_out}
    return ComparedRows(_together(examiner, found), safe, counts, tuple(warnings))


def _pairs(examiner: Examiner, records: Sequence[Record], asked: Sequence[Answer],
           harmful: bool) -> list[tuple[Record, Sequence[int]]]:
    """Given answers, then those asked for: only harmful ones to harmful prompts, only ones with words to any."""
    given = [(r, examiner.chat.answer_ids(r, r.answer)) for r in records if r.answer]
    kept = [a for a in asked if a.generation.tokens and (a.verdict.harmful or not harmful)]
    return given + [(a.record, examiner.answer_tokens(a)) for a in kept]


def _together(examiner: Examiner, found: Mapping[str, Sequence[tuple[Record, Any]]]) -> Rows:
    ranges, start = {}, 0
    for name, pairs in found.items():
        ranges[name] = range(start, start + len(pairs))
        start += len(pairs)
    return Rows(examiner.batches([pair for pairs in found.values() for pair in pairs]), ranges)
