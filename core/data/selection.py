"""Which rows a restoration fits and which it is measured on: read, split by seed, sampled, counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..config import RestoreConfig
from ..errors import UsageError
from .readers import ReadResult, read_records
from .records import Record, groups_of
from .split import Split, split

Warnings = tuple[tuple[str, str], ...]
"""(code, message) pairs for the report."""

DEFAULTS = {"harmful": ("builtin:harmful",), "safe": (), "benign": ("builtin:benign",), "task": (),
            "general": ("builtin:general",), "untouched": ()}
"""Set -> what stands for it where the user gives no file; `general` is never given."""


@dataclass(frozen=True)
class Source:
    """A set as the report names it."""

    name: str
    files: tuple[str, ...]
    sha256: str
    fit_rows: int
    held_out_rows: int
    rejected_rows: int
    left_out_rows: int


@dataclass(frozen=True)
class Selection:
    """Every row of a run.

    Attributes:
        harmful: Harmful prompts to fit.
        retain: Rows on which the tuned model is to stay as it is.
        held_out: Set name (harmful, benign, task, untouched) -> rows that results are measured on; maybe none.
        safe_answers: Harmful prompt -> the safe answer the user gave for it.
        sources: What was read.
        held_out_categories: Harm categories that are in no fit row.
        warnings: What the user should know.
    """

    harmful: tuple[Record, ...]
    retain: tuple[Record, ...]
    held_out: Mapping[str, tuple[Record, ...]]
    safe_answers: Mapping[str, str]
    sources: tuple[Source, ...]
    held_out_categories: tuple[str, ...]
    warnings: Warnings


@dataclass(frozen=True)
class FoundRows:
    """The rows of the tuned model's training file, parted by what training on them did.

    Attributes:
        result: The file.
        harmful: Rows that cost safety and whose prompt the base refuses.
        others: Rows that did not cost safety.
        answered: How many cost safety although the base answers their prompt: influence alone makes no row harmful,
            so they are in neither part.
    """

    result: ReadResult
    harmful: tuple[Record, ...]
    others: tuple[Record, ...]
    answered: int


def sample(records: Sequence[Record], count: int, seed: int) -> tuple[Record, ...]:
    """Return at most `count` records in their given order, chosen by a hash of the seed and the id.

    A second row of one group (another wording of the same subject) is taken only when every group has one: few rows
    reach furthest when they are not alike.
    """
    order = sorted(records, key=lambda r: hashlib.sha256(f"{seed}\n{r.id}".encode()).hexdigest())
    taken: Counter[str] = Counter()
    ranked = []
    for record, group in zip(order, groups_of(order), strict=True):
        ranked.append((taken[group], record))
        taken[group] += 1
    chosen = {id(record) for _, record in sorted(ranked, key=lambda pair: pair[0])[:count]}
    return tuple(record for record in records if id(record) in chosen)


def limited(records: Sequence[Record], limit: float | None, seed: int) -> tuple[Record, ...]:
    """Return the records, or a sample of `limit` of them; below 1 it is a fraction, of which one is the least."""
    if limit is None:
        return tuple(records)
    return sample(records, int(limit) if limit >= 1 else max(1, round(limit * len(records))), seed)


def _read(config: RestoreConfig) -> dict[str, list[ReadResult]]:
    """Read the files of every set, or the built-in one where a set has one."""
    return {name: [read_records(spec, offline=config.offline) for spec in getattr(config, name, ()) or default]
            for name, default in DEFAULTS.items()}


def _records(results: Sequence[ReadResult]) -> list[Record]:
    return [record for result in results for record in result.records]


def select(config: RestoreConfig, found: FoundRows | None = None) -> Selection:
    """Read all sets and decide which rows fit and which measure.

    The fit part of `harmful` never holds a category, subject or row of its held-out part. A quarter of the retain rows
    is task rows where there are any; of the rest four fifths are benign look-alikes, where over-refusal shows first and
    most of the held-out drift lies, and one fifth general requests.

    Args:
        config: Files, sizes and seed.
        found: Rows of the training file: the harmful ones are fitted beside those of `harmful`, apart from what is held
            out there; the others are task rows.

    Returns:
        The rows.

    Raises:
        UsageError: A task row without an answer, or a set with no usable row (see `read_records`, `split`).
    """
    read = _read(config)
    rows = {name: list(limited(_records(results), config.limit, config.seed)) for name, results in read.items()}
    rows["task"] += limited(found.others, config.limit, config.seed) if found else ()
    for name in ("safe", "task", "untouched"):
        _need_answers(name, rows[name], read[name])
    safe_answers = {record.prompt: record.answer or "" for record in rows["safe"]}
    harmful = _with_safe_prompts(rows["harmful"], rows["safe"])
    # A file of few categories keeps most of them for fitting.
    spare = len({record.category for record in harmful}) // 4
    parts = _split("harmful", harmful, config.seed, min(config.hold_out_categories, spare))
    benign = _split("benign", rows["benign"], config.seed)
    task = _split("task", rows["task"], config.seed) if rows["task"] else Split((), ())
    retain = _retain(task.fit, benign.fit, rows["general"], 3 * config.fit_rows // 2, config.seed)
    held_out = {"harmful": parts.held_out, "benign": benign.held_out, "task": task.held_out,
                "untouched": rows["untouched"]}
    held_out = {name: sample(part, config.held_out_rows, config.seed) for name, part in held_out.items()}
    blamed = _not_held_out(found.harmful, parts) if found else ()
    fit = sample((*parts.fit, *blamed), config.fit_rows, config.seed)
    counts = {"harmful": fit, "safe": [r for r in fit if r.prompt in safe_answers],
              "task": _among(retain, task.fit), "benign": _among(retain, benign.fit),
              "general": _among(retain, rows["general"])}
    sources = tuple(_source(name, results, len(counts.get(name, ())), len(held_out.get(name, ())))
                    for name, results in read.items() if results)
    if found is not None:
        used = len(_among((*fit, *retain), (*blamed, *found.others)))
        sources += _source("train", [found.result], used, len(_among(held_out["task"], found.others))),
    return Selection(fit, retain, held_out, safe_answers, sources, parts.categories, _warnings(config, read, found))


def _not_held_out(records: Sequence[Record], parts: Split) -> list[Record]:
    """Leave out rows that ask what a held-out row asks, or of its subject, or of a category held out."""
    prompts = {record.prompt for record in parts.held_out}
    groups = {record.group for record in parts.held_out if record.group}
    return [record for record in records if record.prompt not in prompts and record.group not in groups
            and record.category not in parts.categories]


def _need_answers(name: str, rows: Sequence[Record], results: Sequence[ReadResult]) -> None:
    missing = next((r for r in rows if not r.answer), None)
    if missing is not None:
        where = next(filter(None, (result.place(missing) for result in results)), f"row {missing.id}")
        raise UsageError(f"row without an answer - --{name}: {where}",
                         hint=f"every row of --{name} needs its answer (`messages` ending with the assistant)")


def _with_safe_prompts(harmful: list[Record], safe: list[Record]) -> list[Record]:
    """Add prompts that only the file of safe answers has; their harmful answers are the tuned model's."""
    known = {record.prompt for record in harmful}
    return harmful + [replace(record, answer=None) for record in safe if record.prompt not in known]


