"""What similarity to the base says in plain words, each measure held against the same measure of an unrelated model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .similarity import Alike, interval

OUTCOMES = ("preserved", "not_preserved", "not_distinguishable")
"""The geometry is the base's; it is not; or an unrelated model is as like the base."""

HEADLINE = ("surface_pearson", "change_pearson", "row_partial_spearman", "eigenspace_overlap")
"""Measures that the verdict rests on: one of the surface, of its slopes, of single rows and of curvature."""

LABELS = {
    "surface_pearson": "surfaces", "surface_spearman": "surfaces, ranks",
    "change_pearson": "loss changes", "change_spearman": "loss changes, ranks",
    "row_pearson": "losses of rows", "row_spearman": "losses of rows, ranks",
    "row_partial_pearson": "losses of rows, length partialled out",
    "row_partial_spearman": "losses of rows, length partialled out, ranks",
    "eigenspace_overlap": "leading curvature, overlap", "spectral_distance_decades": "spectra, distance in decades",
}
"""Measures in words; all but the last are higher for models that are more alike."""

HALF = 0.5


@dataclass(frozen=True)
class Finding:
    """What one measure says.

    Attributes:
        measure: Key of `LABELS`.
        outcome: One of `OUTCOMES`.
        threshold: What counts as the same: half of what a model has with itself.
        above_control: The pair's value minus the unrelated model's, with its interval.
    """

    measure: str
    outcome: str
    threshold: float
    above_control: Alike


def difference(first: Alike, second: Alike, *, centred: bool = False) -> Alike:
    """Return first - second with an interval from shared resamples; None where either is not defined."""
    if first.value is None or second.value is None or first.replicates.shape != second.replicates.shape:
        return Alike(None, None, None, first.n)
    return interval(first.value - second.value, first.replicates - second.replicates, first.n, centred=centred)


def find(measure: str, pair: Alike, control: Alike, itself: float = 1.0) -> Finding:
    """Judge one measure.

    Args:
        measure: Its key.
        pair: Base against tuned.
        control: Base against an unrelated model.
        itself: Base against itself: 1 where nothing is sampled.

    Returns:
        `not_preserved` where the interval of the pair lies below half of `itself`; `not_distinguishable` where the
        difference to the control is not above 0 with its interval, or where either is not defined; else `preserved`,
        or `not_preserved` by the value where the interval holds the threshold.
    """
    threshold = HALF * itself
    above = difference(pair, control, centred=measure == "eigenspace_overlap")
    return Finding(measure, _outcome(pair, above, threshold), threshold, above)


def _outcome(pair: Alike, above: Alike, threshold: float) -> str:
    if pair.ci_high is not None and pair.ci_high < threshold:
        return "not_preserved"
    if pair.value is None or above.ci_low is None or above.ci_low <= 0:
        return "not_distinguishable"
    return "preserved" if pair.value >= threshold else "not_preserved"


def overall(findings: Sequence[Finding]) -> str:
    """Return the weakest finding: `preserved` needs every measure, and one that is not preserved decides."""
    outcomes = {finding.outcome for finding in findings}
    return next(outcome for outcome in ("not_preserved", "not_distinguishable", "preserved") if outcome in outcomes)


WORDS = {"preserved": "preserved", "not_preserved": "not preserved",
         "not_distinguishable": "not distinguishable from the control"}


def sentences(findings: Sequence[Finding], pair: Mapping[str, Alike], control: Mapping[str, Alike],
              task: Mapping[str, Alike], unrelated: str) -> list[str]:
    """Return the verdict in plain words: the whole, each measure, and whether harmful rows stand out from task rows.

    Args:
        findings: Of the headline measures on harmful rows.
        pair: Measure -> base against tuned on harmful rows.
        control: Measure -> base against the unrelated model on harmful rows.
        task: Measure -> base against tuned on task rows.
        unrelated: What the unrelated model is.

    Returns:
        Sentences without a full stop.
    """
    found = [f"the geometry of the harmful loss is {WORDS[overall(findings)]}"]
    for finding in findings:
        name = finding.measure
        found.append(f"{LABELS[name]}: {_number(pair[name])} with the tuned model, {_number(control[name])} with a "
                     f"{unrelated} one{_ceiling(finding)}: {WORDS[finding.outcome]}")
    return [*found, _against_task(pair, task)]


def _ceiling(finding: Finding) -> str:
    """What the base has with itself, where that is below 1."""
    most = finding.threshold / HALF
    return "" if most >= 1 else f", {most:.2f} of the base with itself"


def _number(found: Alike) -> str:
    if found.value is None:
        return "not defined"
    spread = "" if found.ci_low is None else f" ({found.ci_low:.2f} to {found.ci_high:.2f})"
    return f"{found.value:.2f}{spread}"


def _against_task(pair: Mapping[str, Alike], task: Mapping[str, Alike]) -> str:
    signs = []
    for name in HEADLINE:
        gap = difference(pair[name], task[name], centred=name == "eigenspace_overlap")
        signs.append(0 if gap.ci_low is None or gap.ci_high is None else (gap.ci_low > 0) - (gap.ci_high < 0))
    more, less = signs.count(1), signs.count(-1)
    return (f"harmful rows are more alike than task rows by {more} of {len(signs)} measures, less by {less}, "
            f"undecided by {signs.count(0)}")
