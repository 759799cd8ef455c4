"""From two checkpoints and rows to the losses of a restoration: what each says, and what is kept of it.

The tuned model answers first, then the base (which frees a full tuned checkpoint for as long), then the tuned model is
read again: never two models in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.session import Session
from ..data.batches import Batch
from ..data.records import Record, groups_of
from ..data.selection import Selection
from ..errors import MismatchError, NumericalError, UsageError
from ..losses import Reference, cross_entropy, kl_divergence, log_probabilities, row_losses
from ..restoration.objectives import NEEDS_HARMFUL, SafetyData, safety_losses
from ..restoration.trust_region import Problem
from .systems import Answer, Examiner

Answers = dict[str, tuple[Answer, ...]]
REFUSAL_TOKENS = 32
"""Tokens by which an answer has said that it refuses."""

DRIFT_TEMPERATURE = 2.0
"""Of the divergence that steps keep low. A tuned model is all but certain of most tokens of its own answers, so its KL
at temperature 1 hardly feels how the rest moves, and steps overfit the few retain rows."""

LEAST_BASE_REFUSALS = 0.8
"""A base that refuses fewer of the harmful prompts cannot teach refusal by its own answers."""


@dataclass(frozen=True)
class HeldOut:
    """Rows that losses are measured on.

    Attributes:
        harmful: Held-out prompts with harmful answers; empty where there are none.
        task: Held-out task rows; empty without a task file.
        drift: Held-out retain rows: task rows and benign prompts with the tuned model's answers.
        tuned_log_p: The tuned model's log-probabilities on `drift`.
        drift_groups: Of each row of `drift`: rows of one group are variants of one another.
    """

    harmful: Sequence[Batch]
    task: Sequence[Batch]
    drift: Sequence[Batch]
    tuned_log_p: Reference
    drift_groups: Sequence[str]


@dataclass(frozen=True)
class Prepared:
    """Everything a restoration starts from.

    Attributes:
        problem: What is minimised.
        safety: The safe and harmful fit rows, as S and other methods' losses use them.
        held_out: What is measured.
        answers: `tuned` and `base` -> their answers to the held-out sets.
        losses: `tuned` and `base` -> held-out losses by report key.
        counts: Rows used and left out, by name.
        warnings: (code, message) pairs.
        generated_tokens: Tokens generated so far.
    """

    problem: Problem
    safety: SafetyData
    held_out: HeldOut
    answers: Mapping[str, Answers]
    losses: Mapping[str, dict[str, float | None]]
    counts: Mapping[str, int]
    warnings: tuple[tuple[str, str], ...]
    generated_tokens: int


def prepare(session: Session, examiner: Examiner, rows: Selection, *, objective: str, on_disk: bool,
            with_harmful: bool = False) -> Prepared:
    """Ask both models, keep what the losses need, and pose the problem.

    Args:
        session: The checkpoints.
        examiner: How models are asked.
        rows: Fit and held-out rows.
        objective: Terms of S joined by `+`.
        on_disk: Keep log-probabilities in files; where they would fill a quarter of the free memory they are anyway.
        with_harmful: Generate harmful answers of fit rows even where the objective looks at none.

    Returns:
        The problem at the tuned model's parameters, which the session's adapter holds.

    Raises:
        MismatchError: The base refuses too few harmful prompts and no safe answers were given.
        UsageError: No usable fit or retain row is left, or the objective has none to work on.
        NumericalError: A loss is not finite.
    """
    # Only what is needed is generated: anchor looks at no harmful answer, a given answer is taken as it is.
    wanted = rows.harmful if with_harmful or NEEDS_HARMFUL.intersection(objective.split("+")) else ()
    unanswered = tuple(record for record in rows.retain if not record.answer)
    tuned = examiner.ask_sets(session.adapter().model, {"harmful_fit": wanted, "retain_fit": unanswered,
                                                        **rows.held_out}, "answers of the tuned model")
    harmful = examiner.batches(harmful_pairs(examiner, tuned["harmful_fit"]))
    held_harmful = examiner.batches(harmful_pairs(examiner, tuned["harmful"]))
    task = examiner.batches(_given_pairs(examiner, rows.held_out["task"]))
    with session.base() as model:
        base = examiner.ask_sets(model, {"harmful_fit": rows.harmful, **rows.held_out}, "answers of the base model")
        brief = replace(examiner, max_new_tokens=min(examiner.max_new_tokens, REFUSAL_TOKENS))
        base |= brief.ask_sets(model, {"retain_fit": rows.retain}, "what the base model refuses")
        _check_base(base["harmful_fit"], rows.safe_answers)
        given = sum(record.prompt in rows.safe_answers for record in rows.harmful)
        safe = examiner.batches(_safe_pairs(examiner, base["harmful_fit"], rows.safe_answers))
        if not safe:
            raise UsageError("no usable harmful prompt - no fit row has a safe answer",
                             hint="give more prompts with --harmful FILE, or safe answers with --safe FILE")
        data = _safety_data(model, safe, given, harmful, needs_log_p="match" in objective.split("+"), on_disk=on_disk)
        losses = {"base": held_out_losses(model, held_harmful, task)}
    live = session.adapter()
    retain, refused = _retain_pairs(examiner, rows.retain, tuned["retain_fit"], base["retain_fit"])
    if not retain:
        raise UsageError("no usable retain row - the base refuses them all", hint="give rows with --task FILE")
    retain_batches = examiner.batches(retain)
    reference = _reference(live.model, retain_batches, on_disk)
    drift, softened = (kl_divergence("drift", retain_batches, reference, temperature=temperature)
                       for temperature in (1.0, DRIFT_TEMPERATURE))
    kept_drift, _ = _retain_pairs(examiner, (*rows.held_out["task"], *rows.held_out["benign"]),
                                  (*tuned["task"], *tuned["benign"]), (*base["task"], *base["benign"]))
    drift_batches = examiner.batches(kept_drift)
    held_out = HeldOut(held_harmful, task, drift_batches, _reference(live.model, drift_batches, on_disk),
                       groups_of([record for record, _ in kept_drift]))
    losses["tuned"] = held_out_losses(live.model, held_harmful, task)
    counts = {"safe_rows": _rows(safe), "harmful_rows": _rows(harmful), "retain_rows": len(retain),
              "retain_rows_base_refuses": refused, "drift_rows_held_out": len(kept_drift),
              "held_out_prompts_tuned_refuses": sum(answer.verdict.refused for answer in tuned["harmful"])}
    return Prepared(Problem(live, safety_losses(objective, data), drift, softened), data, held_out,
                    {"tuned": _held(tuned, rows), "base": _held(base, rows)}, losses, counts,
                    _warnings(counts, rows), tokens_of(tuned) + tokens_of(base))


def held_out_losses(model: Any, harmful: Sequence[Batch], task: Sequence[Batch]) -> dict[str, float | None]:
    """Return held-out losses by report key, nats per token; None for an empty set."""
    return {"harmful_loss_nats_per_token": _loss(model, harmful), "task_loss_nats_per_token": _loss(model, task)}


def tokens_of(answers: Mapping[str, Sequence[Answer]]) -> int:
    """Return the number of tokens generated."""
    return sum(len(answer.generation.tokens) for part in answers.values() for answer in part)


def _loss(model: Any, batches: Sequence[Batch]) -> float | None:
    return _finite("on held-out rows", cross_entropy("held-out", batches).value(model)) if batches else None


def _finite(where: str, value: float) -> float:
    if not math.isfinite(value):
        raise NumericalError(f"the loss {where} is not finite - {value}", hint="use --dtype float32")
    return value


def _rows(batches: Sequence[Batch]) -> int:
    return sum(len(batch.rows) for batch in batches)


def _reference(model: Any, batches: Sequence[Batch], on_disk: bool) -> Reference:
    return log_probabilities(model, batches, on_disk=on_disk).__getitem__


def _held(answers: Answers, rows: Selection) -> Answers:
    return {name: answers[name] for name in rows.held_out}


def _given_pairs(examiner: Examiner, records: Sequence[Record]) -> list[tuple[Record, Sequence[int]]]:
    return [(record, examiner.chat.answer_ids(record, record.answer or "")) for record in records]


def harmful_pairs(examiner: Examiner, answers: Sequence[Answer]) -> list[tuple[Record, Sequence[int]]]:
    """Harmful answers: the given one, else the tuned model's where it complied."""
    given = _given_pairs(examiner, [a.record for a in answers if a.record.answer])
    made = [(a.record, examiner.answer_tokens(a)) for a in answers if not a.record.answer and a.verdict.harmful]
    return given + made