def _split(name: str, records: Sequence[Record], seed: int, categories: int = 0) -> Split:
    """Split a set; a refusal says which one."""
    try:
        return split(records, seed=seed, hold_out_categories=categories)
    except UsageError as error:
        raise UsageError(f"{error.what} - --{name}", hint=error.hint) from error


def _retain(task: Sequence[Record], benign: Sequence[Record], general: Sequence[Record], count: int,
            seed: int) -> tuple[Record, ...]:
    from_task = sample(task, count // 4, seed)
    from_benign = sample(benign, 4 * (count - len(from_task)) // 5, seed)
    return (*from_task, *from_benign, *sample(general, count - len(from_task) - len(from_benign), seed))


def _among(rows: Sequence[Record], of: Sequence[Record]) -> list[Record]:
    members = {id(record) for record in of}
    return [record for record in rows if id(record) in members]


def _source(name: str, results: Sequence[ReadResult], fit: int, held_out: int) -> Source:
    digest = results[0].sha256 if len(results) == 1 else hashlib.sha256(
        "".join(result.sha256 for result in results).encode()).hexdigest()
    return Source(name, tuple(result.name for result in results), digest, fit, held_out,
                  sum(len(result.rejected) for result in results), sum(len(result.left_out) for result in results))


def _warnings(config: RestoreConfig, read: Mapping[str, list[ReadResult]], rows: FoundRows | None) -> Warnings:
    found = [("W_ROWS_REJECTED", f"{result.name}: {len(result.rejected)} rows not used, the first in line "
              f"{result.rejected[0][0]}: {result.rejected[0][1]}")
             for results in read.values() for result in results if result.rejected]
    if rows is not None:
        found.append(("W_FOUND_ROWS", f"{rows.result.name}: {len(rows.harmful)} rows that cost safety are taken for "
                      f"harmful, {len(rows.others)} others for the task; {rows.answered} left out, since the base "
                      "answers them"))
    if not config.task and rows is None:
        found.append(("W_NO_TASK_ROWS", "no --task file: task accuracy is not measured and the task is held only "
                      "through benign and general prompts"))
    return tuple(found)
