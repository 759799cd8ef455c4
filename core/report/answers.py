"""Some held-out answers side by side, for the page of a report: rates say how often, only reading says what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..evaluation.systems import Answer
from .samples_file import HIDDEN, masked

SYSTEMS = ("base", "tuned", "restored")
ROWS_OF_A_SET = 4
Shown = dict[str, str]
"""`set`, `prompt`, and the answer of each of `SYSTEMS`."""


def shown_answers(answers: Mapping[str, Mapping[str, Sequence[Answer]]], redact: str) -> list[Shown]:
    """Return the first rows of each held-out set with every system's answer.

    Args:
        answers: System -> set -> answers, the same records in the same order for every system.
        redact: A key of `HIDDEN`. A masked text is its length and a digest: equal answers stay equal.

    Returns:
        The rows, sets in the order of the base's.
    """
    return [_row(name, [answers[system][name][i] for system in SYSTEMS], HIDDEN[redact](name))
            for name, part in answers["base"].items() for i in range(min(ROWS_OF_A_SET, len(part)))]


def _row(name: str, given: Sequence[Answer], hidden: Sequence[str]) -> Shown:
    prompt, texts = given[0].record.prompt, [answer.text for answer in given]
    return {"set": name, "prompt": masked(prompt) if "prompt" in hidden else prompt,
            **dict(zip(SYSTEMS, map(masked, texts) if "text" in hidden else texts, strict=True))}
