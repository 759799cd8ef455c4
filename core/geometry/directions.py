"""Directions through weight space, drawn from a seed and applied as an additive path: no copy of weights is made.

A direction moves the weight of a linear module by U V with U [out, r] and V [r, in], so that a point of a slice adds
(x V') U' to the module's output: no weight is touched, and leaving costs nothing. Row i of U V is rescaled to the norm
of row i of the module's weight (filter normalisation, Li et al. 2018; a row scaling of U keeps the rank), so that a
step means the same for every module. Norm layers, biases, embeddings and the output head stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..checkpoint.factors import Factors
from ..checkpoint.fit import linear_modules


@dataclass(frozen=True)
class Direction:
    """A direction in the weights of some modules.

    Attributes:
        seed: What it was drawn from.
        factors: Module name -> (V [r, in], U [out, r]), float32: the weight moves by U V.
    """

    seed: int
    factors: Factors


@dataclass(frozen=True)
class Shape:
    """What a direction has to know of a module: the norms of its weight's rows [out], float64, and its inputs."""

    norms: Tensor
    inputs: int


def causal_lm(model: nn.Module) -> nn.Module:
    """Return the transformers model under a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model


def movable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear modules by the names they have without an adapter, the output head left out, sorted.

    Under PEFT the adapted module stands for the one it wraps, so that names are those of the base.
    """
    inner = causal_lm(model)
    wrapped = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    plain = {name: module for name, module in linear_modules(inner).items()  # type: ignore[arg-type]
             if not any(name.startswith(f"{owner}.") for owner in wrapped)}
    return dict(sorted({**plain, **wrapped}.items()))  # type: ignore[arg-type]


@torch.no_grad()
def module_shapes(model: nn.Module) -> dict[str, Shape]:
    """Return the shape of each movable module, from the frozen weights alone: an adapter's share is not in them.

    Two models are compared along the same directions when the shapes of one of them, the base, serve both.

    Args:
        model: A causal language model of transformers, plain or under PEFT, of any dtype or quantisation.
    """
    return {name: _shape(module) for name, module in movable_modules(model).items()}


def _shape(module: nn.Module) -> Shape:
    inner = module.get_base_layer() if isinstance(module, LoraLayer) else module
    weight = dequantize_module_weight(inner)
    rows = weight.T if isinstance(inner, Conv1D) else weight
    return Shape(torch.linalg.vector_norm(rows.double(), dim=1).cpu(), rows.shape[1])


def draw_direction(shapes: Mapping[str, Shape], seed: int, *, rank: int = 8) -> Direction:
    """Draw a random direction, filter by filter as long as the weights themselves.

    A module's part depends on the seed, the module's name and its shape alone: not on the other modules.

    Args:
        shapes: Modules that move, from `module_shapes`.
        seed: Of the draw.
        rank: r; a module of fewer inputs has as many as these.

    Returns:
        The direction, on the CPU; |row i of U V| equals the norm of row i of the module's weight.
    """
    return Direction(seed, {name: _draw(name, shape, seed, rank) for name, shape in shapes.items()})


def _draw(name: str, shape: Shape, seed: int, rank: int) -> tuple[Tensor, Tensor]:
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    rank = min(rank, shape.inputs)
    v = torch.randn(rank, shape.inputs, generator=generator, dtype=torch.float64)
    u = torch.randn(len(shape.norms), rank, generator=generator, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(u @ torch.linalg.cholesky(v @ v.T), dim=1)  # |U_i V|^2 = U_i (V V') U_i'
    return v.float(), (u * (shape.norms / lengths)[:, None]).float()


Move = Callable[[Sequence[float]], None]
"""Sets how far the model is moved along each direction; zeros are the model's own weights."""


@contextmanager
def along(model: nn.Module, directions: Sequence[Direction]) -> Iterator[Move]:
    """Let a model be moved along directions inside the block; at zeros its outputs are its own, bit for bit.

    Args:
        model: A causal language model, plain or under PEFT; its weights are never changed.
        directions: Of the same modules, all of them the model's (KeyError where one is missing).

    Yields:
        `move(steps)`: a step a direction.
    """
    modules = movable_modules(model)
    paths = {name: _Path(modules[name], [direction.factors[name] for direction in directions])
             for name in (directions[0].factors if directions else ())}
    handles = [modules[name].register_forward_hook(path) for name, path in paths.items()]

    def move(steps: Sequence[float]) -> None:
        for path in paths.values():
            path.set(steps)

    try:
        yield move
    finally:
        for handle in handles:
            handle.remove()


class _Path:
    """Adds x V' diag(steps) U' to a module's output, all directions of a slice at once."""

    def __init__(self, module: nn.Module, factors: Sequence[tuple[Tensor, Tensor]]) -> None:
        weight = next(module.parameters())
        # Half precision would round the step away; float64 models keep theirs.
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        self.into = torch.cat([v for v, _ in factors]).to(weight.device, dtype)
        self.out = torch.cat([u for _, u in factors], dim=1).T.to(weight.device, dtype)
        self.ranks = [len(v) for v, _ in factors]
        self.scaled: Tensor | None = None

    def set(self, steps: Sequence[float]) -> None:
        """Take one step along each direction; None where there is nothing to add."""
        each = torch.tensor([step for step, rank in zip(steps, self.ranks, strict=True) for _ in range(rank)],
                            dtype=self.out.dtype, device=self.out.device)
        self.scaled = self.out * each[:, None] if bool(each.any()) else None

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.scaled is None:
            return output
        narrow = inputs[0].to(self.into) @ self.into.T
        if output.dtype != narrow.dtype:
            return output + (narrow @ self.scaled).to(output.dtype)
        # One fused product and sum: a slice does little else beside the model's own forward passes.
        return torch.addmm(output.flatten(0, -2), narrow.flatten(0, -2), self.scaled).view_as(output)
