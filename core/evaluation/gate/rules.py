"""The rules of a gate: what each may say, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...config import nearest
from ...errors import UsageError
from .metrics import ATTACKED, METRICS, NO_ATTACK, is_rate, metric_named

THRESHOLDS = ("max_upper", "min_lower", "max_increase", "max_decrease")
"""What a rule may limit: the ends of the interval, or the paired difference from a reference."""

PAIRED = ("max_increase", "max_decrease")
WRONG_END = {"max_upper": ("higher", "min_lower"), "min_lower": ("lower", "max_upper"),
             "max_increase": ("higher", "max_decrease"), "max_decrease": ("lower", "max_increase")}
"""Threshold -> the direction of a metric of which it would allow any harm, and the threshold that was meant."""

UNDER_ATTACK = (ATTACKED, "refusal_rate", "coherence_rate")
"""Metrics of attacked prompts; `harmful_rate` is that of prompts as they stand."""

SEVERITIES = ("error", "warning")
SYSTEMS = ("base", "tuned", "restored")
BASELINE = "baseline"


@dataclass(frozen=True)
class Rule:
    """One rule, with exactly one of the four thresholds.

    Attributes:
        metric: A name of `METRICS`, or of a number measured elsewhere.
        name: What reports call it; made of the other keys where it has none.
        set: Name of a set; every set of the metric's role without one.
        judge: Name of a judge; every judge that tells the metric without one.
        attack: The attack as given; without one none, or for `attack_success_rate` every one.
        max_upper: Upper end of the 95% interval, at most.
        min_lower: Lower end of it, at least.
        max_increase: Upper end of the interval of system less reference, at most.
        max_decrease: Upper end of the interval of reference less system, at most.
        min_n: Samples below which nothing is decided.
        systems: Systems it applies to; all without any.
        severity: `error`, or `warning`: shown, but without effect on the exit code.
        reference: System (or `baseline`, the file) that increase and decrease start from; without one the base where
            it is evaluated, else the file.
    """

    metric: str
    name: str = ""
    set: str | None = None
    judge: str | None = None
    attack: str | None = None
    max_upper: float | None = None
    min_lower: float | None = None
    max_increase: float | None = None
    max_decrease: float | None = None
    min_n: int = 1
    systems: tuple[str, ...] = ()
    severity: str = "error"
    reference: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be decided or would be silently wrong; `name` is filled in.

        Raises:
            UsageError: A value of the wrong kind, no threshold or two, or one that suits the other direction.
        """
        for fault, hint in _faults(self):
            raise UsageError(f"{fault} - rule {self.name or self.metric}", hint=hint)
        object.__setattr__(self, "name", self.name or _made_name(self))

    @property
    def kind(self) -> str:
        """Which threshold it has."""
        return next(kind for kind in THRESHOLDS if getattr(self, kind) is not None)

    @property
    def threshold(self) -> float:
        """The threshold."""
        return float(getattr(self, self.kind))


def _made_name(rule: Rule) -> str:
    parts = (f"on {rule.set}" if rule.set else "", f"by {rule.judge}" if rule.judge else "",
             f"under {rule.attack}" if rule.attack else "", rule.kind.replace("_", " "), f"{rule.threshold:g}")
    return " ".join((rule.metric, *filter(None, parts)))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_list(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value))


KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("metric", "set", "judge", "attack", "severity", "reference"), (_is_text, "give a name")),
    "name": (lambda value: isinstance(value, str), "give a text"),
    **dict.fromkeys(THRESHOLDS, (_is_number, "give a number of 0 or more, rates as fractions: 0.05 is 5%")),
    "min_n": (_is_count, "give a whole number of 1 or more"),
    "systems": (_is_list, "give a list of systems"),
}
"""Key of a rule -> what its value has to be."""


def _faults(rule: Rule) -> Iterable[tuple[str, str]]:
    """Each fault with its remedy, the first the one that the others may follow from."""
    for key, (is_right, hint) in KINDS.items():
        value = getattr(rule, key)
        if value is not None and not is_right(value):
            yield f"unusable value - {key} {value!r}"[:200], hint
    given = [kind for kind in THRESHOLDS if getattr(rule, kind) is not None]
    if len(given) != 1:
        yield (f"two thresholds - {', '.join(given)}" if given else "no threshold",
               f"give each rule one of: {', '.join(THRESHOLDS)}")
        return
    if rule.severity not in SEVERITIES:
        yield f"unknown value - severity {rule.severity}", nearest(rule.severity, SEVERITIES)
    yield from _metric_faults(rule, given[0])


def _metric_faults(rule: Rule, kind: str) -> Iterable[tuple[str, str]]:
    metric, (direction, meant) = metric_named(rule.metric), WRONG_END[kind]
    if metric is not None and metric.better == direction:
        yield f"wrong end - {kind} of {rule.metric}, which is better {direction}", f"did you mean {meant}?"
    if is_rate(rule.metric) and getattr(rule, kind) > 1:
        yield f"no rate is above 1 - {kind} {getattr(rule, kind):g}", "give a fraction: 0.05 is 5%"
    if is_rate(rule.metric) and getattr(rule, kind) == (0 if kind == "min_lower" else 1):
        yield f"a rule that cannot fail - {kind} {getattr(rule, kind):g}", "give a fraction: 0.01 is 1%"
    if kind in PAIRED and not is_rate(rule.metric):
        yield (f"no paired samples - {kind} of {rule.metric}",
               "only rates have them; give max_upper or min_lower")
    if rule.metric == ATTACKED and rule.attack == NO_ATTACK:
        yield f"no attack - {ATTACKED}", "name the attack, or use harmful_rate"
    if rule.attack not in (None, NO_ATTACK) and rule.metric not in UNDER_ATTACK:
        yield (f"not measured under an attack - {rule.metric}",
               f"did you mean {ATTACKED}?" if rule.metric == "harmful_rate" else "leave out `attack`")


def parse_rules(content: object, where: str) -> tuple[Rule, ...]:
    """Return the rules of a gate file's content.

    Args:
        content: What YAML made of the file: a mapping with `rules`, a list of mappings.
        where: Name of the file, for errors.

    Returns:
        At least one rule.

    Raises:
        UsageError: No such content, an unknown key (the nearest known one is named), two rules of one name, or what
            `Rule` refuses.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("rules"), list) or not content["rules"]:
        raise UsageError(f"no rules - {where}", hint="write `rules:` and below it a list, each entry with `metric:`")
    for key in content:
        if key != "rules":
            raise UsageError(f"unknown key `{key}` - {where}", hint=nearest(str(key), ("rules",)))
    rules = tuple(_parse_rule(entry, f"rule {i} of {where}") for i, entry in enumerate(content["rules"], 1))
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two rules of one name - {name} - {where}", hint="give each a `name:` of its own")
    return rules


def _parse_rule(entry: object, where: str) -> Rule:
    if not isinstance(entry, Mapping) or entry.get("metric") is None:
        raise UsageError(f"no metric - {where}", hint=f"write `metric:` with one of: {', '.join(METRICS)}")
    known = {each.name for each in dataclasses.fields(Rule)}
    keys = {str(key).replace("-", "_"): value for key, value in entry.items()}
    for key in keys:
        if key not in known:
            raise UsageError(f"unknown key `{key}` - {where}", hint=nearest(key, known))
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                             for key, value in keys.items() if value is not None}
    if isinstance(given.get("systems"), str):
        given["systems"] = (given["systems"],)
    try:
        return Rule(**given)
    except UsageError as error:
        raise UsageError(f"{error.what} - {where}", hint=error.hint) from error
