"""What training on each row did to S: one derivative of the row's loss along one query, no per-row gradient kept.

The derivative of every answer token's loss along u comes from two forward passes, at phi + h u and phi - h u, which
work under any attention and give it token by token. The error of such a difference is of the order h^2 plus rounding
over h, so h is chosen on one batch against forward mode, which is exact; where no h comes near, forward mode does all.
Where a model has none, as with custom functions of experts, h is chosen against gradients of rows, which are as exact,
but not by token. The passes leave out what the losses of answers do not need (`quick`), where that comes as near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from ..checkpoint.session import LiveModel, read_params, write_params
from ..curvature.fisher import per_row_gradients, use_row_gradients
from ..data.batches import Batch
from ..errors import MismatchError
from ..losses import AnswerLogits, answer_logits, row_count, token_losses
from ..params import Params, axpy, norm
from .quick import is_mergeable, merged, quick_passes

STEPS = tuple(10.0 ** -(power / 2) for power in range(2, 13))
"""Lengths |h u| / |phi| tried: 0.1 down to 1e-6."""

GOOD_ENOUGH = 0.01
"""Relative error on the batch of the choice above which differences are not used."""

NEAR = 0.001
"""Relative error up to which quick passes are used without a look at whole ones."""


@dataclass(frozen=True)
class TokenDerivatives:
    """Every answer token of some rows.

    Attributes:
        rows: [N], the row each belongs to.
        places: [N], its number within the row's answer.
        losses: [N], -log p(token), nats, float64.
        derivatives: [N], the derivative of that along u, float64.
    """

    rows: Tensor
    places: Tensor
    losses: Tensor
    derivatives: Tensor


@torch.no_grad()
def _losses(live: LiveModel, batches: Sequence[Batch], *, quick: bool, fold: bool) -> tuple[Tensor, Tensor]:
    """Return (row, loss) of every answer token, the adapter folded into the weights where `fold` says so."""
    rows, losses = [], []
    with merged(live) if fold else nullcontext():
        passes = quick_passes(live, batches) if quick else None
        for batch in batches:
            out = passes.answer_logits(batch) if passes is not None else answer_logits(live.model, batch)
            rows.append(out.rows.cpu())
            losses.append(token_losses(out).double().cpu())
    return torch.cat(rows), torch.cat(losses)


def by_difference(live: LiveModel, batches: Sequence[Batch], u: Params, length: float, *,
                  quick: bool = False) -> TokenDerivatives:
    """Return token derivatives from two forward passes.

    Args:
        live: The model; its parameters are moved and put back bit for bit.
        batches: The rows.
        u: The query.
        length: |h u| / |phi|; 0 for a query of zero.
        quick: Leave out of the passes what answers do not need; see `quick`. On a model of another build than it
            knows this can be wrong or raise.
    """
    # Once for both ends: they have to round alike.
    fold = quick and is_mergeable(live)
    start = read_params(live)
    h = length * norm(start) / norm(u) if length else 0.0
    try:
        write_params(live, axpy(h, u, start))
        rows, above = _losses(live, batches, quick=quick, fold=fold)
        write_params(live, axpy(-h, u, start))
        _, below = _losses(live, batches, quick=quick, fold=fold)
    finally:
        write_params(live, start)
    derivatives = (above - below) / (2 * h) if h else torch.zeros_like(above)
    return TokenDerivatives(rows, _places(rows), (above + below) / 2, derivatives)


def _places(rows: Tensor) -> Tensor:
    """Number each row's tokens from 0; they stand together and in order."""
    first = torch.cat([torch.tensor([True]), rows[1:] != rows[:-1]])
    at = torch.arange(len(rows))
    return at - torch.cummax(torch.where(first, at, torch.zeros_like(at)), 0).values


