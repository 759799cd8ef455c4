"""Every system is asked, one in memory at a time; what is known from a run that was killed is not asked again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..checkpoint.systems import Shelf, System
from ..config import Progress
from ..data.evaluation_sets import EvaluationSet
from ..data.records import groups_of
from ..losses import log_probabilities
from .asking import TASKS, ask, samples_of
from .attacks import Setting
from .batch_size import Result, fitting_batch_size, stepping_down
from .judges import refusal_wording
from .lm_eval import run_lm_eval
from .numbers import Held, answer_batches, choices, drifts, likelihoods, perplexities, smaller_batches
from .samples import Finding, Sample
from .setup import Setup

Json = Mapping[str, Any]
Keep = Callable[[list[Json]], None]
LOSS_BATCH = 16
"""Rows a batch of losses where the batch size of generation is `auto`."""


@dataclass
class Examined:
    """What the systems answered and what was measured on them.

    Attributes:
        samples: Answers of all systems, in the order of systems and questions.
        rows: Of `metrics`, beside the rates.
        verdicts: Entries of `verdicts` that no sample stands behind.
    """

    samples: list[Sample] = field(default_factory=list)
    rows: list[Json] = field(default_factory=list)
    verdicts: list[Json] = field(default_factory=list)


@dataclass
class _Run:
    """What stays the same from system to system, and what is known so far.

    Attributes:
        said: System -> question number -> its entry.
        numbers: System -> the entry of its numbers.
        held: What the tuned model says and how likely it finds that.
        answer_batch: Prompts a batch, the same for all systems and for a run that goes on.
    """

    setup: Setup
    batch_size: int | str
    limit: float | None
    keep: Keep
    progress: Progress
    said: dict[str, dict[int, Json]]
    numbers: dict[str, Json]
    answer_batch: int | None
    held: list[Held] = field(default_factory=list)
    loss_batch: int = LOSS_BATCH

    def stepping_down(self, work: Callable[[int], Result]) -> Result:
        """Do work in batches of losses, and later work at the size that fitted."""
        result, self.loss_batch = stepping_down(self.loss_batch, work)
        return result


def examine(setup: Setup, entries: Sequence[Json], *, batch_size: int | str, limit: float | None, keep: Keep,
            progress: Progress) -> Examined:
    """Ask every system everything, and measure what is measured beside its answers.

    Args:
        setup: The evaluation.
        entries: Of the journal of an earlier run.
        batch_size: Prompts a batch, or `auto`.
        limit: Documents of each lm-eval task at most.
        keep: Called with new entries as soon as there are some.
        progress: Told of every batch.

    Returns:
        Answers without the findings of judges that read them, and numbers.
    """
    assert setup.placement is not None, "only systems are examined"
    said: dict[str, dict[int, Json]] = {system.name: {} for system in setup.systems}
    for entry in (entry for entry in entries if "question" in entry):
        said[entry["system"]][entry["question"]] = entry
    run = _Run(setup, batch_size, limit, keep, progress, said, {e["system"]: e for e in entries if "numbers" in e},
               next((e["batch_size"] for e in entries if "batch_size" in e), None),
               loss_batch=batch_size if isinstance(batch_size, int) else LOSS_BATCH)
    shelf, found = Shelf(setup.placement), Examined()
    for system, is_measured in _visits(setup):
        if _has_work(run, system, is_measured):
            with shelf.model(system) as model:
                _visit(run, model, system, is_measured)
    shelf.clear()
    for system in setup.systems:
        _add(found, setup, run.said[system.name], run.numbers[system.name])
    return found


def _visits(setup: Setup) -> list[tuple[System, bool]]:
    """Return each time a system is in memory, and whether it is measured then."""
    # The base's likelihoods wait until the tuned model was asked, so that all systems compare the same two answers:
    # the base's refusal and what the tuned model said instead.
    names = [system.name for system in setup.systems]
    waits = _asks_likelihood(setup) and "tuned" in names
    found = []
    for system in setup.systems:
        found.append((system, not (waits and system.name == "base")))
        if waits and system.name == "tuned":
            found.append((setup.systems[names.index("base")], True))
    return found


def _has_work(run: _Run, system: System, is_measured: bool) -> bool:
    return (len(run.said[system.name]) < len(run.setup.plan.questions) or _is_held(run, system)
            or is_measured and system.name not in run.numbers)


def _is_held(run: _Run, system: System) -> bool:
    """The tuned model is compared with those that are measured after it."""
    names = [each.name for each in run.setup.systems]
    later = names[names.index("tuned") + 1:] if system.name == "tuned" else []
    return any(name not in run.numbers for name in later)


def _visit(run: _Run, model: Any, system: System, is_measured: bool) -> None:
    name, plan, setting = system.name, run.setup.plan, run.setup.setting
    assert setting is not None
    run.said[name] = ask(model, name, plan.questions, setting, run.said[name], keep=run.keep,
                         batch_size=_batch_size(run, model), progress=run.progress)
    if is_measured and name not in run.numbers:
        run.numbers[name] = _measure(run, model, system)
        run.keep([run.numbers[name]])
    if _is_held(run, system):
        run.held = _hold(run, model, run.said[name])


def _batch_size(run: _Run, model: Any) -> int:
    """Return the size that the first system found: `auto` may find more or less memory for the next, or on resuming."""
    if run.answer_batch is None:
        prompts = [question.attempt.prompt for question in run.setup.plan.questions]
        assert run.setup.setting is not None
        run.answer_batch = fitting_batch_size(model, prompts, run.setup.setting.max_new_tokens, run.batch_size)
        run.keep([{"batch_size": run.answer_batch}])
    return run.answer_batch


def _measure(run: _Run, model: Any, system: System) -> Json:
    """Return the entry of a system's numbers."""
    setup, name = run.setup, system.name
    assert setup.setting is not None
    setting, roles = setup.setting, {each.name: each.role for each in setup.sets}
    held = () if name == "base" else run.held
    rows, verdicts = run.stepping_down(lambda size: choices(model, name, setup.plan, roles, setting, size))
    rows = [*rows, *run.stepping_down(
        lambda size: perplexities(model, name, setup.sets, setting, size, run.progress))]
    rows += run.stepping_down(
        lambda size: drifts(model, name, [smaller_batches(each, size) for each in held], setting.seed))
    if setup.lm_eval:
        rows += run_lm_eval(model, setting.chat, setup.lm_eval, system=name, batch_size=run.batch_size,
                            context=setting.context, seed=setting.seed, limit=run.limit)
    return {"system": name, "numbers": rows, "verdicts": verdicts,
            "likelihoods": _likelihoods(run, model) if _asks_likelihood(setup) else {}}


