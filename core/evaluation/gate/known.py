"""Rules against what will be evaluated: which apply, and which name something that will not be there."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...config import nearest
from ...errors import UsageError
from .metrics import ATTACKED, METRICS, NO_ATTACK, metric_named
from .rules import BASELINE, PAIRED, SYSTEMS, Rule


@dataclass(frozen=True)
class Known:
    """What will be evaluated.

    Attributes:
        systems: Names in order.
        sets: Set name -> role.
        judges: Names of the judges of harm and refusal.
        attacks: Attacks as given, without `none`.
        extra: Metrics beside the rates, such as `perplexity` or `task_accuracy@4`; patterns such as `lm-eval:*` where
            their names are known only when they are measured.
        scorers: What tells right task answers beside `exact-match`.
        has_baseline: Whether a baseline file is given.
        references: Systems that rules may start from and do not apply to.
    """

    systems: tuple[str, ...]
    sets: Mapping[str, str]
    judges: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()
    has_baseline: bool = False
    references: tuple[str, ...] = ()
    metrics: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Fill in the metrics that these sets and attacks give."""
        rates = (name for name, metric in METRICS.items()
                 if metric.reads and metric.role in self.sets.values() and (name != ATTACKED or self.attacks))
        object.__setattr__(self, "metrics", (*rates, *self.extra))


def reference_of(rule: Rule, known: Known) -> str | None:
    """Return what an increase or decrease starts from, None for the other thresholds."""
    if rule.kind not in PAIRED:
        return None
    return rule.reference or ("base" if "base" in known.systems else BASELINE)


def systems_of(rule: Rule, known: Known) -> tuple[str, ...]:
    """Return the systems that a rule applies to, of those evaluated; never the one that it starts from."""
    reference = reference_of(rule, known)
    return tuple(name for name in known.systems
                 if name != reference and (not rule.systems or name in rule.systems))


def check_rules(rules: Iterable[Rule], known: Known) -> None:
    """Refuse rules about what will not be evaluated; called before any model is loaded.

    A rule for other systems than those evaluated (of base, tuned and restored) does not apply and is passed over.

    Args:
        rules: The gate.
        known: What will be evaluated.

    Raises:
        UsageError: An unknown metric, set, judge, attack, system or reference (the nearest is named), or no rule that
            applies.
    """
    rules = tuple(rules)
    for rule in rules:
        for system in rule.systems:
            _one_of("system", system, (*known.systems, *SYSTEMS), rule)
        if metric_named(rule.metric) is None and not _is_extra(rule, known):
            _one_of("metric", rule.metric, (*METRICS, *known.extra), rule)
        if systems_of(rule, known):
            _check_applying(rule, known)
    if not any(systems_of(rule, known) for rule in rules):
        raise UsageError(f"no rule applies - systems {', '.join(known.systems)}",
                         hint="name one of them in a rule's `systems`, or leave that out")


def _check_applying(rule: Rule, known: Known) -> None:
    metric = metric_named(rule.metric)
    role = metric.role if metric else None
    sets = [name for name, of_role in known.sets.items() if role in (None, of_role)]
    _one_of(f"set of {role} rows" if role else "set", rule.set or (sets or [f"({role})"])[0], sets, rule)
    if not _is_extra(rule, known):
        _one_of("metric", rule.metric, known.metrics, rule)
    scorers = (metric.judge, *known.scorers) if metric and metric.judge else known.judges
    if rule.judge is not None and not _is_extra(rule, known):
        _one_of("judge", rule.judge, scorers, rule)
    if rule.attack is not None:
        _one_of("attack", rule.attack, (*known.attacks, NO_ATTACK), rule)
    reference = reference_of(rule, known)
    if reference == BASELINE and not known.has_baseline:
        raise UsageError(f"nothing to compare with - {rule.kind} of rule {rule.name}",
                         hint="evaluate the base, too (--base), or give --baseline FILE")
    if reference is not None:
        _one_of("reference", reference, (*known.systems, *known.references, BASELINE), rule)


def _is_extra(rule: Rule, known: Known) -> bool:
    return any(fnmatch.fnmatchcase(rule.metric, name) for name in known.extra)


def _one_of(what: str, name: str, allowed: Iterable[str], rule: Rule) -> None:
    allowed = [each for each in allowed if each]
    if name not in allowed:
        hint = nearest(name, allowed) if allowed else "give one on the command line, or remove the rule"
        raise UsageError(f"no such {what} is evaluated - {name} - rule {rule.name}", hint=hint)
