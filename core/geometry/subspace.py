"""A subspace of weight space with coordinates of its own, the same at every model of one architecture.

Adapter coordinates at a base and at a tuned model are not one space. Here the weight of a module moves by B Q with Q
[r, in] orthonormal rows drawn from a seed and B [out, r] the coordinates, zero at the model itself: they are linear,
and a vector of coordinates is as long as the move of the weights. B is the weight of an `nn.Linear` beside the module,
so that every curvature operator and per-row gradients work on it as on an adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..checkpoint.session import LiveModel
from .directions import movable_modules

NAME = "subspace"


class _Path(nn.Module):
    """x -> B Q x beside a module; `Q` is a buffer, `coordinates` a linear map without bias."""

    def __init__(self, name: str, module: nn.Module, seed: int, rank: int) -> None:
        super().__init__()
        weight = next(module.parameters())
        # Half precision would round small steps away; float64 models keep theirs.
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
        inputs, outputs = _width(module)
        basis = _basis(name, inputs, rank, seed)
        self.register_buffer("Q", basis.to(weight.device, dtype))
        self.coordinates = nn.Linear(len(basis), outputs, bias=False, device=weight.device, dtype=dtype)
        nn.init.zeros_(self.coordinates.weight)

    def forward(self, x: Tensor) -> Tensor:
        basis = self.get_buffer("Q")
        return self.coordinates(x.to(basis) @ basis.T)


def _width(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, of GPT-2's Conv1D, or of PEFT's layer around either."""
    if hasattr(module, "in_features"):
        return int(cast(Any, module).in_features), int(cast(Any, module).out_features)
    return int(cast(Any, module).nx), int(cast(Any, module).nf)


def _basis(name: str, inputs: int, rank: int, seed: int) -> Tensor:
    """Orthonormal rows [r, in] that depend on the seed, the module's name and its width alone."""
    digest = hashlib.sha256(f"subspace {seed}\n{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    drawn = torch.randn(inputs, min(rank, inputs), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].T.contiguous()


def _add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + cast(nn.Module, module.get_submodule(NAME))(inputs[0]).to(output.dtype)


@contextmanager
def subspace(model: Any, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], *, seed: int,
             rank: int = 2) -> Iterator[LiveModel]:
    """Give a model the coordinates of a subspace as its parameters, at zero: its outputs are its own, bit for bit.

    Args:
        model: A causal language model, plain or under PEFT; it is as before afterwards.
        tokenizer: Its tokenizer.
        names: Modules that move, of `movable_modules` (KeyError where one is missing).
        seed: Of the bases Q.
        rank: r, coordinates an output of every module.

    Yields:
        The model with leaves `MODULE.subspace.weight` [out, r].
    """
    movable = movable_modules(model)
    modules = {name: movable[name] for name in sorted(names)}
    leaves: dict[str, nn.Parameter] = {}
    handles = []
    try:
        for name, module in modules.items():
            path = _Path(name, module, seed, rank)
            leaves[f"{name}.{NAME}.weight"] = cast(nn.Parameter, path.coordinates.weight)
            module.add_module(NAME, path)
            handles.append(module.register_forward_hook(_add))
        yield LiveModel(model, tokenizer, leaves, next(model.parameters()).device)
    finally:
        for handle in handles:
            handle.remove()
        for module in modules.values():
            module._modules.pop(NAME, None)
