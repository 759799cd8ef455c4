"""The one loop of all methods that follow gradients: a recipe is its losses and its optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...checkpoint.session import LiveModel, write_params
from ...errors import NumericalError
from ...losses import Loss, answer_logits, answer_tokens, upscale
from ...params import Params, axpy, is_finite, zeros
from ..controls import along, strength_at_drift
from .inputs import Inputs
from .optimisers import OPTIMISERS, Setting
from .weights import start_of

Terms = tuple[tuple[float, Loss], ...]
"""Weights and losses; the first is the method's own safety term, by which points of its path are chosen."""


@dataclass(frozen=True)
class Recipe:
    """What a method descends on, and how.

    Attributes:
        terms: Inputs -> the losses, made with the model at its start.
        optimiser: A row of `OPTIMISERS`.
        whole: One update a pass over all rows; else one for every batch of the shortest term.
    """

    terms: Callable[[Inputs], Terms]
    optimiser: str
    whole: bool = False


@dataclass(frozen=True)
class Waypoint:
    """The end of a pass.

    Attributes:
        params: Parameters there.
        own: The method's own safety term, on all fit rows.
        drift: D on the fit rows, nats per token.
    """

    params: Params
    own: float
    drift: float


@dataclass(frozen=True)
class Path:
    """Where a recipe led.

    Attributes:
        terms: The losses it followed, those of its start.
        points: The start and the end of each pass.
        passes: Gradient passes it took.
    """

    terms: Terms
    points: tuple[Waypoint, ...]
    passes: int


def shuffled_parts(terms: Terms, parts: int, generator: torch.Generator) -> list[list[list[int]]]:
    """Return, for each of `parts` updates and each term, the numbers of its batches: together every batch once."""
    orders = [torch.randperm(len(loss.batches), generator=generator).tolist() for _, loss in terms]
    return [[order[part::parts] for order in orders] for part in range(parts)]


def partial_gradient(live: LiveModel, terms: Terms, picked: Sequence[Sequence[int]]) -> Params:
    """Return the gradient of the weighted sum of losses, estimated from some batches of each.

    A term's batches count for all of them, so that the mean over updates of a pass is the gradient over all rows where
    parts are equal.

    Args:
        live: The model at its present parameters.
        terms: The losses.
        picked: Batch numbers of each term.

    Returns:
        The gradient.

    Raises:
        NumericalError: It is not finite.
    """
    names, leaves = list(live.leaves), list(live.leaves.values())
    found = zeros(dict(live.leaves))
    for (weight, loss), numbers in zip(terms, picked, strict=True):
        factor, up = weight * len(loss.batches) / len(numbers), upscale(answer_tokens(loss.batches))
        for number in numbers:
            share = loss.contribution(number, answer_logits(live.model, loss.batches[number]))
            parts = torch.autograd.grad(share, leaves, torch.full_like(share, up), allow_unused=True,
                                        materialize_grads=True)
            found = axpy(factor / up, dict(zip(names, parts, strict=True)), found)
    if not is_finite(found):
        raise NumericalError("the gradient is not finite", hint="give a smaller --strength")
    return {name: t.detach() for name, t in found.items()}


def trained(inputs: Inputs, recipe: Recipe, rate: float) -> Path:
    """Follow a recipe from the model's parameters for as many passes as the budget of passes holds.

    A path that leaves the numbers that floats have ends there. Every pass is counted, as are those that the optimiser
    takes for its curvature and the forward passes by which waypoints are measured.

    Args:
        inputs: The method's; the model is left wherever the path ends.
        recipe: Losses and optimiser.
        rate: Of the optimiser.

    Returns:
        The path.
    """
    live, start, before = inputs.problem.live, start_of(inputs), inputs.cost.gradient_passes
    terms = recipe.terms(inputs)
    parts = 1 if recipe.whole else min(len(loss.batches) for _, loss in terms)
    step = OPTIMISERS[recipe.optimiser](Setting(inputs, start, parts * inputs.max_passes))
    generator, here = torch.Generator().manual_seed(inputs.seed), start
    points = [_measured(inputs, terms, start)]
    while inputs.cost.gradient_passes - before < inputs.max_passes:
        inputs.progress(f"passes at {rate:g}", inputs.cost.gradient_passes - before, inputs.max_passes)
        inputs.cost.gradient_passes += 1
        try:
            for picked in shuffled_parts(terms, parts, generator):
                here = axpy(1.0, step(partial_gradient(live, terms, picked), rate), here)
                write_params(live, here)
        except NumericalError:
            break
        points.append(_measured(inputs, terms, here))
        if not math.isfinite(points[-1].drift):
            break
    inputs.progress(f"passes at {rate:g}", inputs.max_passes, inputs.max_passes)
    return Path(terms, tuple(points), inputs.cost.gradient_passes - before)


def _measured(inputs: Inputs, terms: Terms, params: Params) -> Waypoint:
    inputs.cost.forward_passes += 1
    model = inputs.problem.live.model
    return Waypoint(params, terms[0][1].value(model), inputs.problem.drift.value(model))


def within_budget(inputs: Inputs, path: Path) -> Waypoint:
    """Return the point that did most by the method's own safety term among those that keep the drift budget.

    Those are the waypoints that keep it and, where the last does not, the last point pulled back toward the waypoint
    that kept it last.

    Args:
        inputs: The budget; the model is moved.
        path: From `trained`.

    Returns:
        The point; the start where nothing did more.
    """
    inside = [point for point in path.points if point.drift <= inputs.max_drift] or [path.points[0]]
    last = next(point for point in reversed(path.points) if math.isfinite(point.drift))
    if last.drift > inputs.max_drift:
        inside.append(_pulled_back(inputs, path.terms, inside[-1], last))
    return min((point for point in inside if math.isfinite(point.own)), key=lambda point: point.own)


def _pulled_back(inputs: Inputs, terms: Terms, inside: Waypoint, outside: Waypoint) -> Waypoint:
    live = inputs.problem.live
    way = along(inside.params, axpy(-1.0, inside.params, outside.params))

    def drift_at(share: float) -> float:
        write_params(live, way(share))
        inputs.cost.forward_passes += 1
        return inputs.problem.drift.value(live.model)

    params = way(strength_at_drift(drift_at, inputs.max_drift, largest=1.0))
    write_params(live, params)
    return _measured(inputs, terms, params)
