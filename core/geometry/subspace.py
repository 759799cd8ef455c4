"""One subspace of weight space that every model of a comparison shares, with coordinates of its own.

Adapter coordinates at the base and at the tuned model are not one space. Here every movable module's weight moves by
diag(n) B Q with Q [r, in] orthonormal rows drawn from a seed, n [out] the norms of the base's rows, and B [out, r] the
coordinates: linear, the same at every model, and of one scale for all modules. B is the weight of an `nn.Linear` beside
the module, so that one backward pass gives the gradients of all rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checkpoint.session import LiveModel
from .directions import Shape, causal_lm, movable_modules


class _Path(nn.Module):
    """The way through the subspace beside one module; adds nothing while B is zero."""

    def __init__(self, shape: Shape, basis: Tensor, like: Tensor) -> None:
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else torch.float32
        place: Any = {"device": like.device, "dtype": dtype}
        self.basis, self.norms = basis.to(**place), shape.norms.to(**place)
        self.coordinates = nn.Linear(len(basis), len(shape.norms), bias=False, **place)
        nn.init.zeros_(self.coordinates.weight)

    def added(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook of the module: its output with the path's share."""
        moved = self.norms * self.coordinates(inputs[0].to(self.basis) @ self.basis.T)
        return output + moved.to(output.dtype)


class _Extended(nn.Module):
    """A model with its paths as submodules, so that gradients find them."""

    def __init__(self, model: nn.Module, paths: Mapping[str, _Path]) -> None:
        super().__init__()
        self.model, self.paths = model, nn.ModuleList(paths.values())

    def get_base_model(self) -> nn.Module:
        """Return the transformers model, as PEFT does."""
        return causal_lm(self.model)

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


@contextmanager
def in_subspace(model: nn.Module, shapes: Mapping[str, Shape], *, rank: int, seed: int) -> Iterator[LiveModel]:
    """Give a model the coordinates of the shared subspace as its parameters, at zero: its outputs are its own.

    Args:
        model: Plain or under PEFT; it is the same afterwards.
        shapes: Of the base's modules.
        rank: r.
        seed: Of the bases Q.

    Yields:
        The model with leaves `MODULE.coordinates` [out, r].
    """
    modules = movable_modules(model)
    paths = {name: _Path(shape, _basis(name, shape, rank, seed), next(modules[name].parameters()))
             for name, shape in sorted(shapes.items())}
    extended = _Extended(model, paths)
    handles = [modules[name].register_forward_hook(path.added) for name, path in paths.items()]
    leaves = {f"{name}.coordinates": cast(nn.Parameter, path.coordinates.weight) for name, path in paths.items()}
    try:
        yield LiveModel(cast(Any, extended), cast(Any, None), leaves, next(model.parameters()).device)
    finally:
        for handle in handles:
            handle.remove()


def _basis(name: str, shape: Shape, rank: int, seed: int) -> Tensor:
    """Orthonormal rows [r, in] that depend on the seed and the module's name alone."""
    digest = hashlib.sha256(f"subspace {seed}\n{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.linalg.qr(torch.randn(shape.inputs, min(rank, shape.inputs), generator=generator,
                                       dtype=torch.float64))[0].T
