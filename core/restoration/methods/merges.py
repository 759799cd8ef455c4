"""Edits that mix in other weights: projection on a safety direction, its addition, and a safety adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...checkpoint.session import write_params
from ...params import Params
from ..modules import factors
from .inputs import Edit, Inputs
from .train import Recipe, trained
from .weights import Weights, difference, folded, start_of, tuned_changes

SAFETY_ADAPTER_RATE = 1e-3


def projector(direction: Tensor) -> Tensor:
    """Return Safe LoRA's cheap projector V V' / |V|_F onto the columns of V [out, in]; [out, out].

    It is a projection only up to a factor: its eigenvalues are the squared singular values of V over |V|_F.
    """
    size = direction.norm()
    return direction @ direction.T / size if size > 0 else direction @ direction.T


def cosine(x: Tensor, y: Tensor) -> float:
    """Return <x, y>_F / (|x|_F |y|_F); 1 where one of them is zero: there is nothing to turn."""
    size = float(x.double().norm() * y.double().norm())
    return float((x.double() * y.double()).sum()) / size if size else 1.0


def _safety_direction(inputs: Inputs) -> Callable[[str, Tensor], Tensor]:
    """Return (module, a tensor of the type wanted) -> V = W_base - W_unaligned, [out, in]."""
    assert inputs.unaligned is not None
    transposed = inputs.pair.transposed
    base, unaligned = (Weights(folder, transposed=transposed) for folder in (inputs.pair.base_dir, inputs.unaligned))
    return lambda module, like: difference(base, unaligned, module, like)


def safelora(inputs: Inputs) -> Edit:
    """Safe LoRA: a module's change D becomes C D where cos(D, C D) lies below tau, C the projector of V.

    Returns:
        tau -> the adapter.

    Raises:
        MismatchError: The unaligned model has other modules or shapes.
    """
    start, direction = start_of(inputs), _safety_direction(inputs)

    def turned(module: str, before: Tensor) -> Tensor:  # made anew: those of all modules are as large as the model
        return projector(direction(module, before)) @ before

    cosines = {module: cosine(before, turned(module, before)) for module, before in tuned_changes(inputs, start)}
    return lambda threshold: folded(inputs, start, lambda module, before: turned(module, before)
                                    if cosines[module] < threshold else before)


def resta(inputs: Inputs) -> Edit:
    """RESTA: the safety vector V = W_base - W_unaligned is added with a weight gamma.

    Returns:
        gamma -> the adapter.

    Raises:
        MismatchError: The unaligned model has other modules or shapes.
    """
    start, direction = start_of(inputs), _safety_direction(inputs)

    def change(module: str, before: Tensor, gamma: float) -> Tensor:
        return before + gamma * direction(module, before) if gamma else before

    change(*next(tuned_changes(inputs, start)), 1.0)  # a model that does not fit is refused before the search
    return lambda gamma: folded(inputs, start, lambda module, before: change(module, before, gamma))


def safety_adapter(inputs: Inputs) -> Params:
    """Train an adapter that starts as the base on the safe rows alone, for half of the passes, which are counted.

    Returns:
        Its parameters; the model is left at those it had.
    """
    live, start = inputs.problem.live, start_of(inputs)
    generator = torch.Generator().manual_seed(inputs.seed)
    fresh = {name: torch.zeros_like(t) if ".lora_B." in name else
             ((2 * torch.rand(t.shape, generator=generator, dtype=torch.float64) - 1) / t.shape[1] ** 0.5).to(t)
             for name, t in start.items()}
    recipe = Recipe(lambda given: ((1.0, given.problem.safety[0]),), "adamw")
    write_params(live, fresh)
    path = trained(replace(inputs, max_passes=max(1, inputs.max_passes // 2)), recipe, SAFETY_ADAPTER_RATE)
    write_params(live, start)
    return path.points[-1].params


def safemerge(inputs: Inputs) -> Edit:
    """SafeMERGE: modules whose change lies off the safety adapter's subspace are mixed with that adapter's own change.

    A module is mixed where cos(D, C D) is at most the median over modules (the upper one of an even number), C the
    projector of the safety adapter's change.

    Returns:
        Weight of the safety adapter's change in the mix -> the adapter.
    """
    start = start_of(inputs)
    safe = factors(safety_adapter(inputs))

    def own(module: str) -> Tensor:
        a, b = safe[module]
        return b @ a

    cosines = {module: cosine(before, projector(own(module)) @ before)
               for module, before in tuned_changes(inputs, start)}
    median = sorted(cosines.values())[len(cosines) // 2]

    def mixed(module: str, before: Tensor, weight: float) -> Tensor:
        if not weight or cosines[module] > median:
            return before
        return (1 - weight) * before + weight * own(module)

    return lambda weight: folded(inputs, start, lambda module, before: mixed(module, before, weight))
