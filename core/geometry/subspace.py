"""One subspace of weight space that every model of a comparison shares, and gradients of rows within it.

Adapter coordinates at the base and at the tuned model are not one space. Here every movable module's weight moves by
diag(n) B Q with Q [r, in] orthonormal rows drawn from a seed, n [out] the norms of the base's rows, and B [out, r] the
coordinates: linear, the same at every model, and of one scale for all modules. B is the weight of an `nn.Linear` beside
the module, so that one backward pass gives the gradients of all rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint.session import LiveModel
from ..curvature.fisher import per_row_gradients, score_rows
from ..data.batches import Batch
from ..losses import cross_entropy, row_count, token_losses
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


@dataclass(frozen=True)
class RowVectors:
    """A vector in the subspace for every row, in blocks by module.

    Attributes:
        blocks: Leaf name -> [rows, numel].
        weights: [rows] answer tokens, by which a set's mean weighs its rows.
    """

    blocks: Mapping[str, Tensor]
    weights: np.ndarray

    def only(self, rows: Sequence[int]) -> RowVectors:
        """Return some of the rows."""
        return RowVectors({name: block[list(rows)] for name, block in self.blocks.items()}, self.weights[list(rows)])

    @property
    def dimension(self) -> int:
        """Coordinates of the subspace."""
        return sum(block.shape[1] for block in self.blocks.values())


def inner(first: RowVectors, second: RowVectors, columns: int = 65536) -> np.ndarray:
    """Return all inner products of two lists of vectors, [rows of first, rows of second], float64."""
    total = torch.zeros(len(first.weights), len(second.weights), dtype=torch.float64)
    for name, block in first.blocks.items():
        for a, b in zip(block.split(columns, 1), second.blocks[name].split(columns, 1), strict=True):
            total += a.double() @ b.double().T
    return total.numpy()


def fisher_rows(live: LiveModel, batches: Sequence[Batch], *, draws: int, seed: int) -> RowVectors:
    """Return scores of rows: the sum over a row's answer tokens of grad log p(label drawn from p).

    Args:
        live: A model in the subspace.
        batches: n rows.
        draws: How often labels are drawn; draws of row i are rows i, n + i, 2n + i, ... of the result.
        seed: Of the labels.

    Returns:
        [draws n] vectors; with R the matrix of a set's, R'R over draws and its tokens estimates the Fisher matrix.
    """
    loss = cross_entropy("rows", batches)
    scale = loss.token_weight ** 0.5  # `score_rows` weighs by the whole list of batches; sets are weighed by their own
    found = _gathered(live, draws * row_count(batches), score_rows(live, [loss] * draws, seed=seed), 1 / scale)
    return RowVectors(found, np.tile(_tokens(batches), draws))


def gradient_rows(live: LiveModel, batches: Sequence[Batch]) -> RowVectors:
    """Return each row's gradient of its summed -log p (nats), so that a set's mean per token is sum / tokens."""
    parts = ((batch.rows, per_row_gradients(live, batch, lambda out: token_losses(out).sum())) for batch in batches)
    return RowVectors(_gathered(live, row_count(batches), parts, 1.0), _tokens(batches))


def _gathered(live: LiveModel, count: int, parts: Iterator[tuple[Tensor, dict[str, Tensor]]],
              scale: float) -> dict[str, Tensor]:
    found = {name: torch.zeros(count, leaf.numel(), dtype=leaf.dtype) for name, leaf in live.leaves.items()}
    for numbers, vectors in parts:
        for name, block in vectors.items():
            found[name][numbers.cpu()] = block.detach().flatten(1).cpu() * scale
    return found


def _tokens(batches: Sequence[Batch]) -> np.ndarray:
    tokens = np.zeros(row_count(batches))
    for batch in batches:
        tokens[batch.rows.numpy()] = (batch.labels[:, 1:] != -100).sum(dim=1).numpy()
    return tokens
