"""Fit and held-out parts of a set, decided by a hash of seed and row and never by the order of the file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import nearest
from ..errors import UsageError
from .records import Record, conversation_digest


@dataclass(frozen=True)
class Split:
    """Two parts of one set, neither empty, each in the order of the set.

    Attributes:
        fit: Rows that drive the update.
        held_out: Rows that results are measured on.
        categories: Categories held out whole.
        by_group: Whether groups were kept together; False where the set has fewer than two.
    """

    fit: tuple[Record, ...]
    held_out: tuple[Record, ...]
    categories: tuple[str, ...] = ()
    by_group: bool = True


def split(records: Sequence[Record], *, seed: int, held_out_fraction: float = 0.33,
          hold_out_categories: int | Sequence[str] = 0, by_group: bool = True) -> Split:
    """Split a set by seed, optionally holding out whole categories.

    Rows with the same conversation, and with `by_group` rows of the same group, fall on one side. Of the rows
    outside the held-out categories the smallest number of groups with at least `held_out_fraction` of them is
    held out as well. An unknown category, or a set too small to fill both parts, is a UsageError too.

    Args:
        records: The set.
        seed: Another seed gives another split.
        held_out_fraction: In (0, 1).
        hold_out_categories: Names, or how many to choose by seed (one category always stays in the fit part).
        by_group: Keep the rows of a group together.

    Returns:
        The two parts.

    Raises:
        UsageError: A fraction outside (0, 1).
    """
    if not 0 < held_out_fraction < 1:
        raise UsageError(f"held-out fraction must lie between 0 and 1 - {held_out_fraction}",
                         hint="0.33 is usual")
    categories = _chosen_categories(records, seed, hold_out_categories)
    rest = [record for record in records if record.category not in categories]
    grouped = by_group and len({_unit(record, by_group=True) for record in rest}) > 1
    held = _held_units(rest, seed, held_out_fraction, grouped)
    out = {id(r) for r in records if r.category in categories or _unit(r, by_group=grouped) in held}
    return Split(tuple(r for r in records if id(r) not in out), tuple(r for r in records if id(r) in out),
                 tuple(sorted(categories)), grouped)


def _hashed(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()


def _unit(record: Record, *, by_group: bool) -> str:
    """Name what may not be split: the group, else the conversation (so duplicates never leak across)."""
    if by_group and record.group is not None:
        return f"group {record.group}"
    return f"row {conversation_digest(record.messages)}"


def _chosen_categories(records: Sequence[Record], seed: int, wanted: int | Sequence[str]) -> frozenset[str]:
    names = {record.category for record in records if record.category is not None}
    if isinstance(wanted, int):
        spare = len(names) - all(record.category is not None for record in records)
        return frozenset(sorted(names, key=lambda name: _hashed(seed, name))[:max(0, min(wanted, spare))])
    for name in wanted:
        if name not in names:
            raise UsageError(f"unknown category - {name}", hint=nearest(name, names))
    return frozenset(wanted)


def _held_units(records: Sequence[Record], seed: int, fraction: float, grouped: bool) -> frozenset[str]:
    counts: dict[str, int] = {}
    for record in records:
        unit = _unit(record, by_group=grouped)
        counts[unit] = counts.get(unit, 0) + 1
    order = sorted(counts, key=lambda unit: _hashed(seed, unit))
    if len(order) < 2:
        raise UsageError(f"too few rows to split - {len(records)} left, {len(order)} of them different",
                         hint="give at least two different prompts, or hold out fewer categories")
    held, rows = [], 0
    while rows < math.ceil(fraction * len(records)) and len(held) < len(order) - 1:
        held.append(order[len(held)])
        rows += counts[held[-1]]
    return frozenset(held)
