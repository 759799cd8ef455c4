"""Prompts that leave no room for an answer in the model's context: not asked, never cut, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..checkpoint.quiet import quiet
from ..data.records import Record
from ..data.selection import Selection
from ..errors import UsageError
from .attacks import ATTACKED_ROLE, NONE, Attack, Setting
from .attacks.attempts import plain, plan_attempts


def with_room(rows: Selection, setting: Setting, attacks: Sequence[Attack] = ()) -> Selection:
    """Leave out the rows of a run whose prompts leave no room for an answer; a warning counts them.

    Args:
        rows: Fit and held-out rows.
        setting: How they are asked.
        attacks: Of a gate; prompts that only one of these makes too long are counted in a warning of their own.

    Returns:
        The rows that can be asked without an attack.

    Raises:
        UsageError: Of the harmful fit rows, the retain rows or a held-out set none is left.
    """
    left, told = parts_with_room({"harmful rows to fit": rows.harmful, "retain rows": rows.retain,
                                  **{f"held-out {name} rows": part for name, part in rows.held_out.items()}}, setting)
    harmful, retain, *held_out = left.values()
    found = dict(zip(rows.held_out, held_out, strict=True))
    with quiet():
        lost = [(attack.name, len(plan_attempts(attack, found.get(ATTACKED_ROLE, ()), setting).too_long))
                for attack in attacks]
    told += tuple(("W_TOO_LONG", f"{count} prompts of attack {name} leave no room for an answer and were not asked")
                  for name, count in lost if count)
    return replace(rows, harmful=harmful, retain=retain, held_out=found, warnings=(*rows.warnings, *told))


def parts_with_room(parts: Mapping[str, Sequence[Record]],
                    setting: Setting) -> tuple[dict[str, tuple[Record, ...]], tuple[tuple[str, str], ...]]:
    """Leave out of each part the rows whose prompts leave no room for an answer.

    Args:
        parts: What a part is called -> its rows.
        setting: How they are asked.

    Returns:
        The rows that can be asked, and the warning that counts the others, where there are any.

    Raises:
        UsageError: Of a part none is left.
    """
    left = {name: _with_room(part, setting) for name, part in parts.items()}
    lost = {name: len(part) - len(left[name]) for name, part in parts.items() if len(part) > len(left[name])}
    for name, count in lost.items():
        need_room(name, count, len(left[name]), setting)
    told = (("W_TOO_LONG", f"{sum(lost.values())} prompts leave no room for an answer and were not asked: "
             + ", ".join(f"{count} {name}" for name, count in lost.items())),) if lost else ()
    return left, told


def need_room(name: str, lost: int, left: int, setting: Setting) -> None:
    """Refuse a set of which no prompt can be asked.

    Args:
        name: Of the set.
        lost: Prompts that leave no room for an answer.
        left: Those that do.
        setting: How they are asked.

    Raises:
        UsageError: Some are lost and none is left.
    """
    if lost and not left:
        raise UsageError(f"no prompt leaves room for an answer - {name}: each of {lost} takes more than "
                         f"{setting.context - setting.max_new_tokens} of the {setting.context} tokens of the context",
                         hint="give shorter prompts, or lower --max-new-tokens")


def _with_room(records: Sequence[Record], setting: Setting) -> tuple[Record, ...]:
    with quiet():  # transformers warns of long prompts, which are counted
        return tuple(record for record, _ in plan_attempts(Attack(NONE, plain), records, setting).pairs)
