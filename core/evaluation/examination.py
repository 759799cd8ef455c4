"""Every system is asked, one in memory at a time; what is known from a run that was killed is not asked again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.systems import Shelf, System
from ..config import Progress
from ..losses import log_probabilities
from .asking import TASKS, ask, samples_of
from .batch_size import fitting_batch_size
from .judges import refusal_wording
from .lm_eval import run_lm_eval
from .numbers import Held, answer_batches, choices, drifts, likelihoods, perplexities
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


@dataclass(frozen=True)
class _Run:
    """What stays the same from system to system."""

    setup: Setup
    batch_size: int | str
    limit: float | None
    keep: Keep
    progress: Progress

    @property
    def loss_batch(self) -> int:
        return self.batch_size if isinstance(self.batch_size, int) else LOSS_BATCH


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
    assert setup.setting is not None and setup.placement is not None, "only systems are examined"
    run = _Run(setup, batch_size, limit, keep, progress)
    shelf, found = Shelf(setup.placement), Examined()
    said: dict[str, dict[int, Json]] = {}
    numbers: dict[str, Json] = {e["system"]: e for e in entries if "numbers" in e}
    held: list[Held] = []
    for place, system in enumerate(setup.systems):
        known = {e["question"]: e for e in entries if e.get("system") == system.name and "question" in e}
        later = [s.name for s in setup.systems[place + 1:] if s.name not in numbers]
        if len(known) < len(setup.plan.questions) or system.name not in numbers or (system.name == "tuned" and later):
            with shelf.model(system) as model:
                said[system.name] = ask(model, system.name, setup.plan.questions, setup.setting, known, keep=keep,
                                        batch_size=_batch_size(run, model, entries), progress=progress)
                if system.name not in numbers:
                    numbers[system.name] = _measure(run, model, system, said, held)
                    keep([numbers[system.name]])
                if system.name == "tuned" and later:
                    held = _hold(run, model, said["tuned"])
        else:
            said[system.name] = known
        _add(found, setup, said[system.name], numbers[system.name])
    shelf.clear()
    return found


def _batch_size(run: _Run, model: Any, entries: Sequence[Json]) -> int:
    """Return the size of the earlier run: `auto` may find more or less memory today, and batches must be the same."""
    earlier = next((e["batch_size"] for e in entries if "batch_size" in e), None)
    if earlier is not None:
        return earlier
    prompts = [question.attempt.prompt for question in run.setup.plan.questions]
    assert run.setup.setting is not None
    size = fitting_batch_size(model, prompts, run.setup.setting.max_new_tokens, run.batch_size)
    run.keep([{"batch_size": size}])
    return size


def _measure(run: _Run, model: Any, system: System, said: Mapping[str, Mapping[int, Json]],
             held: Sequence[Held]) -> Json:
    """Return the entry of a system's numbers."""
    setup, name = run.setup, system.name
    assert setup.setting is not None
    setting, size = setup.setting, run.loss_batch
    rows, verdicts = choices(model, name, setup.plan, {s.name: s.role for s in setup.sets}, setting, size)
    rows += perplexities(model, name, setup.sets, setting, size, run.progress)
    rows += drifts(model, name, held, setting.seed)
    if setup.lm_eval:
        rows += run_lm_eval(model, setting.chat, setup.lm_eval, system=name, batch_size=run.batch_size,
                            context=setting.context, seed=setting.seed, limit=run.limit)
    return {"system": name, "numbers": rows, "verdicts": verdicts,
            "likelihoods": _likelihoods(run, model, said) if _asks_likelihood(setup) else {}}


def _asks_likelihood(setup: Setup) -> bool:
    return any(spec.kind == "likelihood" for spec in setup.judges)


def _likelihoods(run: _Run, model: Any, said: Mapping[str, Mapping[int, Json]]) -> dict[str, dict[str, Json]]:
    """Return set -> record id -> finding: the base's refusals against harmful answers, by likelihood."""
    setup = run.setup
    assert setup.setting is not None
    found = {}
    for each in (each for each in setup.sets if each.role == "harmful"):
        base = _answers(setup, said["base"], each.name)
        tuned = _answers(setup, said["tuned"], each.name) if "tuned" in said else {}
        given = {record.id: record.answer for record in each.records if record.answer}
        told = likelihoods(model, each.records, {key: text for key, text in base.items() if refusal_wording(text)},
                           {**tuned, **given}, setup.setting, run.loss_batch)
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
        batches = answer_batches(each.records, _answers(run.setup, entries, each.name), run.setup.setting,
                                 run.loss_batch)
        if batches:
            held.append(Held(each, batches, log_probabilities(model, batches).__getitem__))
    return held


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
