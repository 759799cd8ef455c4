"""Exact products with the generalised Gauss-Newton matrix, by double reverse mode.

G = sum over answer tokens of w J'(diag p - p p')J with J the derivative of the token's logits (Schraudolph 2002). J'u
is linear in u, so differentiating <J'u, v> by u gives J v with reverse mode alone. Where the graph of J'u is kept, a
product needs two backward passes and no forward: it costs about one gradient and works under any module, while
forward mode costs about three. It needs `attn_implementation="eager"`: fused attention has no second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..checkpoint.session import LiveModel
from ..data.batches import IGNORED, Batch
from ..losses import Loss, answer_logits, upscale
from ..params import Params, axpy, zeros

PARTS = 4
"""Of a batch whose graph is rebuilt for each product: a graph of second derivatives takes 3 to 4 times a gradient's."""


@dataclass(frozen=True)
class _Linearised:
    """One micro-batch: its logits, J'u as a function of the dummy u, and what the loss says of a token."""

    logits: Tensor
    dummy: Tensor
    pullback: tuple[Tensor, ...]
    weight: float
    temperature: float


class _AnswerLogits(nn.Module):
    """A model's answer logits as a module, so that `functional_call` can put other parameters in its place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return answer_logits(self.model, batch).logits


class GaussNewton:
    """The Gauss-Newton matrix of a sum of losses at the model's parameters when it was made.

    It differentiates copies of the adapter parameters, so that it stays at its point, and a kept graph stays valid,
    while steps are tried on the model in place.

    Attributes:
        products: Products done so far.
        keep_graph: Whether graphs are kept between products (3 to 5 times a gradient's memory, growing with the
            number of micro-batches) or rebuilt for each (about 2.3 gradients a product, a quarter of a micro-batch at a
            time, so that a graph takes no more than a gradient of the whole one).
    """

    def __init__(self, live: LiveModel, losses: Sequence[Loss], *, keep_graph: bool) -> None:
        """Linearise at the present parameters."""
        full_name = {id(parameter): f"model.{name}" for name, parameter in live.model.named_parameters()}
        self._point = {name: leaf.detach().clone().requires_grad_() for name, leaf in live.leaves.items()}
        self._placed = {full_name[id(leaf)]: self._point[name] for name, leaf in live.leaves.items()}
        self._module = _AnswerLogits(live.model)
        self._work = [(part, loss) for loss in losses if loss.token_weight > 0 for batch in loss.batches
                      for part in ([batch] if keep_graph else _parts(batch))]
        self.keep_graph = keep_graph
        self._kept = [self._linearise(*item) for item in self._work] if keep_graph else None
        self.products = 0

    def _linearise(self, batch: Batch, loss: Loss) -> _Linearised:
        logits = functional_call(self._module, self._placed, (batch,))
        dummy = torch.zeros_like(logits, requires_grad=True)
        pullback = torch.autograd.grad(logits, list(self._point.values()), dummy, create_graph=True,
                                       allow_unused=True, materialize_grads=True)
        return _Linearised(logits, dummy, pullback, loss.token_weight, loss.temperature)

    def matvec(self, v: Params) -> Params:
        """Return G v (nats per token by parameter)."""
        total = zeros(v)
        pieces = self._kept if self._kept is not None else (self._linearise(*item) for item in self._work)
        for piece in pieces:
            total = axpy(1.0, self._one(piece, v), total)
        self.products += 1
        return total

    def _one(self, piece: _Linearised, v: Params) -> Params:
        names, leaves = list(self._point), list(self._point.values())
        directional = torch.autograd.grad(piece.pullback, piece.dummy, [v[name] for name in names],
                                          retain_graph=True)[0]
        up = upscale(1 / piece.weight)
        weighted = _softmax_hessian(piece.logits.detach() / piece.temperature, directional) * (piece.weight * up)
        back = torch.autograd.grad(piece.logits, leaves, weighted, retain_graph=self.keep_graph,
                                   allow_unused=True, materialize_grads=True)
        return {name: t / up for name, t in zip(names, back, strict=True)}


def _parts(batch: Batch) -> list[Batch]:
    """A batch in at most `PARTS` parts of its rows, without the columns that are padding in all of them."""
    rows = range(len(batch.rows))
    step = math.ceil(len(rows) / PARTS)
    return [_only(batch, slice(start, start + step)) for start in rows[::step]]


def _only(batch: Batch, rows: slice) -> Batch:
    width = int(batch.attention_mask[rows].sum(dim=1).max())
    ids, mask, labels = (t[rows, :width] for t in (batch.input_ids, batch.attention_mask, batch.labels))
    return Batch(ids, mask, labels, batch.rows[rows], int((labels != IGNORED).sum()))


def _softmax_hessian(logits: Tensor, directional: Tensor) -> Tensor:
    """(diag p - p p') u for each token, [N, V]."""
    p = torch.softmax(logits, dim=-1)
    weighted = p * directional
    return weighted - p * weighted.sum(dim=-1, keepdim=True)
