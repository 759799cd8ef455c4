"""The diagonal of the Fisher matrix: mean squared scores, from the same backward pass as the full one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checkpoint.session import LiveModel
from ..losses import Loss
from ..params import Params, each, size, zeros
from .fisher import scored, use_row_gradients
from .operator import Solution


@dataclass(frozen=True)
class Diagonal:
    """F = diag(f).

    Attributes:
        f: The diagonal, not negative.
        mean_diagonal: Its mean.
    """

    f: Params
    mean_diagonal: float

    def matvec(self, v: Params) -> Params:
        """Return f v, elementwise."""
        return each(lambda fi, vi: fi * vi, self.f, v)

    def solve(self, v: Params, damping: float) -> Solution:
        """Return v / (f + damping), elementwise."""
        x = each(lambda fi, vi: vi / (fi + damping), self.f, v)
        return Solution(x, self.matvec(x), None, 0, "exact")


def diagonal_fisher(live: LiveModel, losses: Sequence[Loss], *, seed: int) -> Diagonal:
    """Estimate diag F of a sum of losses by one backward pass over their rows, labels drawn with `seed`."""
    total = zeros({name: leaf.detach() for name, leaf in live.leaves.items()})

    def add(name: str, scores: Tensor) -> None:
        total[name] += scores.square().sum(0)

    for _, batch, score in scored(losses, seed):
        use_row_gradients(live, batch, score, add)
    return Diagonal(total, sum(float(t.double().sum()) for t in total.values()) / size(total))
