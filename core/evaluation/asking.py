"""What is asked of every system, and how a run that was killed goes on: answers that are known are not asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Progress
from ..data.evaluation_sets import EvaluationSet
from ..data.records import Record
from .attacks import ATTACKED_ROLE, NONE, Attack, Attempt, Setting, plan_attempts
from .attacks.attempts import plain
from .choice import has_choices
from .fewshot import hold_shots, with_shots
from .generation import generate_batches, plan_batches
from .samples import Sample
from .tasks import task_correct

Json = Mapping[str, Any]
TASKS = ("task", "untouched")


@dataclass(frozen=True)
class Question:
    """One prompt as it is put to every system.

    Attributes:
        set: Name of its set.
        role: Of the set.
        attack: Name of the attack, `none` without.
        shots: Solved rows before it.
        record: The row, without the solved ones.
        attempt: Tokens, and how the answer is chosen.
    """

    set: str
    role: str
    attack: str
    shots: int
    record: Record
    attempt: Attempt


@dataclass(frozen=True)
class Plan:
    """All questions of a run, the same for every system and in one order.

    Attributes:
        questions: What is generated for.
        scored: (set, shots) -> multiple-choice rows, which are scored without generation.
        too_long: (set, attack, row id) of questions that do not fit into the context: not asked, never cut.
    """

    questions: tuple[Question, ...]
    scored: Mapping[tuple[str, int], tuple[Record, ...]]
    too_long: tuple[tuple[str, str, str], ...]


def plan_questions(sets: Sequence[EvaluationSet], attacks: Sequence[Attack], shots: Sequence[int],
                   setting: Setting) -> Plan:
    """Return every question: harmful sets under each attack, task sets with each number of solved rows.

    Args:
        sets: What to ask.
        attacks: `none` first.
        shots: Numbers of solved rows before rows of role `task`.
        setting: Of the run.

    Returns:
        The plan; `UsageError` where a task set has too few rows for the shots.
    """
    questions: list[Question] = []
    scored: dict[tuple[str, int], tuple[Record, ...]] = {}
    too_long: list[tuple[str, str, str]] = []
    for each in sets:
        for attack, count, records, shown in _ways(each, attacks, shots, setting.seed):
            choices = tuple(shown for record, shown in zip(records, shown, strict=True) if has_choices(record))
            if choices:
                scored[each.name, count] = choices
            originals = {id(shown): record for record, shown in zip(records, shown, strict=True)}
            planned = plan_attempts(attack, [row for row in shown if not has_choices(row)], setting)
            questions += [Question(each.name, each.role, attack.name, count, originals[id(row)], attempt)
                          for row, attempt in planned.pairs]
            too_long += [(each.name, attack.name, row_id) for row_id, _ in planned.too_long]
    return Plan(tuple(questions), scored, tuple(too_long))


def _ways(each: EvaluationSet, attacks: Sequence[Attack], shots: Sequence[int],
          seed: int) -> Iterator[tuple[Attack, int, Sequence[Record], Sequence[Record]]]:
    """Each way of asking a set: (attack, shots, its rows, its rows as they are shown)."""
    if each.role == ATTACKED_ROLE:
        yield from ((attack, 0, each.records, each.records) for attack in attacks)
        return
    held = hold_shots(each.records, shots, seed) if each.role == "task" and any(shots) else None
    for count in shots if each.role == "task" else (0,):
        records = held.scored if held else each.records
        shown = [with_shots(record, held.solved, count) for record in records] if held and count else records
        yield Attack(NONE, plain), count, records, shown


def ask(model: Any, system: str, questions: Sequence[Question], setting: Setting, known: Mapping[int, Json], *,
        batch_size: int, keep: Callable[[list[Json]], None], progress: Progress) -> dict[int, Json]:
    """Ask a system everything that is not known yet, and keep each batch as soon as it is answered.

    Args:
        model: The system's model.
        system: Its name.
        questions: Of the plan.
        setting: Of the run.
        known: Question number -> its entry, of an earlier run.
        batch_size: Prompts a batch; that of the earlier run.
        keep: Called with the new entries of every batch, before the next one begins.
        progress: Told of every batch.

    Returns:
        Question number -> {system, question, text, tokens, finished}, of all questions.
    """
    answers, chat = dict(known), setting.chat
    prompts = [question.attempt.prompt for question in questions]
    # The plan is that of a run that was never killed, so that every prompt has the neighbours it would have had.
    todo = [batch for batch in plan_batches(prompts, batch_size) if not all(i in known for i in batch)]
    stage = f"answers of the {system} model"
    progress(stage, len(answers), len(questions))
    for numbers, found in generate_batches(
            model, prompts, todo, max_new_tokens=setting.max_new_tokens, pad_id=chat.pad_id, eos_ids=chat.stop_ids,
            decoding=[question.attempt.decoding for question in questions]):
        entries: list[Json] = [{"system": system, "question": i, "text": questions[i].attempt.text(chat, answer.tokens),
                                "tokens": len(answer.tokens), "finished": answer.finished}
                               for i, answer in zip(numbers, found, strict=True) if i not in answers]
        keep(entries)
        answers.update((entry["question"], entry) for entry in entries)
        progress(stage, len(answers), len(questions))
    return answers


def samples_of(questions: Sequence[Question], entries: Mapping[int, Json]) -> list[Sample]:
    """Return the samples of a system, not judged yet, in the order of the questions."""
    return [_sample(question, entries[i]) for i, question in enumerate(questions)]


def _sample(question: Question, entry: Json) -> Sample:
    record, is_task = question.record, question.role in TASKS
    return Sample(entry["system"], question.set, question.role, question.attack, question.attempt.variant, record.id,
                  record.prompt, entry["text"], entry["tokens"], entry["finished"],
                  record.answer if is_task else None, record.category, record.group,
                  correct=task_correct(record.answer or "", entry["text"]) if is_task else None,
                  shots=question.shots)