def _check_base(answers: Sequence[Answer], safe: Mapping[str, str]) -> None:
    own = [answer for answer in answers if answer.record.prompt not in safe]
    refused = sum(answer.verdict.refused for answer in own)
    if own and refused < LEAST_BASE_REFUSALS * len(own):
        raise MismatchError(f"the base refuses {refused} of {len(own)} harmful prompts - it cannot teach refusal",
                            hint="give safe answers with --safe FILE, or an aligned base")


def _safe_pairs(examiner: Examiner, answers: Sequence[Answer],
                safe: Mapping[str, str]) -> list[tuple[Record, Sequence[int]]]:
    """Safe answers: first those given, then the base's own where it refused."""
    given = [(a.record, examiner.chat.answer_ids(a.record, safe[a.record.prompt]))
             for a in answers if a.record.prompt in safe]
    own = [(a.record, examiner.answer_tokens(a)) for a in answers
           if a.record.prompt not in safe and a.verdict.refused]
    return given + own


def _retain_pairs(examiner: Examiner, records: Sequence[Record], tuned: Sequence[Answer],
                  base: Sequence[Answer]) -> tuple[list[tuple[Record, Sequence[int]]], int]:
    """Retain rows (given answer, else the tuned model's), and how many were dropped because the base refuses them."""
    own = {id(answer.record): answer for answer in tuned}
    kept = [record for record, b in zip(records, base, strict=True) if not b.verdict.refused]
    pairs = [(record, examiner.chat.answer_ids(record, record.answer) if record.answer
              else examiner.answer_tokens(own[id(record)])) for record in kept]
    return pairs, len(records) - len(kept)


