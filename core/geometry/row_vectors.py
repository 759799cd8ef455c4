"""Gradients and scores of rows as vectors, and their inner products: all that a comparison of curvature needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.session import LiveModel
from ..curvature.fisher import per_row_gradients, score_rows
from ..data.batches import Batch
from ..losses import cross_entropy, row_count, token_losses


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
