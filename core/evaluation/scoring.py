"""Which modules, and which training rows, cost safety: the measurements of `score`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from ..checkpoint.session import LiveModel, Session
from ..config import Progress, ScoreConfig
from ..curvature.fisher import fisher
from ..data.batches import Batch, Row, make_batches
from ..data.chat import chat_format
from ..data.selection import Selection
from ..errors import NumericalError, UsageError
from ..influence.modules import LEADING, ModuleInfluence, inside_share, own_steps
from ..influence.point import HALVINGS, Point, where_safety_is_lost
from ..influence.queries import QUERIES, Query, QueryInputs
from ..influence.rows import Derivative, choose_derivative, row_sums
from ..losses import Loss, cross_entropy, gradient, row_losses, total
from ..params import axpy, is_finite, norm, size
from ..restoration.modules import changes, module_of
from ..restoration.trust_region import Problem
from .preparation import Prepared, prepare
from .systems import Examiner
from .training_rows import TrainingRows, evenly

Json = dict[str, Any]
CHUNK = 256
"""Rows between two entries in the journal: two moves of the parameters, and what a kill may cost."""
LEARNT_ON = 64
"""Rows on which tuned and base are compared to see whether the file is the one trained on."""


@dataclass(frozen=True)
class ScoredModules:
    """What modules carry.

    Attributes:
        safety: S, nats per token, and the base's own value of its terms where they have one.
        target: Of the base; None where a term has none.
        modules: The largest gain first.
        update_shares: Module -> share of its own step in the squared weight change of all.
        inside: Share of grad S in the leading curvature of the drift over all modules.
        inside_random: The same of a random direction.
    """

    safety: float
    target: float | None
    modules: tuple[ModuleInfluence, ...]
    update_shares: Mapping[str, float]
    inside: float
    inside_random: float


@dataclass(frozen=True)
class ScoredRows:
    """What rows did.

    Attributes:
        query: The query along which losses were differentiated.
        derivative: How.
        influences: Row -> I(z)/N, nats per token: the predicted rise of S by training on it.
        entries: Row -> what was measured of it.
        point: Where rows were scored.
        tuned_loss: Of the tuned model on some rows, nats per token; None where it is finite on none.
        base_loss: Of the base on the same.
    """

    query: Query
    derivative: Derivative
    influences: Mapping[int, float]
    entries: Mapping[int, Json]
    point: Point
    tuned_loss: float | None
    base_loss: float | None


def score_examiner(session: Session, config: ScoreConfig, progress: Progress) -> Examiner:
    """Return how both models are asked; loads the tuned model."""
    chat = chat_format(session.tokenizer, config.chat_template, config.system_prompt)
    text_config = session.adapter().model.config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", None) or 2048
    return Examiner(chat, min(config.max_new_tokens, context // 2), config.batch_size, context, progress)


def prepare_score(session: Session, examiner: Examiner, rows: Selection, config: ScoreConfig) -> Prepared:
    """Ask both models the fit rows alone: a score has no held-out result.

    Returns:
        S and the drift. Errors are those of `preparation.prepare`.
    """
    alone = dataclasses.replace(rows, held_out=dict.fromkeys(rows.held_out, ()))
    return prepare(session, examiner, alone, objective=config.objective, on_disk=config.low_memory)


def score_modules(problem: Problem, config: ScoreConfig) -> ScoredModules:
    """Measure every module's own damped step at the tuned model, by the curvature of the drift on retain rows.

    Args:
        problem: S and the drift.
        config: Seed and the drift that steps may spend.

    Returns:
        The modules.

    Raises:
        UsageError: The curvature or the safety gradient is zero.
    """
    live = problem.live
    value, g = gradient(live, total("S", problem.safety))
    operator = fisher(live, (problem.drift,), seed=config.seed, on_disk=config.low_memory)
    owned: dict[str, list[str]] = {}
    for name in live.leaves:
        owned.setdefault(module_of(name), []).append(name)
    damping = operator.mean_diagonal
    if not damping > 0 or norm(g) == 0:
        raise UsageError("no curvature or no safety gradient - nothing to attribute",
                         hint="give other rows with --harmful or --task")
    modules, steps = own_steps(operator, g, damping, config.max_drift, modules=owned)
    start = {name: leaf.detach() for name, leaf in live.leaves.items()}
    moved = changes(start, axpy(1.0, steps, start))
    whole = sum(moved.values()) or 1.0
    targets = [loss.target for loss in problem.safety]
    known = None if None in targets else float(sum(t for t in targets if t is not None))
    return ScoredModules(value, known, tuple(modules), {m: part / whole for m, part in moved.items()},
                         inside_share(operator, g), min(1.0, min(LEADING, len(operator.values)) / size(g)))


def score_rows(session: Session, safety: Sequence[Loss], training: TrainingRows, config: ScoreConfig, *,
               pad_id: int, done: Iterable[Mapping[str, Any]], keep: Callable[[list[Json]], None],
               progress: Progress) -> ScoredRows:
    """Take the derivative of every training row's loss along one query, at the point of `config.at`.

    Args:
        session: Both models; the tuned one is moved toward the base while rows are scored.
        safety: Terms of S.
        training: The rows.
        config: How.
        pad_id: Of batches.
        done: Entries of an earlier run, which are not measured again.
        keep: Called with the entries of every chunk.
        progress: Told of every chunk.

    Returns:
        The scores.
    """
    sample = make_batches(evenly(training.rows, LEARNT_ON), batch_size=config.batch_size, pad_id=pad_id)
    tuned_loss = _mean_loss(session.adapter().model, sample)
    with session.base() as model:
        base_loss = _mean_loss(model, sample)
    session.adapter()
    point = Point(config.point) if config.point is not None else safety_point(session, safety, progress)
    with session.blend(1 - point.at) as live:
        query = make_query(live, safety, training, config, pad_id)
        derivative = choose_derivative(live, sample[len(sample) // 2], query.u)
        entries = {int(entry["row"]): dict(entry) for entry in done}
        left = [row for row in training.rows if row.index not in entries]
        for first in range(0, len(left), CHUNK):
            progress("rows", len(entries), len(training.rows))
            found = _chunk(live, left[first:first + CHUNK], query, derivative, config, pad_id)
            keep(found)
            entries |= {entry["row"]: entry for entry in found}
    progress("rows", len(training.rows), len(training.rows))
    influences = {row: -entry["derivative"] / training.answer_tokens for row, entry in entries.items()
                  if entry["derivative"] is not None}
    return ScoredRows(query, derivative, influences, entries, point, tuned_loss, base_loss)


def safety_point(session: Session, safety: Sequence[Loss], progress: Progress) -> Point:
    """Return where safety begins to be lost between the models of a session.

    Args:
        session: Both models.
        safety: Terms of S.
        progress: Told of every look.

    Raises:
        NumericalError: S is not finite at a point between them.
    """
    looks = count(1)

    def value(at: float) -> float:
        with session.blend(1 - at) as live:
            found = sum(loss.value(live.model) for loss in safety)
        if not math.isfinite(found):
            raise NumericalError(f"S is not finite at {at:g} of the way from the base - --at auto",
                                 hint="use --dtype float32, or name a point with --at")
        progress("where safety is lost", next(looks), HALVINGS + 2)
        return found

    return where_safety_is_lost(value)


def make_query(live: LiveModel, safety: Sequence[Loss], training: TrainingRows, config: ScoreConfig,
               pad_id: int) -> Query:
    """Return (F + lambda I)^-1 grad S at the model's present parameters, F of a sample of the training rows.

    Args:
        live: The model.
        safety: Terms of S.
        training: The rows.
        config: The way, its damping and the size of the sample.
        pad_id: Of batches.

    Returns:
        The query.

    Raises:
        NumericalError: It is not finite, or no row of the sample has a finite loss.
    """
    rows = evenly(training.rows, config.curvature_rows)
    sums, _ = row_losses(live.model, make_batches(rows, batch_size=config.batch_size, pad_id=pad_id))
    # The others are listed when they are scored.
    finite = [row for row in rows if math.isfinite(float(sums[row.index]))]
    if not finite:
        raise NumericalError("no training row has a finite loss - --train", hint="use --dtype float32")
    batches = make_batches(evenly(finite, len(finite)), batch_size=config.batch_size, pad_id=pad_id)
    _, g = gradient(live, total("S", safety))
    query = QUERIES[config.way](QueryInputs(live, g, cross_entropy("training", batches), config.damping, config.seed,
                                            config.low_memory))
    if not is_finite(query.u):
        raise NumericalError(f"the query is not finite - --way {config.way}",
                             hint="use --dtype float32, a larger --damping, or --way identity")
    return query


def _mean_loss(model: Any, batches: Sequence[Batch]) -> float | None:
    """Return the mean loss over rows where it is finite, nats per token; None where it is so for none."""
    sums, tokens = row_losses(model, batches)
    finite = torch.isfinite(sums)
    return float(sums[finite].sum() / tokens[finite].sum()) if bool(finite.any()) else None


def _chunk(live: LiveModel, rows: Sequence[Row], query: Query, derivative: Derivative, config: ScoreConfig,
           pad_id: int) -> list[Json]:
    numbered = [Row(number, row.prompt, row.answer) for number, row in enumerate(rows)]
    found = derivative(live, make_batches(numbered, batch_size=config.batch_size, pad_id=pad_id), query.u)
    losses, derivatives, _ = row_sums(found, torch.arange(len(rows)))
    entries = []
    for number, row in enumerate(rows):
        finite = math.isfinite(float(losses[number])) and math.isfinite(float(derivatives[number]))
        entry: Json = {"row": row.index, "tokens": len(row.answer), "loss": float(losses[number]) if finite else None,
                       "derivative": float(derivatives[number]) if finite else None}
        if config.per_token and finite:
            entry["token_derivatives"] = found.derivatives[found.rows == number].tolist()
        entries.append(entry)
    return entries

