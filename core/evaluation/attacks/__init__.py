"""Attacks: ways of asking for what is to be refused. A row of `ATTACKS` each, in a file of its name."""

from __future__ import annotations

from collections.abc import Callable

from ...config import nearest
from ...errors import UsageError
from .attempts import ATTACKED_ROLE, NONE, Attack, Attempt, Planned, Setting, plain, plan_attempts
from .decoding import decode
from .manyshot import manyshot
from .prefill import prefill
from .suffix import suffix
from .system import system
from .templates import template

__all__ = ["ATTACKED_ROLE", "ATTACKS", "NONE", "Attack", "Attempt", "Planned", "Setting", "parse_attack",
           "parse_attacks", "plan_attempts"]


def none(value: str) -> Attack:
    """Return no attack: the records as they stand.

    Args:
        value: Empty.

    Returns:
        The attack called `none`.

    Raises:
        UsageError: A value was given.
    """
    if value:
        raise UsageError(f"`none` takes no value - --attack none:{value}", hint="give --attack none")
    return Attack(NONE, plain)


ATTACKS: dict[str, Callable[[str], Attack]] = {
    "none": none, "prefill": prefill, "template": template, "decode": decode, "manyshot": manyshot, "suffix": suffix,
    "system": system,
}
"""Attack name to (what follows the colon) -> attack."""


def parse_attack(text: str) -> Attack:
    """Return the attack that a user named, `NAME` or `NAME:VALUE`.

    Args:
        text: For example `prefill:5`.

    Returns:
        The attack; its name is the canonical text.

    Raises:
        UsageError: No attack of that name, or a value that it cannot have.
    """
    name, _, value = text.strip().partition(":")
    if name not in ATTACKS:
        raise UsageError(f"unknown attack - --attack {text}", hint=nearest(name, ATTACKS))
    return ATTACKS[name](value)


def parse_attacks(texts: tuple[str, ...]) -> tuple[Attack, ...]:
    """Return `none` and then the attacks that a user named, each once.

    Args:
        texts: As the user gave them.

    Returns:
        The attacks, in that order.

    Raises:
        UsageError: Two attacks of one name that were made from different files.
    """
    found: dict[str, Attack] = {NONE: none("")}
    for text in texts:
        attack = parse_attack(text)
        if found.setdefault(attack.name, attack).sha256 != attack.sha256:
            raise UsageError(f"two attacks of one name - {attack.name}", hint="give one of the files another name")
    return tuple(found.values())