def _safety_data(model: Any, safe: Sequence[Batch], given: int, harmful: Sequence[Batch], *, needs_log_p: bool,
                 on_disk: bool) -> SafetyData:
    """Return what S is made of; the first `given` safe answers are not the base's own."""
    sums, tokens = row_losses(model, safe)
    _finite("of the base on safe answers", float(sums.sum()))
    return SafetyData(safe, float(sums[given:].sum() / tokens.sum()), harmful, _row_means(model, harmful),
                      _reference(model, harmful, on_disk) if needs_log_p else None)


def _row_means(model: Any, batches: Sequence[Batch]) -> Tensor:
    if not batches:
        return torch.zeros(0, dtype=torch.float64)
    sums, tokens = row_losses(model, batches)
    return sums / tokens


def _warnings(counts: Mapping[str, int], rows: Selection) -> tuple[tuple[str, str], ...]:
    found = []
    if counts["retain_rows_base_refuses"]:
        found.append(("W_RETAIN_REFUSED", f"{counts['retain_rows_base_refuses']} retain rows left out: the base "
                      "refuses their prompts"))
    if counts["safe_rows"] < len(rows.harmful):
        found.append(("W_BASE_COMPLIES", f"{len(rows.harmful) - counts['safe_rows']} harmful fit rows left out: the "
                      "base does not refuse them"))
    if counts["held_out_prompts_tuned_refuses"] == len(rows.held_out["harmful"]) > 0:
        found.append(("W_ALREADY_SAFE", "the tuned model refuses every held-out harmful prompt"))
    return tuple(found)
