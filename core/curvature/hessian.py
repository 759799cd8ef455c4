"""Products with the Hessian of a loss by the adapter parameters, in four ways.

| way | how | gradients a product | memory |
| --- | --- | --- | --- |
| `kept` | reverse over reverse, the graphs of all gradients kept | about 1.2 | grows with the micro-batches |
| `rebuilt` | the same, each graph rebuilt for each product | about 2.2 | one micro-batch's |
| `forward` | forward mode over reverse mode | about 3.8 | one micro-batch's |
| `difference` | central difference of gradients | 2 | a gradient's |

The first three are exact. They need attention with a second derivative (`attn_implementation="eager"`); the last one
needs nothing, and its error is that of the step: about 1e-3 of the product in float32, 0.05 to 0.3 in bfloat16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..checkpoint.session import LiveModel, read_params, write_params
from ..data.scratch import is_small
from ..losses import Loss, answer_logits, gradient, total
from ..params import Params, axpy, norm, zeros
from .short import ShortDerivatives

FAITHFUL = {torch.float64: 1e-5, torch.float32: 2e-2, torch.float16: 0.15, torch.bfloat16: 0.5}
"""Largest relative distance from a difference of gradients at which a way counts as right, by the model's dtype.

In the narrow ones it is the difference that is rough: a product that is zero, or of other weights, is 1 or more away.
"""


class _Share(nn.Module):
    """A batch's share of a loss as a module, so that `functional_call` can put other parameters in its place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Loss, number: int) -> Tensor:
        return loss.contribution(number, answer_logits(self.model, loss.batches[number]))


class Hessian:
    """The Hessian of a sum of losses at the model's parameters when it was made.

    All ways but `difference` differentiate copies of the parameters, so that they stay at their point while the model
    moves; `difference` moves the model itself to and from the point, and leaves it where it was.

    Attributes:
        way: A row of `WAYS`.
        products: Products done so far.
    """

    def __init__(self, live: LiveModel, losses: Sequence[Loss], *, way: str = "kept") -> None:
        """Take the present parameters as the point; KeyError for a way that is none."""
        full_name = {id(parameter): f"model.{name}" for name, parameter in live.model.named_parameters()}
        self.live, self.losses, self.way = live, losses, way
        self.point = {name: leaf.detach().clone().requires_grad_() for name, leaf in live.leaves.items()}
        self._full = {name: full_name[id(leaf)] for name, leaf in live.leaves.items()}
        self._module = _Share(live.model)
        self._work = [(loss, number) for loss in losses for number in range(len(loss.batches))]
        self._product = WAYS[way](self)
        self.products = 0

    def matvec(self, v: Params) -> Params:
        """Return H v."""
        self.products += 1
        return self._product(v)

    def gradients(self) -> list[Callable[[], tuple[Tensor, ...]]]:
        """Return, for each micro-batch, what builds its gradient with the graph of it."""
        return [lambda item=item: self._gradient(*item) for item in self._work]

    def _gradient(self, loss: Loss, number: int) -> tuple[Tensor, ...]:
        with ShortDerivatives():
            share = self.share(self.point, loss, number)
            return torch.autograd.grad(share, list(self.point.values()), create_graph=True, allow_unused=True,
                                       materialize_grads=True)

    def share(self, point: Params, loss: Loss, number: int) -> Tensor:
        """Return a micro-batch's share of the loss at a point."""
        placed = {self._full[name]: tensor for name, tensor in point.items()}
        return functional_call(self._module, placed, (loss, number))

    @property
    def work(self) -> list[tuple[Loss, int]]:
        """Every (loss, number of its batch)."""
        return self._work


Product = Callable[[Params], Params]


def _kept(hessian: Hessian) -> Product:
    kept = [build() for build in hessian.gradients()]
    return lambda v: _sum(hessian.point, v, kept, retain=True)


def _rebuilt(hessian: Hessian) -> Product:
    return lambda v: _sum(hessian.point, v, (build() for build in hessian.gradients()), retain=False)


def _sum(point: Params, v: Params, gradients: object, *, retain: bool) -> Params:
    """Sum over micro-batches of the derivative of <gradient, v>."""
    leaves, vector, found = list(point.values()), [v[name] for name in point], zeros(v)
    for parts in gradients:  # type: ignore[attr-defined]
        # A parameter that no row reaches has a gradient without a graph.
        known = [(part, direction) for part, direction in zip(parts, vector, strict=True) if part.requires_grad]
        if not known:
            continue
        tensors, directions = zip(*known, strict=True)
        back = torch.autograd.grad(tensors, leaves, directions, retain_graph=retain, allow_unused=True,
                                   materialize_grads=True)
        found = axpy(1.0, dict(zip(point, back, strict=True)), found)
    return found


