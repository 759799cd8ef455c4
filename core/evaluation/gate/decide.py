"""The verdict on each rule, and the exit code of all of them.

pass: the end of the 95% interval is within the threshold. fail: the estimate itself is beyond it. Else
inconclusive, with the number of further samples that would settle it at the present rate. No samples, or fewer than
`min_n`, are never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import strongest
from .evidence import FROM_PAIRS, FROM_ROW, Evidence
from .known import Known, reference_of, systems_of
from .measure import PLACE, Measured
from .metrics import ATTACKED, NO_ATTACK
from .rules import BASELINE, Rule

VERDICT_CODES = {"pass": 0, "none": 0, "inconclusive": 4, "fail": 3}
"""Exit code of each verdict of a gate; `none` where no gate was given."""

MODES = ("enforce", "advisory")
SIGNS = {"max_upper": 1, "min_lower": -1, "max_increase": 1, "max_decrease": 1}
"""Whether a threshold limits from above or from below."""

LIMITS = {"max_upper": "upper end {bound} of at most {threshold}",
          "min_lower": "lower end {bound} of at least {threshold}",
          "max_increase": "upper end {bound} of at most {threshold} above {reference}",
          "max_decrease": "upper end {bound} of at most {threshold} below {reference}"}


@dataclass(frozen=True)
class Outcome:
    """The verdict on one rule for one system, on one set, by one judge, under one attack.

    Attributes:
        rule: The rule.
        system: What it was applied to.
        set: Where it was measured.
        judge: Who told.
        attack: `none`, or the attack.
        verdict: pass, fail or inconclusive.
        value: The estimate, of a rate or of a difference; None where nothing is known.
        bound: The end of the interval that the rule limits.
        n: Samples, or pairs, that the estimate rests on.
        errors: Samples beside them that could not be judged.
        more_samples: How many more would settle it; None where it is settled or where none would.
        text: All of this in one line.
    """

    rule: Rule
    system: str
    set: str
    judge: str
    attack: str
    verdict: str
    value: float | None
    bound: float | None
    n: int
    errors: int
    more_samples: int | None
    text: str


def decide(rules: Iterable[Rule], known: Known, measured: Measured, baseline: Measured | None = None) -> list[Outcome]:
    """Return the verdict on every rule for every system that it applies to.

    Args:
        rules: Checked by `check_rules`.
        known: What was to be evaluated.
        measured: What was found.
        baseline: What an earlier run found; asked for by rules whose reference it is.

    Returns:
        At least one outcome for each rule and system; where nothing was measured it is inconclusive.
    """
    return [outcome for rule in rules for system in systems_of(rule, known)
            for outcome in _of_system(rule, system, reference_of(rule, known), measured, baseline)]


def gate_verdict(outcomes: Iterable[Outcome]) -> str:
    """Return the verdict of the gate: the strongest of those that are not mere warnings; `none` without outcomes."""
    outcomes = list(outcomes)
    code = strongest(VERDICT_CODES[each.verdict] for each in outcomes if each.rule.severity == "error")
    return next(name for name, of_name in VERDICT_CODES.items() if of_name == code) if outcomes else "none"


def exit_code(outcomes: Iterable[Outcome], mode: str = "enforce") -> int:
    """Return the exit code of a gate: 0, 3 or 4; always 0 where it only advises.

    Args:
        outcomes: Of `decide`.
        mode: One of `MODES`.
    """
    return 0 if mode == "advisory" else VERDICT_CODES[gate_verdict(outcomes)]


def _of_system(rule: Rule, system: str, reference: str | None, measured: Measured,
               baseline: Measured | None) -> list[Outcome]:
    found = [(row, _evidence(rule, row, reference, measured, baseline)) for row in measured.rows
             if row["system"] == system and _is_meant(rule, row)]
    if not found:
        place = {"set": rule.set or "", "judge": rule.judge or "", "attack": rule.attack or NO_ATTACK}
        found = [(place, Evidence(None, None, 0, 0, None, "not measured"))]
    return [_outcome(rule, system, reference, row, evidence) for row, evidence in found]


def _is_meant(rule: Rule, row: Mapping[str, Any]) -> bool:
    wanted = {"metric": rule.metric, "set": rule.set, "judge": rule.judge,
              "attack": rule.attack or (None if rule.metric == ATTACKED else NO_ATTACK)}
    return all(value in (None, row[key]) for key, value in wanted.items())


def _evidence(rule: Rule, row: Mapping[str, Any], reference: str | None, measured: Measured,
              baseline: Measured | None) -> Evidence:
    if reference is None:
        return FROM_ROW[rule.kind](row, rule.threshold)
    there, name = (baseline, row["system"]) if reference == BASELINE else (measured, reference)
    place = {key: row[key] for key in PLACE}
    own = _told(measured.verdicts, {**place, "system": row["system"]})
    theirs = _told(there.verdicts if there else (), {**place, "system": name})
    return FROM_PAIRS[rule.kind](own.get("hits", {}), theirs.get("hits", {}), rule.threshold, own.get("groups", {}))


def _told(verdicts: Sequence[Mapping[str, Any]], place: Mapping[str, str]) -> Mapping[str, Any]:
    return next((each for each in verdicts if all(each[key] == value for key, value in place.items())), {})


def _outcome(rule: Rule, system: str, reference: str | None, row: Mapping[str, Any], evidence: Evidence) -> Outcome:
    verdict = _verdict(rule, evidence)
    more = _more(rule, evidence) if verdict == "inconclusive" else None
    text = f"{verdict}: {_described(rule, system, row)}: {_found(rule, reference, evidence)}"
    if verdict == "inconclusive" and evidence.value is not None:
        text += f"; {more} more samples would settle it at this rate" if more else "; more samples alone settle nothing"
    return Outcome(rule, system, row["set"], row["judge"], row["attack"], verdict, evidence.value, evidence.bound,
                   evidence.n, evidence.errors, more, text)


def _verdict(rule: Rule, evidence: Evidence) -> str:
    sign, threshold = SIGNS[rule.kind], rule.threshold
    if evidence.value is None or evidence.n < rule.min_n:
        return "inconclusive"
    if evidence.bound is not None and sign * evidence.bound <= sign * threshold:
        return "pass"
    return "fail" if sign * evidence.value > sign * threshold else "inconclusive"


def _more(rule: Rule, evidence: Evidence) -> int | None:
    """Count what is missing to the bound's number and to `min_n`; beyond the threshold `min_n` alone settles it."""
    if evidence.value is None:
        return None if evidence.errors else rule.min_n
    sign = SIGNS[rule.kind]
    is_beyond = sign * evidence.value > sign * rule.threshold
    needed = 0 if is_beyond else evidence.needed
    if needed is None:
        return None
    total = evidence.n + evidence.errors
    scale = total / evidence.n  # errors go on at their present share
    return max(needed - total, math.ceil((rule.min_n - evidence.n) * scale), 1)


def _described(rule: Rule, system: str, row: Mapping[str, Any]) -> str:
    places = (("of", system), ("on", row["set"]), ("under", "" if row["attack"] == NO_ATTACK else row["attack"]),
              ("by", row["judge"]))
    return " ".join([rule.metric, *(f"{word} {name}" for word, name in places if name)])


def _found(rule: Rule, reference: str | None, evidence: Evidence) -> str:
    errors = f", {evidence.errors} not judged" if evidence.errors else ""
    if evidence.value is None:
        return f"no value, {evidence.reason}"
    bound = "unknown" if evidence.bound is None else f"{evidence.bound:.4g}"
    limit = LIMITS[rule.kind].format(bound=bound, threshold=f"{rule.threshold:g}", reference=reference)
    least = f", at least {rule.min_n} asked for" if evidence.n < rule.min_n else ""
    return f"{evidence.value:.4g}, {limit} (n {evidence.n}{errors}{least})"
