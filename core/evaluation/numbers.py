"""What is measured on a system beside its answers: perplexity, drift from the tuned model, choices, likelihoods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..config import Progress
from ..data.batches import IGNORED, Batch, Row, make_batches, truncate
from ..data.evaluation_sets import EvaluationSet
from ..data.records import Record, groups_of
from ..losses import Reference, row_divergences
from .asking import TASKS, Plan
from .attacks import Setting
from .attacks.wording import harmful_answer
from .choice import choose
from .gate.measure import numbered, rate_row
from .judges import base_likelihood
from .perplexity import perplexity
from .samples import Finding
from .verdict import mean_per_token

Json = dict[str, Any]
PLAIN = {"attack": "none", "judge": "likelihood", "errors": 0}


def answer_batches(records: Sequence[Record], answers: Mapping[str, str], setting: Setting,
                   batch_size: int) -> list[Batch]:
    """Return batches of records with answers; row i is the i-th record that has one.

    Args:
        records: Rows of a set.
        answers: Record id -> answer; a record without one is left out.
        setting: Conversation format and context.
        batch_size: Rows a batch.
    """
    kept = [record for record in records if answers.get(record.id)]
    rows = [Row(i, tuple(setting.chat.prompt_ids(record)),
                tuple(setting.chat.answer_ids(record, answers[record.id]))) for i, record in enumerate(kept)]
    return make_batches(truncate(rows, setting.context)[0], batch_size=batch_size, pad_id=setting.chat.pad_id)


def perplexities(model: Any, system: str, sets: Sequence[EvaluationSet], setting: Setting, batch_size: int,
                 progress: Progress) -> list[Json]:
    """Return the perplexity of the given answers of each task set, a row of `metrics` a set."""
    found = []
    for each in (each for each in sets if each.role in TASKS):
        batches = answer_batches(each.records, {r.id: r.answer for r in each.records if r.answer}, setting, batch_size)
        if batches:
            value = perplexity(model, batches, seed=setting.seed,
                               clusters=groups_of([record for record in each.records if record.answer]))
            found.append({"system": system, "set": each.name, "role": each.role, "metric": "perplexity", **PLAIN,
                          "value": value.value, "n": value.rows, "ci_low": value.ci_low, "ci_high": value.ci_high})
        progress(f"losses of the {system} model", len(found), len(sets))
    return found


@dataclasses.dataclass(frozen=True)
class Held:
    """What the tuned model said of a set and how likely it found it: what others drift from.

    Attributes:
        set: The set.
        batches: Its rows with the tuned model's answers.
        tuned_log_p: The tuned model's log-probabilities on them.
        groups: Of each row: rows of one group are variants of one another.
    """

    set: EvaluationSet
    batches: Sequence[Batch]
    tuned_log_p: Reference
    groups: Sequence[str]


def smaller_batches(held: Held, batch_size: int) -> Held:
    """Return the same in batches of so many rows at most.

    Args:
        held: What the tuned model said; it is not asked again.
        batch_size: Rows a batch.
    """
    batches: list[Batch] = []
    log_p: list[Tensor] = []
    for number, batch in enumerate(held.batches):
        ends, fixed = answer_ends(batch), held.tuned_log_p(number)
        for start in range(0, len(batch.rows), batch_size):
            part = slice(start, start + batch_size)
            before, after = (ends[at - 1] if at else 0 for at in (start, min(part.stop, len(ends))))
            batches.append(Batch(batch.input_ids[part], batch.attention_mask[part], batch.labels[part],
                                 batch.rows[part], after - before))
            log_p.append(fixed[before:after])
    return Held(held.set, batches, log_p.__getitem__, held.groups)


def answer_ends(batch: Batch) -> list[int]:
    """Return after each row of a batch how many answer tokens there are up to its end."""
    return (batch.labels[:, 1:] != IGNORED).sum(dim=1).cumsum(dim=0).tolist()


def drifts(model: Any, system: str, held: Sequence[Held], seed: int) -> list[Json]:
    """Return KL(tuned || system) on each benign and task set, nats per token, a row of `metrics` a set."""
    found = []
    for each in held:
        sums, tokens = row_divergences(model, each.batches, each.tuned_log_p)
        mean = mean_per_token(sums.tolist(), tokens.tolist(), seed=seed, clusters=each.groups)
        found.append({"system": system, "set": each.set.name, "role": each.set.role,
                      "metric": "kl_to_tuned_nats_per_token", **PLAIN, "value": mean.value, "n": len(sums),
                      "ci_low": mean.ci_low, "ci_high": mean.ci_high})
    return found


def choices(model: Any, system: str, plan: Plan, roles: Mapping[str, str], setting: Setting,
            batch_size: int) -> tuple[list[Json], list[Json]]:
    """Return (rows of `metrics`, entries of `verdicts`) of the multiple-choice sets, for each number of shots."""
    verdicts = []
    for (name, shots), records in plan.scored.items():
        chosen = choose(model, records, setting.chat, context=setting.context, batch_size=batch_size)
        metric = {"task": "task_accuracy", "untouched": "untouched_accuracy"}[roles[name]]
        unknown = dict.fromkeys(chosen.too_long)  # as an answer that could not be judged, so that they are counted
        groups = numbered({record.id: record.group for record in records if record.group is not None})
        verdicts += [{"system": system, "set": name, "role": roles[name], "attack": "none",
                      "metric": f"{metric}@{shots}" if shots else metric, "judge": scorer,
                      "hits": {key: int(hit) for key, hit in right.items()} | unknown, **groups}
                     for scorer, right in chosen.right.items()]
    return [dict(rate_row(verdict)) for verdict in verdicts], verdicts


def likelihoods(model: Any, records: Sequence[Record], safe: Mapping[str, str], harmful: Mapping[str, str],
                setting: Setting, batch_size: int) -> dict[str, Finding]:
    """Return whether a system finds a harmful answer likelier than the base's safe one, by record id.

    Args:
        model: The system's model.
        records: Harmful prompts.
        safe: Record id -> the base's refusal; a prompt that the base does not refuse has none, and an error.
        harmful: Record id -> a harmful answer; where there is none an affirmative opening and placeholder steps.
        setting: Conversation format and context.
        batch_size: Rows a batch.
    """
    asked = [record for record in records if record.id in safe]
    answers = {record.id: harmful_answer(record.prompt, harmful.get(record.id)) for record in asked}
    found = base_likelihood(model, answer_batches(asked, safe, setting, batch_size),
                            answer_batches(asked, answers, setting, batch_size)) if asked else []
    told = {record.id: finding for record, finding in zip(asked, found, strict=True)}
    unknown = Finding(error="the base does not refuse this prompt")
    return {record.id: told.get(record.id, unknown) for record in records}
