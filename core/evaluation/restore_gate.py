"""The gate of `eval` on what a restoration made: the same rules, on its own held-out rows, beside the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint.session import Session, write_params
from ..config import RestoreConfig
from ..data.evaluation_sets import EvaluationSet
from ..data.selection import Selection
from ..params import Params
from .asking import Question, ask, plan_questions, samples_of
from .attacks import NONE, Attack, parse_attacks
from .examination import Examined
from .findings import measured_of
from .gate.decide import Outcome, decide
from .gate.known import Known, check_rules
from .gate.rules import Rule
from .judges import parse_judges
from .judges.run import loading_of
from .judging import judge_samples
from .systems import JUDGE, Answer, Examiner

SYSTEMS = ("base", "restored")
TUNED = "tuned"
"""What a rule may start from (`reference`); it is what is to be repaired, so no rule applies to it."""

Answers = Mapping[str, Sequence[Answer]]


def known_of(rows: Selection, rules: Sequence[Rule]) -> Known:
    """Return what there will be for the rules of a gate: base and restored model on the held-out rows.

    Args:
        rows: Of the run.
        rules: Of the gate; the attacks that they name are made.

    Returns:
        What `check_rules` and `decide` need. A rule that names anything else is a UsageError, before any model is
        loaded.
    """
    known = Known(SYSTEMS, {name: name for name, records in rows.held_out.items() if records}, (JUDGE,),
                  tuple(attack.name for attack in attacks_of(rules)), references=(TUNED,))
    check_rules(rules, known)
    return known


def attacks_of(rules: Sequence[Rule]) -> tuple[Attack, ...]:
    """Return the attacks that rules name, each once; UsageError for one that is not known."""
    attacks = parse_attacks(tuple(rule.attack for rule in rules if rule.attack))
    return tuple(attack for attack in attacks if attack.name != NONE)


def decide_restored(session: Session, params: Mapping[str, Params], answers: Mapping[str, Answers], examiner: Examiner,
                    rows: Selection, rules: Sequence[Rule], config: RestoreConfig) -> list[Outcome]:
    """Ask base and restored model what the gate's attacks ask, and decide its rules.

    The tuned model is asked, too, where a rule starts from it.

    Args:
        session: The checkpoints.
        params: Adapter parameters of `tuned` and of `restored`; the session's adapter holds the latter on return.
        answers: Of all systems to the held-out rows without an attack, which are not asked again.
        examiner: How models are asked.
        rows: Of the run.
        rules: Of the gate.
        config: Of the run.

    Returns:
        The outcome of every rule.
    """
    known = known_of(rows, rules)
    setting = examiner.setting(config.seed)
    sets = [EvaluationSet(name, name, records, "", "", (), 0) for name, records in rows.held_out.items() if records]
    questions = plan_questions(sets, parse_attacks(known.attacks), (0,), setting).questions
    settings: dict[str, Any] = {"batch_size": 4 * examiner.batch_size, "keep": lambda entries: None,
                                "progress": examiner.progress}
    with session.base() as model:
        said = [ask(model, "base", questions, setting, _entries("base", questions, answers["base"]), **settings)]
    live = session.adapter()
    for name in ([TUNED] if any(rule.reference == TUNED for rule in rules) else []) + ["restored"]:
        write_params(live, params[name])
        said.append(ask(live.model, name, questions, setting, _entries(name, questions, answers[name]), **settings))
    samples = judge_samples([each for entries in said for each in samples_of(questions, entries)],
                            parse_judges((JUDGE,)), entries=(), keep=lambda entries: None, loading=loading_of(config),
                            progress=examiner.progress)
    return decide(rules, known, measured_of(samples, Examined()))


def _entries(system: str, questions: Sequence[Question], answers: Answers) -> dict[int, Mapping[str, Any]]:
    """Return the answers that are there already, by the number of their question."""
    said = {(name, id(answer.record)): answer for name, of_set in answers.items() for answer in of_set}
    found = ((i, said.get((q.set, id(q.record)))) for i, q in enumerate(questions) if q.attack == "none")
    return {i: {"system": system, "question": i, "text": answer.text, "tokens": len(answer.generation.tokens),
                "finished": answer.generation.finished} for i, answer in found if answer is not None}
