"""A baseline is an ordinary results file; it is refused where its numbers were measured in another way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...config import nearest
from ...errors import UsageError
from .known import Known, reference_of, systems_of
from .measure import Measured
from .metrics import ATTACKED, metric_named
from .rules import BASELINE, Rule

Json = Mapping[str, Any]
GENERATION = ("max_new_tokens", "chat_template", "system_prompt", "limit")
"""Settings that decide what is asked and answered; a setting that is in neither file is the same in both."""

FILES = "files_sha256"
"""Of a judging model in `inputs`."""

NEW_ONE = "measure a new one under these settings: --write-baseline FILE"


def measured_in(results: Json) -> Measured:
    """Return what a results file says was found."""
    return Measured(tuple(results["metrics"]), tuple(results["verdicts"]))


def check_baseline(baseline: Json, current: Json, rules: Iterable[Rule], known: Known, where: str) -> None:
    """Refuse a baseline that no rule may be compared with; called before any model is loaded.

    Args:
        baseline: An ordinary results file.
        current: `inputs`, `settings` and `seed` of this run as its results will say them.
        rules: The gate; only what its rules compare with the baseline has to agree.
        known: What will be evaluated.
        where: Name of the baseline file.

    Raises:
        UsageError: The first difference: a system, template, generation setting, judge, set or attack.
    """
    asked = [rule for rule in rules if reference_of(rule, known) == BASELINE and systems_of(rule, known)]
    if not asked:
        return
    for name in dict.fromkeys(name for rule in asked for name in systems_of(rule, known)):
        if name not in baseline["inputs"]["systems"]:
            raise UsageError(f"system {name} is not in the baseline - {where}",
                             hint=nearest(name, baseline["inputs"]["systems"]))
    for what, there, here in _differences(baseline, current, asked, known):
        raise UsageError(f"baseline made in another way - {where}: {what} was {_shown(there)}, now {_shown(here)}",
                         hint=NEW_ONE)


def _differences(baseline: Json, current: Json, rules: Sequence[Rule], known: Known) -> Iterator[tuple[str, Any, Any]]:
    """Each thing that the two differ in: its name, what it was, what it is."""
    shots = ("shots",) if any("@" in rule.metric for rule in rules) else ()  # the largest decides which rows are shown
    pairs = [*_templates(baseline, current, rules, known),
             *((name, baseline["settings"].get(name), current["settings"].get(name)) for name in GENERATION + shots),
             ("seed", baseline["seed"], current["seed"]), *_judges(baseline, current, rules),
             *_sets(baseline, current, rules), *_attacks(baseline, current, rules)]
    return (pair for pair in pairs if pair[1] != pair[2])


def _templates(baseline: Json, current: Json, rules: Sequence[Rule],
               known: Known) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys(name for rule in rules for name in systems_of(rule, known)):
        there, here = (side["inputs"]["systems"].get(name, {}) for side in (baseline, current))
        yield f"chat template of {name}", there.get("chat_template_sha256"), here.get("chat_template_sha256")


def _judges(baseline: Json, current: Json, rules: Sequence[Rule]) -> Iterator[tuple[str, Any, Any]]:
    """A judge of one name is another one where its rubric or model is; a plan has not read the model's weights."""
    here, there = current["inputs"]["judges"], baseline["inputs"]["judges"]
    for name, judge in here.items():
        if any(rule.judge in (None, name) for rule in rules):
            before, now = ({key: value for key, value in of_side.items() if key != FILES} if of_side else None
                           for of_side in (there.get(name), judge))
            yield f"judge {name}", before, now
            if FILES in judge:
                yield f"model of judge {name}", there.get(name, {}).get(FILES), judge[FILES]


def _sets(baseline: Json, current: Json, rules: Sequence[Rule]) -> Iterator[tuple[str, Any, Any]]:
    there = {each["name"]: each["sha256"] for each in baseline["inputs"]["sets"]}
    for each in current["inputs"]["sets"]:
        if any(_reads(rule, each) for rule in rules):
            yield f"set {each['name']}", there.get(each["name"]), each["sha256"]


def _attacks(baseline: Json, current: Json, rules: Sequence[Rule]) -> Iterator[tuple[str, Any, Any]]:
    """An attack made of a file is another one where the file is."""
    here, there = (side["inputs"].get("attacks", {}) for side in (current, baseline))
    for name, attack in here.items():
        if any(rule.attack == name or (rule.attack is None and rule.metric == ATTACKED) for rule in rules):
            yield f"attack {name}", there.get(name), attack


def _reads(rule: Rule, of_set: Json) -> bool:
    metric = metric_named(rule.metric)
    return rule.set == of_set["name"] if rule.set else metric is None or metric.role in (None, of_set["role"])


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)[:80]
