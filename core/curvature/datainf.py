"""DataInf (Kwon et al. 2024): the mean of the inverses of g_i g_i' + lambda I in place of the inverse of the mean.

A block is a parameter; its lambda is `damping` times the mean square of its gradients' entries (0.1 there). g_i is the
gradient of row i's summed loss times the number of rows over the number of answer tokens, so that the mean over rows is
the gradient of the mean loss per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..checkpoint.session import LiveModel
from ..losses import AnswerLogits, Loss, row_count, token_losses
from ..params import Params, zeros
from .fisher import RowScores, per_row_gradients


def row_losses_gradients(live: LiveModel, loss: Loss) -> Iterator[RowScores]:
    """Yield, a batch at a time, g_i of a cross-entropy's rows, scaled so that their mean is that of the loss."""
    weight = loss.token_weight * row_count(loss.batches)
    scalar: Callable[[AnswerLogits], Tensor] = lambda out: token_losses(out).sum() * weight  # noqa: E731
    for batch in loss.batches:
        yield per_row_gradients(live, batch, scalar)


def datainf_solve(live: LiveModel, loss: Loss, v: Params, damping: float) -> Params:
    """Return mean_i (g_i g_i' + lambda I)^-1 v, block by block, from two backward passes: squares first, then the sum.

    Args:
        live: The model at the parameters where gradients are taken.
        loss: A cross-entropy over the rows.
        v: The vector.
        damping: lambda as a fraction of the mean square of a block's entries.

    Returns:
        The vector; zero in a block where every gradient is.
    """
    count = row_count(loss.batches)
    squares = dict.fromkeys(v, 0.0)
    for rows in row_losses_gradients(live, loss):
        for name, block in rows.items():
            squares[name] += float(block.double().square().sum())
    lambdas = {name: damping * total / (count * v[name].numel()) for name, total in squares.items()}
    shrunk = zeros(v)
    for rows in row_losses_gradients(live, loss):
        for name, block in rows.items():
            g, part = block.flatten(1), v[name].reshape(-1)
            share = (g @ part) / (lambdas[name] + g.square().sum(1)) / count
            shrunk[name] += (share @ g).view_as(shrunk[name])
    return {name: (part - shrunk[name]) / lambdas[name] if lambdas[name] > 0 else torch.zeros_like(part)
            for name, part in v.items()}
