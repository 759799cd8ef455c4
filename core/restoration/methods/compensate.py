"""Safe Delta: keep the entries of the change that cost safety least, and compensate for what they still cost.

The safety cost of a module's change D is |D X|^2 over its inputs X on safe rows, so H = 2 X X' for every row of D (Lu
et al. 2025, after the Optimal Brain Surgeon of Hassibi and Stork 1993). Keeping entry m costs d_m^2 / (2 [H^-1]_mm),
its utility is d_m^2, and so entries are kept in the order of [H^-1]_mm: column by column, the last one row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...checkpoint.determinism import cumulative_sum
from .activations import grams
from .inputs import Edit, Edited, Inputs
from .weights import folded, start_of

DAMPING = 0.01
"""Added to H as a fraction of its mean diagonal, as is usual for layer-wise inverses (GPTQ)."""


def inverse_hessian(gram: Tensor) -> Tensor:
    """Return (2 X X' + damping)^-1 from X X' [in, in], float64."""
    hessian = 2 * gram
    ridge = DAMPING * hessian.diagonal().mean().clamp(min=torch.finfo(hessian.dtype).eps)
    return torch.linalg.inv(hessian + ridge * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device))


def kept_entries(change: Tensor, inverse: Tensor, share: float) -> tuple[Tensor, int]:
    """Return which entries are kept: in falling order of [H^-1]_mm while the summed cost stays within the budget.

    Args:
        change: D [out, in].
        inverse: H^-1 [in, in].
        share: s, the budget as a share of the cost of keeping all; 1 keeps all, 0 none that costs anything.

    Returns:
        Column numbers in their order, and how many entries are kept: whole columns, then the first rows of the next.
    """
    diagonal = inverse.diagonal()
    order = diagonal.argsort(descending=True, stable=True)
    costs = change.double().square() / (2 * diagonal)
    spent = cumulative_sum(costs[:, order].T.flatten(), 0)
    return order, int((spent <= share * spent[-1] * (1 + 1e-12)).sum())


def compensated(change: Tensor, inverse: Tensor, order: Tensor, count: int) -> Tensor:
    """Return the change that has the kept entries of D and the others where the safety cost is then least.

    Minimising d H d' / 2 for a row d with d_Q fixed gives d = D_Q ([H^-1]_QQ)^-1 [H^-1]_Q: (Optimal Brain Surgeon, in
    blocks); all rows have one Q, or one of two that differ by a column.

    Args:
        change: D [out, in].
        inverse: H^-1 [in, in].
        order: Column numbers.
        count: Entries kept, as from `kept_entries`.
    """
    if count == change.numel():
        return change
    columns, rows = divmod(count, len(change))
    parts = ((change[:rows], order[:columns + 1]), (change[rows:], order[:columns]))
    return torch.cat([_least(part, inverse, kept) for part, kept in parts])


def _least(change: Tensor, inverse: Tensor, kept: Tensor) -> Tensor:
    rows = inverse[kept]
    return torch.linalg.solve(rows[:, kept], change[:, kept].double().T).T.matmul(rows).to(change)


def safedelta(inputs: Inputs) -> Edit:
    """Safe Delta on every adapted module; at s = 1 the input, at s = 0 the base in every module."""
    start = start_of(inputs)
    inverses = {module: inverse_hessian(gram)
                for module, gram in grams(inputs.problem.live, inputs.data.safe).items()}
    inputs.cost.forward_passes += 1

    def edit(share: float) -> Edited:
        return folded(inputs, start, lambda module, before: compensated(
            before, inverses[module], *kept_entries(before, inverses[module], share)))

    return edit
