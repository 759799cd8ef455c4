"""Methods that edit the adapter once, with no gradient or one: a function of the inputs gives value -> parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ...curvature.datainf import datainf_solve
from ...curvature.fisher import per_row_gradients
from ...losses import AnswerLogits, Loss, cross_entropy, gradient, token_losses, total
from ...params import Params, axpy, each, norm, scale, zeros
from ..controls import along, random_direction
from .activations import squared_norms
from .inputs import Edit, Edited, Inputs
from .weights import folded, start_of

DATAINF_DAMPING = 0.1


def toward_base(inputs: Inputs) -> Edit:
    """WiSE-FT: the change from the base times 1 - alpha; exact for an adapter, whose B is scaled."""
    start = start_of(inputs)

    def edit(alpha: float) -> Edited:
        if inputs.pair.kind == "lora":
            return Edited({name: t * (1 - alpha) if ".lora_B." in name else t for name, t in start.items()})
        return folded(inputs, start, lambda _, before: before * (1 - alpha) if alpha else before)

    return edit


def random_step(inputs: Inputs) -> Edit:
    """A step along a Gaussian direction, in norms of the adapter: the null control of every method."""
    start = start_of(inputs)
    path = along(start, random_direction(start, inputs.seed))
    return lambda length: Edited(path(length))


def _without_top(before: Tensor, scores: Tensor, share: float) -> Tensor:
    """Return a change with the entries of the highest scores set to zero, `share` of all; itself where that is none."""
    count = round(share * scores.numel())
    if not count:
        return before
    after = before.clone(memory_format=torch.contiguous_format)  # a transposed weight's change is a view across rows
    after.view(-1)[scores.flatten().topk(count).indices] = 0
    return after


def prune_random(inputs: Inputs) -> Edit:
    """Random entries of every module's change from the base taken back; a larger share has those of a smaller."""
    start = start_of(inputs)

    def edit(share: float) -> Edited:
        generator = torch.Generator().manual_seed(inputs.seed)  # the same numbers each time: all are as many as weights
        return folded(inputs, start, lambda _, before: _without_top(
            before, torch.rand(before.shape, generator=generator).to(before.device), share))

    return edit


def antidote(inputs: Inputs) -> Edit:
    """Antidote: take back the entries of the change with the highest Wanda scores |w_ij| |x_j| on harmful rows."""
    start = start_of(inputs)
    norms = {module: t.sqrt() for module, t in squared_norms(inputs.problem.live, inputs.data.harmful).items()}
    inputs.cost.forward_passes += 1
    return lambda share: folded(inputs, start, lambda module, before: _without_top(
        before, before.abs() * norms[module], share))


def _mean_squares(inputs: Inputs, loss: Loss) -> Params:
    """Return the mean over rows of the squared gradient of a row's log-likelihood: the empirical diagonal Fisher."""
    live, found, rows = inputs.problem.live, zeros(start_of(inputs)), 0

    def log_likelihood(out: AnswerLogits) -> Tensor:
        return -token_losses(out).sum()

    for batch in loss.batches:
        blocks = per_row_gradients(live, batch, log_likelihood)
        found = axpy(1.0, {name: block.square().sum(0) for name, block in blocks.items()}, found)
        rows += len(batch.rows)
    return scale(1 / rows, found)


def dampened(start: Params, harmful: Params, retained: Params, alpha: float, most: float = 1.0) -> Params:
    """Return SSD's parameters: theta min(most I_D / I_f, 1) where I_f > alpha I_D, theta elsewhere.

    Args:
        start: theta.
        harmful: I_f, importance for the rows to be forgotten.
        retained: I_D, importance for the rows to be kept.
        alpha: How much more important an entry must be for the former.
        most: lambda of the paper.
    """
    def entry(theta: Tensor, forget: Tensor, keep: Tensor) -> Tensor:
        factor = (most * keep / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(max=1.0)
        return torch.where(forget > alpha * keep, theta * factor, theta)

    return each(entry, start, harmful, retained)


def ssd(inputs: Inputs) -> Edit:
    """Selective synaptic dampening of adapter entries that matter more for harmful answers than for retained ones."""
    start = start_of(inputs)
    harmful = _mean_squares(inputs, cross_entropy("harmful", inputs.data.harmful))
    retained = _mean_squares(inputs, inputs.problem.drift)
    inputs.cost.gradient_passes += 1
    return lambda alpha: Edited(dampened(start, harmful, retained, alpha))


def datainf(inputs: Inputs) -> Edit:
    """One influence-function step -(F + lambda I)^-1 grad S by DataInf, its length in norms of the adapter."""
    start, live = start_of(inputs), inputs.problem.live
    slope = gradient(live, total("S", inputs.problem.safety))[1]
    direction = datainf_solve(live, cross_entropy("retained", inputs.problem.drift.batches), slope, DATAINF_DAMPING)
    # The gradient and two passes over the retain rows for the inverse.
    inputs.cost.gradient_passes += 3
    inputs.cost.score_passes += 2
    size = norm(direction)
    path = along(start, scale(-norm(start) / size, direction) if size else direction)
    return lambda length: Edited(path(length))
