"""Which modules carry the lost safety: what each module's own damped step would gain, and what it would cost the task.

A module's own step is x = (F + lambda I)^-1 g restricted to its parameters, g = grad S and F the Fisher matrix of the
drift on retain rows. All modules take the step at one length alpha, that at which the step of all of them together is
predicted to spend the drift allowed; gains alpha g'x and costs 1/2 alpha^2 x'F x are those of the quadratic model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..curvature.fisher import LowRankFisher, low_rank_fisher
from ..params import Params, dot, norm, scale, size

KINDS = {"attention": re.compile(r"attn|attention"), "mlp": re.compile(r"mlp|ffn|feed_forward|expert")}
"""Kind of module -> what a part of its name holds."""

LEADING = 16
"""Eigenvectors that count as a task's leading curvature."""


@dataclass(frozen=True)
class ModuleInfluence:
    """One adapted module.

    Attributes:
        module: Its name in the model.
        layer: Number of its layer; None where its name has none.
        kind: `attention`, `mlp` or `other`.
        safety_gain: Predicted fall of S by its own step, nats per token.
        task_cost: Predicted drift of its own step, nats per token.
        gradient_share: Its share of the squared norm of grad S.
        inside_share: Share of its part of grad S in the leading eigenvectors of its block of F.
        inside_share_random: The same of a random direction: eigenvectors over parameters.
    """

    module: str
    layer: int | None
    kind: str
    safety_gain: float
    task_cost: float
    gradient_share: float
    inside_share: float
    inside_share_random: float


def layer_of(module: str) -> int | None:
    """Return the first number among the parts of a module's name."""
    return next((int(part) for part in module.split(".") if part.isdigit()), None)


def kind_of(module: str) -> str:
    """Return a row of `KINDS`, or `other`."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(module)), "other")


def inside_share(operator: LowRankFisher, v: Params, top: int = LEADING) -> float:
    """Return the share of |v|^2 in the `top` leading eigenvectors R'w / sqrt(value) of R'R."""
    products = torch.stack([(block @ v[name].reshape(-1).to(block)).double().cpu()
                            for name, block in operator.rows.items()]).sum(0)
    values, vectors = operator.values[-top:], operator.vectors[:, -top:]
    kept = values > 1e-10 * operator.values.max().clamp(min=1e-300)
    inside = ((vectors.T @ products)[kept].square() / values[kept]).sum()
    return float(inside) / max(norm(v) ** 2, 1e-300)


def own_steps(operator: LowRankFisher, gradient: Params, damping: float, max_drift: float, *,
              modules: Mapping[str, Sequence[str]], top: int = LEADING) -> tuple[list[ModuleInfluence], Params]:
    """Return every module's influence, the largest gain first, and their steps.

    Args:
        operator: F of the drift.
        gradient: grad S.
        damping: lambda.
        max_drift: Drift that the step of all modules together is predicted to spend, nats per token.
        modules: Module -> names of its parameters.
        top: Eigenvectors that count as leading.

    Returns:
        The modules, and the change of parameters by their own steps.
    """
    together = operator.solve(gradient, damping)
    alpha = (2 * max_drift / max(dot(together.x, together.image), 1e-300)) ** 0.5
    whole, found, steps = norm(gradient) ** 2, [], {}
    for module, names in modules.items():
        g = {name: gradient[name] for name in names}
        block = low_rank_fisher({name: operator.rows[name] for name in names},
                                {name: operator.shapes[name] for name in names})
        solution = block.solve(g, damping)
        found.append(ModuleInfluence(
            module, layer_of(module), kind_of(module), alpha * dot(g, solution.x),
            0.5 * alpha * alpha * dot(solution.x, solution.image), norm(g) ** 2 / max(whole, 1e-300),
            inside_share(block, g, top), min(1.0, min(top, len(block.values)) / size(g))))
        steps |= scale(-alpha, solution.x)
    return sorted(found, key=lambda each: (-each.safety_gain, each.module)), steps


def sums_by(found: Iterable[ModuleInfluence],
            key: Callable[[ModuleInfluence], object]) -> dict[str, tuple[float, float]]:
    """Return (gain, cost) summed over the modules of each value of `key`, in the order of the values."""
    groups: dict[object, list[ModuleInfluence]] = {}
    for each in found:
        groups.setdefault(key(each), []).append(each)
    order = sorted(groups, key=lambda value: (value is None, isinstance(value, str), value if value is not None else 0))
    return {str(value) if value is not None else "none":
            (sum(m.safety_gain for m in groups[value]), sum(m.task_cost for m in groups[value])) for value in order}
