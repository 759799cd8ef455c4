"""What the samples say about a rule: the estimate, and the end of the 95% interval that the rule limits.

Where a judge could not tell, the estimate leaves the prompt out and the bound takes it for the worse outcome. Where
prompts come in groups, intervals are those of n by the design effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scipy import special

from ..intervals import wilson
from .measure import both_known, effect_of
from .metrics import is_rate
from .paired import paired_difference, samples_needed

Z = float(special.ndtri(0.975))
Hits = Mapping[str, int | None]


@dataclass(frozen=True)
class Evidence:
    """What is known.

    Attributes:
        value: The estimate; None where nothing is known.
        bound: The end of the interval that must be within the threshold, with every error at its worst.
        n: Samples the estimate rests on.
        errors: Samples beside them that could not be judged.
        needed: Samples, errors included, with which the bound would come within the threshold at the present rate;
            None where it never would.
        reason: Why nothing is known.
    """

    value: float | None
    bound: float | None
    n: int
    errors: int
    needed: int | None = None
    reason: str = ""


def rate_evidence(hits: int, n: int, errors: int, threshold: float, *, upper: bool,
                  design_effect: float = 1.0) -> Evidence:
    """Return the evidence of a rate against a limit of its upper or lower end.

    Args:
        hits: Known samples that count.
        n: Known samples.
        errors: Samples that could not be judged.
        threshold: The limit.
        upper: Whether it is one from above.
        design_effect: Of groups of prompts, at least 1.

    Returns:
        Wilson's interval of the worst case; `needed` by `score_size`.
    """
    total, worst = n + errors, hits + errors if upper else hits
    if not n:
        return Evidence(None, None, 0, errors, None, f"none of {errors} answers could be judged")
    found = wilson(worst, total, design_effect=design_effect)
    share, limit = (worst / total, threshold) if upper else (1 - worst / total, 1 - threshold)
    return Evidence(hits / n, found.ci_high if upper else found.ci_low, n, errors,
                    score_size(share, limit, design_effect))


def score_size(rate: float, limit: float, design_effect: float = 1.0) -> int | None:
    """Return the smallest n with which Wilson's upper end of a rate is within a limit; None where it never is.

    The upper end is within when the limit itself is refused by the score test: (limit - rate)^2 >= z^2 limit
    (1 - limit) / n.

    Args:
        rate: Share of samples, taken to stay as it is.
        limit: In [0, 1].
        design_effect: Of groups of prompts, at least 1, taken to stay as it is.
    """
    gap = limit - rate
    return None if gap <= 0 else max(1, math.ceil(design_effect * Z * Z * limit * (1 - limit) / gap**2 - 1e-9))


def row_evidence(row: Mapping[str, Any], threshold: float, *, upper: bool) -> Evidence:
    """Return the evidence of a row of `metrics` against a limit of its upper or lower end."""
    value, n, errors = row["value"], row["n"], row.get("errors", 0)
    if value is None:
        return Evidence(None, None, n, errors, None, row.get("reason", "not measured"))
    if is_rate(row["metric"]):
        return rate_evidence(round(value * n), n, errors, threshold, upper=upper,
                             design_effect=row.get("design_effect", 1.0))
    return _mean_evidence(value, row["ci_high" if upper else "ci_low"], n, errors, threshold)


def _mean_evidence(value: float, end: float | None, n: int, errors: int, threshold: float) -> Evidence:
    """A mean can be anything where samples are missing; an interval narrows with the root of n."""
    if errors or end is None:
        return Evidence(value, None, n, errors)
    gap = (threshold - value) / (end - value) if end != value else 0.0
    return Evidence(value, end, n, 0, math.ceil(n / gap**2 - 1e-9) if gap > 0 else None)


def paired_evidence(worse: Hits, better: Hits, threshold: float, groups: Mapping[str, int] | None = None) -> Evidence:
    """Return the evidence that one system's rate exceeds another's by no more than a threshold.

    Args:
        worse: Of the system whose rate should not be higher.
        better: Of the other, on the same prompts.
        threshold: Largest difference allowed.
        groups: Prompt -> number of its group.

    Returns:
        Tango's interval on the prompts of both; an outcome that is not known counts as 1 in `worse` and 0 in
        `better`.
    """
    shared = [key for key in worse if key in better]
    known = both_known(worse, better)
    errors = len(shared) - len(known)
    if not known:
        why = f"none of {errors} pairs could be judged" if shared else "no prompt is common to both"
        return Evidence(None, None, 0, errors, None, why)
    assumed = {key: (1 if (hit := worse[key]) is None else hit, better[key] or 0) for key in shared}
    effect = effect_of({key: a - b for key, (a, b) in assumed.items()}, groups or {})
    n, only_first, only_second = (count / effect for count in (
        len(shared), sum(a > b for a, b in assumed.values()), sum(b > a for a, b in assumed.values())))
    _, high = paired_difference(only_first, only_second, n)
    value = sum(a - b for a, b in known.values()) / len(known)
    needed = samples_needed(only_first, only_second, n, threshold)
    return Evidence(value, high, len(known), errors, None if needed is None else math.ceil(needed * effect))


FROM_ROW: dict[str, Callable[[Mapping[str, Any], float], Evidence]] = {
    "max_upper": lambda row, threshold: row_evidence(row, threshold, upper=True),
    "min_lower": lambda row, threshold: row_evidence(row, threshold, upper=False),
}
FROM_PAIRS: dict[str, Callable[[Hits, Hits, float, Mapping[str, int]], Evidence]] = {
    "max_increase": paired_evidence,
    "max_decrease": lambda system, reference, threshold, groups: paired_evidence(reference, system, threshold, groups),
}
"""Threshold -> evidence. A decrease is how far the reference is above the system."""
