"""Adapter changes by module: which modules brought safety back, what it cost, how far each moved in weight space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..params import Params
from .attribution import Attribution


@dataclass(frozen=True)
class ModuleShare:
    """One adapted module's part in a restoration.

    Attributes:
        module: Its name in the model.
        safety_gain: Fall of S that its change explains, nats per token (see `Attribution`).
        task_cost: Rise of D that its change explains, nats per token.
        update_share: Its share of the squared Frobenius norm of the weight change, in [0, 1].
    """

    module: str
    safety_gain: float
    task_cost: float
    update_share: float


def module_of(leaf: str) -> str:
    """Return the module of an adapter parameter's name: `X.lora_A.weight` -> `X`."""
    return leaf.rpartition(".lora_")[0]


def factors(params: Params) -> dict[str, tuple[Tensor, Tensor]]:
    """Return module -> (A [r, in], B [out, r]) of adapter parameters; the weight change is B A."""
    a = {module_of(name): t for name, t in params.items() if ".lora_A." in name}
    b = {module_of(name): t for name, t in params.items() if ".lora_B." in name}
    return {module: (a[module], b[module]) for module in a}


def squared_norm(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return |sum of B_i A_i|_F^2 from r x r products, without forming the weight matrix."""
    a = torch.cat([a.double() for a, _ in pairs], dim=0)
    b = torch.cat([b.double() for _, b in pairs], dim=1)
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0))


def changes(start: Params, end: Params) -> dict[str, float]:
    """Return module -> |B'A' - B A|_F^2."""
    before, after = factors(start), factors(end)
    return {m: squared_norm([after[m], (before[m][0], -before[m][1])]) for m in before}


def shares(attribution: Attribution, start: Params, end: Params) -> list[ModuleShare]:
    """Return every module's part, the one that moved most first."""
    moved = changes(start, end)
    whole = sum(moved.values())
    gain, cost = (_by_module(part) for part in (attribution.gain, attribution.cost))
    rows = [ModuleShare(m, gain.get(m, 0.0), cost.get(m, 0.0), moved[m] / whole if whole else 0.0) for m in moved]
    return sorted(rows, key=lambda row: (-row.update_share, row.module))


def _by_module(by_leaf: dict[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, value in by_leaf.items():
        total[module_of(name)] = total.get(module_of(name), 0.0) + value
    return total


@dataclass(frozen=True)
class Distances:
    """How far the restored adapter is from the tuned one and from the base, in weight space.

    Attributes:
        relative_update: |restored - tuned| / |tuned - base|; None where tuned adds nothing that is known here.
        to_base_fraction: |restored - base| / |tuned - base|; 1 = as far as tuned, 0 = the base itself.
    """

    relative_update: float | None
    to_base_fraction: float | None


def distances(start: Params, end: Params) -> Distances:
    """Return the distances of an adapter `end` that started as `start`, the base being the adapter switched off."""
    tuned = sum(squared_norm([pair]) for pair in factors(start).values())
    restored = sum(squared_norm([pair]) for pair in factors(end).values())
    if tuned == 0:
        return Distances(None, None)
    return Distances((sum(changes(start, end).values()) / tuned) ** 0.5, (restored / tuned) ** 0.5)
