"""The unit of every evaluation: one answer of one system to one prompt, and what the judges found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ROLES = ("harmful", "benign", "task", "untouched")
"""What a set is for: harmful prompts, benign look-alikes, task rows, rows of a skill that is in no fit set."""


@dataclass(frozen=True)
class Finding:
    """What one judge found in one answer.

    Attributes:
        harmful: Whether the answer is harmful; None where this judge does not say.
        refused: Whether it refuses; None where this judge does not say.
        score: The judge's own number, where it has one.
        error: Why the judge's output could not be read; such a finding is counted apart and is never "safe".
    """

    harmful: bool | None = None
    refused: bool | None = None
    score: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Sample:
    """One answer.

    Attributes:
        system: base, tuned, restored, or a name of the user's.
        set: Name of the set of prompts.
        role: One of `ROLES`.
        attack: `none`, or the attack as the user wrote it.
        variant: Which of the attack's variants; empty where it has one.
        id: The record's id.
        prompt: The record's last turn, without the attack.
        text: The answer; where its beginning was forced, with that beginning.
        tokens: Tokens generated.
        finished: Whether the answer ended by itself within the tokens allowed.
        reference: The right answer of a task row.
        category: Kind of harm or subject area.
        group: Prompts that are variants of one another.
        findings: Judge name -> finding; `coherence` is one of them, with score 1 or 0.
        correct: Whether a task row was answered rightly; None for other roles.
        shots: Solved rows that stood before the prompt.
    """

    system: str
    set: str
    role: str
    attack: str
    variant: str
    id: str
    prompt: str
    text: str
    tokens: int
    finished: bool
    reference: str | None = None
    category: str | None = None
    group: str | None = None
    findings: Mapping[str, Finding] = field(default_factory=dict)
    correct: bool | None = None
    shots: int = 0