def _forward(hessian: Hessian) -> Product:
    point = {name: tensor.detach() for name, tensor in hessian.point.items()}

    def product(v: Params) -> Params:
        found = zeros(v)
        for loss, number in hessian.work:
            slope = torch.func.grad(lambda at, loss=loss, number=number: hessian.share(at, loss, number))
            found = axpy(1.0, torch.func.jvp(slope, (point,), (v,))[1], found)
        return found

    return product


def _difference(hessian: Hessian) -> Product:
    """Central difference along v with the step that balances rounding against the third derivative."""
    point = {name: tensor.detach() for name, tensor in hessian.point.items()}
    whole = total("sum", hessian.losses)
    eps = torch.finfo(coarsest_dtype(hessian.live)).eps

    def product(v: Params) -> Params:
        length = norm(v)
        if length == 0:
            return zeros(v)
        step = eps ** (1 / 3) * max(1.0, norm(point)) ** 0.5 / length
        before = read_params(hessian.live)
        try:
            ends = [_gradient_at(hessian.live, axpy(sign * step, v, point), whole) for sign in (1.0, -1.0)]
        finally:
            write_params(hessian.live, before)
        return {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in v}

    return product


def coarsest_dtype(live: LiveModel) -> torch.dtype:
    """The dtype whose rounding gradients have: the coarsest that a model computes in, frozen weights included."""
    dtypes = {parameter.dtype for parameter in live.model.parameters()} & FAITHFUL.keys()
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _gradient_at(live: LiveModel, params: Params, loss: Loss) -> Params:
    write_params(live, params)
    return gradient(live, loss)[1]


WAYS: dict[str, Callable[[Hessian], Product]] = {
    "kept": _kept, "rebuilt": _rebuilt, "forward": _forward, "difference": _difference}
EXACT = ("kept", "rebuilt", "forward")


@dataclass(frozen=True)
class Choice:
    """How Hessian products are to be done here.

    Attributes:
        way: A row of `WAYS`.
        reason: Why, in words.
        distance: Relative distance of an exact product from a difference of gradients on the first micro-batch; None
            where no exact way works.
    """

    way: str
    reason: str
    distance: float | None


def choose_way(live: LiveModel, losses: Sequence[Loss], v: Params, *, low_memory: bool = False) -> Choice:
    """Choose the cheapest way that is right here and fits into memory.

    Each exact way is compared with a difference of gradients on the first micro-batch: attention without a second
    derivative raises, and checkpointing can give the derivative of other weights without a word.

    Args:
        live: The model.
        losses: Whose Hessian is wanted.
        v: A direction to try.
        low_memory: Never keep graphs.

    Returns:
        The choice; `difference` where no exact way is right.
    """
    first = [Loss(loss.name, loss.batches[:1], loss.contribution, loss.token_weight) for loss in losses[:1]]
    wanted = Hessian(live, first, way="difference").matvec(v)
    allowed = FAITHFUL[coarsest_dtype(live)]
    distances = {way: _distance(live, first, way, v, wanted) for way in ("rebuilt", "forward")}
    right = [way for way, distance in distances.items() if distance is not None and distance <= allowed]
    if not right:
        return Choice("difference", "no exact product agrees with a difference of gradients", None)
    if right[0] != "rebuilt":
        return Choice(right[0], "the model has no second derivative in reverse mode", distances[right[0]])
    if low_memory:
        return Choice("difference", "low memory was asked for", distances["rebuilt"])
    count = sum(len(loss.batches) for loss in losses)
    if not all(is_small(count * size, device) for device, size in graph_bytes(live, first[0]).items()):
        return Choice("difference", "kept graphs would fill a quarter of the free memory", distances["rebuilt"])
    return Choice("kept", "kept graphs fit into memory", distances["rebuilt"])


def _distance(live: LiveModel, losses: Sequence[Loss], way: str, v: Params, wanted: Params) -> float | None:
    try:
        found = Hessian(live, losses, way=way).matvec(v)
    except (RuntimeError, NotImplementedError):
        return None
    return norm(axpy(-1.0, wanted, found)) / max(norm(wanted), torch.finfo(torch.float64).tiny)


def graph_bytes(live: LiveModel, loss: Loss) -> Counter[torch.device]:
    """Return the bytes that the graph of the first micro-batch's gradient keeps alive, by device."""
    kept: dict[int, tuple[torch.device, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.device, tensor.untyped_storage().nbytes()
        return tensor

    frozen = {parameter.untyped_storage().data_ptr() for parameter in live.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        graph = Hessian(live, [loss], way="rebuilt").gradients()[0]()
    del graph
    sizes: Counter[torch.device] = Counter()
    for place, (device, size) in kept.items():
        sizes[device] += 0 if place in frozen else size
    return sizes
