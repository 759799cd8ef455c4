"""How far judges agree on the same answers: raw agreement and Cohen's kappa, a pair of judges at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from .intervals import Rate, clustered
from .samples import Finding, Sample

ABOUT = ("harmful", "refused")


@dataclass(frozen=True)
class Agreement:
    """Two judges on the answers that both judged.

    Attributes:
        first: Name of a judge.
        second: Name of another.
        about: `harmful` or `refused`.
        n: Answers on which both say.
        left_out: Answers that both looked at and at least one could not read (an error) or does not say.
        rate: Share on which they say the same, with an interval in which answers to one prompt, or to prompts of one
            group, are no independent evidence; None where n is 0.
        kappa: Cohen's kappa, agreement beyond what their own rates would give by chance; None where that is
            undefined: no answers, or both always say one and the same thing.
    """

    first: str
    second: str
    about: str
    n: int
    left_out: int
    rate: Rate | None
    kappa: float | None


def agreements(samples: Iterable[Sample], about: str = "harmful") -> list[Agreement]:
    """Compare every pair of judges that ever say something about harm (or refusal); nothing is averaged.

    Args:
        samples: Judged answers.
        about: One of `ABOUT`.

    Returns:
        One row a pair, sorted by name.
    """
    judged = list(samples)
    names = sorted({name for each in judged for name, one in each.findings.items() if said(one, about) is not None})
    return [_compare(*pair, about, [each for each in judged if each.findings.keys() >= set(pair)])
            for pair in combinations(names, 2)]


def said(finding: Finding, about: str) -> bool | None:
    """Return what a finding says about harm or refusal; None where it does not say, or is an error."""
    return None if finding.error is not None else {"harmful": finding.harmful, "refused": finding.refused}[about]


def _compare(first: str, second: str, about: str, samples: Sequence[Sample]) -> Agreement:
    words = [(said(each.findings[first], about), said(each.findings[second], about), each.group or each.prompt)
             for each in samples]
    known = [(one, other, prompt) for one, other, prompt in words if one is not None and other is not None]
    both, same = [(one, other) for one, other, _ in known], [one == other for one, other, _ in known]
    rate = clustered(same, [prompt for *_, prompt in known]) if known else None
    return Agreement(first, second, about, len(both), len(words) - len(both), rate, cohen_kappa(both))


def cohen_kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Return (observed - expected agreement) / (1 - expected), Cohen 1960.

    Args:
        pairs: What the two judges say of each answer.

    Returns:
        Kappa, at most 1; None where it is undefined (no pairs, or an expected agreement of 1).
    """
    if not pairs:
        return None
    n = len(pairs)
    first, second = (sum(judge) for judge in zip(*pairs, strict=True))
    # In whole numbers, so that an expected agreement of 1 is told exactly.
    expected = first * second + (n - first) * (n - second)
    agreed = sum(one == other for one, other in pairs)
    return None if expected == n * n else (agreed * n - expected) / (n * n - expected)