def _asks_likelihood(setup: Setup) -> bool:
    return any(spec.kind == "likelihood" for spec in setup.judges)


def _likelihoods(run: _Run, model: Any) -> dict[str, dict[str, Json]]:
    """Return set -> record id -> finding: the base's refusals against harmful answers, by likelihood."""
    setup = run.setup
    assert setup.setting is not None
    found = {}
    for each in (each for each in setup.sets if each.role == "harmful"):
        base = _answers(setup, run.said["base"], each.name)
        tuned = _answers(setup, run.said["tuned"], each.name) if "tuned" in run.said else {}
        given = {record.id: record.answer for record in each.records if record.answer}
        safe, harmful = {key: text for key, text in base.items() if refusal_wording(text)}, {**tuned, **given}
        told = run.stepping_down(partial(likelihoods, model, each.records, safe, harmful, setup.setting))
        found[each.name] = {key: dataclasses.asdict(finding) for key, finding in told.items()}
    return found


def _answers(setup: Setup, entries: Mapping[int, Json], name: str) -> dict[str, str]:
    """Record id -> answer without an attack and without solved rows, of a set."""
    return {q.record.id: entries[i]["text"] for i, q in enumerate(setup.plan.questions)
            if q.set == name and q.attack == "none" and not q.shots}


def _hold(run: _Run, model: Any, entries: Mapping[int, Json]) -> list[Held]:
    """Keep what the tuned model says of benign and task rows and how likely it finds it."""
    assert run.setup.setting is not None
    held = []
    for each in (each for each in run.setup.sets if each.role in ("benign", *TASKS)):
        held += run.stepping_down(partial(_held, model, each, _answers(run.setup, entries, each.name),
                                          run.setup.setting))
    return held


def _held(model: Any, of_set: EvaluationSet, answers: Mapping[str, str], setting: Setting, size: int) -> list[Held]:
    batches = answer_batches(of_set.records, answers, setting, size)
    groups = groups_of([record for record in of_set.records if answers.get(record.id)])
    return [Held(of_set, batches, log_probabilities(model, batches).__getitem__, groups)] if batches else []


def _add(found: Examined, setup: Setup, entries: Mapping[int, Json], numbers: Json) -> None:
    samples = samples_of(setup.plan.questions, entries)
    told = {(name, key): Finding(**finding) for name, of_set in numbers["likelihoods"].items()
            for key, finding in of_set.items()}
    found.samples += [_with_likelihood(sample, told) for sample in samples]
    found.rows += numbers["numbers"]
    found.verdicts += numbers["verdicts"]


def _with_likelihood(sample: Sample, told: Mapping[tuple[str, str], Finding]) -> Sample:
    """An attack changes what a model is asked, not what this judge looks at."""
    finding = told.get((sample.set, sample.id)) if sample.attack == "none" else None
    return dataclasses.replace(sample, findings={"base-likelihood": finding}) if finding else sample
