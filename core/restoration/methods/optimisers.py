"""Optimisers as rows of one table: each makes a function (gradient, rate) -> change of the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...curvature.diagonal import diagonal_fisher
from ...curvature.kfac import ekfac
from ...losses import Loss, cross_entropy
from ...params import Params, dot, each, norm, scale, zeros
from .inputs import Inputs

Stepper = Callable[[Params, float], Params]
"""(gradient, rate) -> change; it keeps its own moments."""


@dataclass(frozen=True)
class Setting:
    """What an optimiser may look at.

    Attributes:
        inputs: The method's; curvature is taken at the model's present parameters and counted as passes.
        start: Parameters at the first step.
        updates: Updates of the whole run.
    """

    inputs: Inputs
    start: Params
    updates: int


def sgd(_: Setting) -> Stepper:
    """-rate g."""
    return lambda gradient, rate: scale(-rate, gradient)


def normalised(setting: Setting) -> Stepper:
    """-rate |phi_0| g / |g|: the rate is the length of an update in norms of the adapter."""
    size = norm(setting.start)

    def step(gradient: Params, rate: float) -> Params:
        length = norm(gradient)
        return scale(-rate * size / length if length else 0.0, gradient)

    return step


def adamw(setting: Setting, *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8,
          warm_up: float = 0.1) -> Stepper:
    """AdamW (Loshchilov and Hutter 2019) with no decay; the rate rises linearly over the first tenth of the updates.

    No decay: it would pull the adapter toward the base, which is a method of its own (`scale`).

    Returns:
        The stepper.
    """
    first, second, count = zeros(setting.start), zeros(setting.start), 0
    rising = max(1, math.ceil(warm_up * setting.updates))

    def step(gradient: Params, rate: float) -> Params:
        nonlocal first, second, count
        count += 1
        first = each(lambda m, g: torch.lerp(g, m, betas[0]), first, gradient)
        second = each(lambda v, g: betas[1] * v + (1 - betas[1]) * g * g, second, gradient)
        corrected = rate * min(1.0, count / rising) / (1 - betas[0] ** count)
        root = math.sqrt(1 - betas[1] ** count)
        return each(lambda m, v: -corrected * m / (v.sqrt() / root + epsilon), first, second)

    return step


def clipped(momentum: Tensor, curvature: Tensor, gamma: float) -> Tensor:
    """Return Sophia's clip(m / max(gamma h, 1e-12), 1), elementwise."""
    return (momentum / (gamma * curvature).clamp(min=1e-12)).clamp(-1.0, 1.0)


def sophia(setting: Setting, *, betas: tuple[float, float] = (0.965, 0.99), gamma: float = 0.01,
           every: int = 10) -> Stepper:
    """Sophia-G (Liu et al. 2023): momentum over a diagonal Gauss-Newton estimate that is renewed every tenth update.

    The estimate runs over harmful and retained rows with sampled labels, a gradient pass each time.

    Returns:
        The stepper.
    """
    inputs = setting.inputs
    losses: Sequence[Loss] = (cross_entropy("harmful", inputs.data.harmful), inputs.problem.drift)
    momentum, curvature, count = zeros(setting.start), zeros(setting.start), 0

    def step(gradient: Params, rate: float) -> Params:
        nonlocal momentum, curvature, count
        if count % every == 0:
            fresh = diagonal_fisher(inputs.problem.live, losses, seed=inputs.seed + count).f
            inputs.cost.gradient_passes += 1
            curvature = each(lambda h, new: torch.lerp(new, h, betas[1]), curvature, fresh) if count else fresh
        count += 1
        momentum = each(lambda m, g: torch.lerp(g, m, betas[0]), momentum, gradient)
        return each(lambda m, h: -rate * clipped(m, h, gamma), momentum, curvature)

    return step


def gauss_newton(setting: Setting) -> Stepper:
    """-(F + mean F I)^-1 g, F by EK-FAC on the retained rows, of the length that F predicts to drift by `rate`.

    The estimate is made once, by two passes over the retained rows.

    Returns:
        The stepper.
    """
    inputs = setting.inputs
    operator = ekfac(inputs.problem.live, (inputs.problem.drift,), seed=inputs.seed)
    inputs.cost.gradient_passes += 2
    inputs.cost.score_passes += 2

    def step(gradient: Params, rate: float) -> Params:
        solution = operator.solve(gradient, operator.mean_diagonal or 1.0)
        bend = dot(solution.x, solution.image)
        return scale(-math.sqrt(2 * rate / bend) if bend > 0 else 0.0, solution.x)

    return step


OPTIMISERS: dict[str, Callable[[Setting], Stepper]] = {
    "sgd": sgd, "normalised": normalised, "adamw": adamw, "sophia": sophia, "gauss-newton": gauss_newton,
}