class _TokenLosses(nn.Module):
    """The token losses of a batch as a module, so that `functional_call` can put other parameters in its place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        out = answer_logits(self.model, batch)
        log_p = torch.log_softmax(out.logits, dim=-1)
        return out.rows, -log_p.gather(1, out.labels.unsqueeze(1)).squeeze(1)


def by_forward_mode(live: LiveModel, batches: Sequence[Batch], u: Params) -> TokenDerivatives:
    """Return exact token derivatives by forward-mode differentiation; needs eager attention.

    Args:
        live: The model at its present parameters.
        batches: The rows.
        u: The query.
    """
    full_name = {id(parameter): f"model.{name}" for name, parameter in live.model.named_parameters()}
    module = _TokenLosses(live.model)
    rows, losses, derivatives = [], [], []
    with torch.no_grad(), forward_ad.dual_level():
        placed = {full_name[id(leaf)]: forward_ad.make_dual(leaf.detach(), u[name].to(leaf))
                  for name, leaf in live.leaves.items()}
        for batch in batches:
            owner, dual = functional_call(module, placed, (batch,))
            primal, tangent = forward_ad.unpack_dual(dual)
            rows.append(owner.cpu())
            losses.append(primal.double().cpu())
            derivatives.append((torch.zeros_like(primal) if tangent is None else tangent).double().cpu())
    owners = torch.cat(rows)
    return TokenDerivatives(owners, _places(owners), torch.cat(losses), torch.cat(derivatives))


@dataclass(frozen=True)
class Derivative:
    """How derivatives are taken in a run.

    Attributes:
        length: |h u| / |phi| of differences; None for forward mode.
        relative_error: Against what is exact on the batch of the choice; 0 for forward mode itself.
        quick: Whether the passes of a difference leave out what answers do not need.
    """

    length: float | None
    relative_error: float
    quick: bool = False

    def __call__(self, live: LiveModel, batches: Sequence[Batch], u: Params) -> TokenDerivatives:
        """Return the token derivatives of some rows."""
        if self.length is None:
            return by_forward_mode(live, batches, u)
        return by_difference(live, batches, u, self.length, quick=self.quick)


def choose_derivative(live: LiveModel, batch: Batch, u: Params) -> Derivative:
    """Return the difference that comes nearest to forward mode on one batch, or forward mode where none is near.

    Quick passes are preferred unless they lose accuracy. Where the model has no forward mode the nearest to gradients
    of rows is taken.

    Args:
        live: The model at the parameters at which rows are scored.
        batch: Some of the rows.
        u: The query.

    Raises:
        MismatchError: No difference is near, and the model has no forward mode.
    """
    if norm(u) == 0:
        return Derivative(0.0, 0.0)
    if norm(read_params(live)) == 0:
        return Derivative(None, 0.0)
    try:
        exact, lacks = row_sums(by_forward_mode(live, [batch], u), batch.rows)[1], None
    except (RuntimeError, TypeError) as error:  # NotImplementedError is one, too
        exact, lacks = gradients_along(live, batch, u), error
    try:
        best = _nearest(live, batch, u, exact, quick=True)
    except (RuntimeError, TypeError, AttributeError, LookupError):  # blocks or caches of another build, or no memory
        best = Derivative(None, math.inf)
    if not best.relative_error <= NEAR:
        whole = _nearest(live, batch, u, exact, quick=False)
        best = best if best.relative_error <= 2 * whole.relative_error else whole
    if best.relative_error <= GOOD_ENOUGH:
        return best
    if lacks is not None:
        raise MismatchError(f"no difference of losses is within {GOOD_ENOUGH:.0%} of their derivative, and the model "
                            f"has no forward mode - {type(lacks).__name__}", hint="use --dtype float32") from lacks
    return Derivative(None, 0.0)


def gradients_along(live: LiveModel, batch: Batch, u: Params) -> Tensor:
    """Return the derivative of each row's summed loss along u [B], float64: one backward pass, no gradient kept."""
    sums = torch.zeros(len(batch.rows), dtype=torch.float64)

    def add(name: str, block: Tensor) -> None:
        sums.add_((block.double() * u[name].to(block.device, torch.float64)).flatten(1).sum(1).cpu())

    use_row_gradients(live, batch, lambda out: token_losses(out).sum(), add)
    return sums


def _nearest(live: LiveModel, batch: Batch, u: Params, exact: Tensor, *, quick: bool) -> Derivative:
    """The difference of the least error against the exact derivatives of a batch's rows."""
    errors = {}
    for length in STEPS:
        found = row_sums(by_difference(live, [batch], u, length, quick=quick), batch.rows)[1]
        errors[length] = float((found - exact).norm() / exact.norm().clamp(min=1e-300))
    best = min(errors, key=lambda length: errors[length])
    return Derivative(best, errors[best], quick)


def row_sums(found: TokenDerivatives, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses, derivatives and answer tokens of some rows, sums over their tokens, in the order of `rows`."""
    place = torch.zeros(int(rows.max()) + 1, dtype=torch.long)
    place[rows.cpu()] = torch.arange(len(rows))
    sums = torch.zeros(3, len(rows), dtype=torch.float64)
    parts = torch.stack([found.losses, found.derivatives, torch.ones_like(found.losses)])
    return tuple(sums.index_add_(1, place[found.rows], parts))  # type: ignore[return-value]


def gradient_norms(live: LiveModel, batches: Sequence[Batch]) -> Tensor:
    """Return |grad of a row's summed loss| [rows], float64: one backward pass, no gradient kept."""
    squares = torch.zeros(row_count(batches), dtype=torch.float64)
    scalar: Callable[[AnswerLogits], Tensor] = lambda out: token_losses(out).sum()  # noqa: E731
    for batch in batches:
        for block in per_row_gradients(live, batch, scalar).values():
            squares.index_add_(0, batch.rows.cpu(), block.double().square().flatten(1).sum(1).cpu())
    return squares.sqrt()
