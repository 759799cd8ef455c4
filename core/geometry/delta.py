"""How far fine-tuning moved every module and along how many directions, from headers and streamed pieces of tensors.

No model is loaded. An adapter's change B A is never formed: its singular values are those of the small core of the QR
decompositions of its factors. Two full checkpoints are read side by side in pieces of one tensor, however they are cut
into shards, so that memory holds two pieces and the Gram matrix of the shorter side of one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint.loading import SAFETENSORS_DTYPES
from ..checkpoint.pair import CheckpointPair
from ..checkpoint.safetensors_files import AGAIN, TensorInfo, as_named, read_headers
from ..config import Progress, no_progress
from ..errors import MismatchError

PIECE = 1 << 16
"""Scalars of one tensor in memory at a time, at least; more where its Gram matrix takes more anyway."""


@dataclass(frozen=True)
class ModuleDelta:
    """The change of one weight.

    Attributes:
        tensor: Its name in the base's files.
        shape: As stored.
        norm: Frobenius norm of the change.
        relative_norm: The same over the norm of the base's weight; None where that is zero,
            or its file has another name for it.
        effective_rank: (sum s^2)^2 / sum s^4 over the singular values s of the change (the participation ratio: r for
            r equal singular values); None for what is no matrix or did not change.
        rank_limit: Most that the effective rank could be.
    """

    tensor: str
    shape: tuple[int, ...]
    norm: float
    relative_norm: float | None
    effective_rank: float | None
    rank_limit: int


@dataclass(frozen=True)
class Moments:
    """Sums over one tensor: of squares of the change and of the base, and of fourth powers of singular values."""

    change: float
    base: float
    fourth: float | None


def deltas(pair: CheckpointPair, *, progress: Progress = no_progress) -> list[ModuleDelta]:
    """Return the change of every weight that fine-tuning moved or could have moved, sorted by name.

    Args:
        pair: An adapter pair (the adapted modules) or a full one (every floating-point tensor that both files hold).
        progress: Told of every tensor.

    Returns:
        The changes. `MismatchError` names a file that safetensors refuses.
    """
    return _adapter(pair, progress) if pair.kind == "lora" else _full(pair, progress)


def _adapter(pair: CheckpointPair, progress: Progress) -> list[ModuleDelta]:
    assert pair.adapter is not None
    base, found = _Files(read_headers(pair.base_dir)), []
    for done, (module, (a, b)) in enumerate(sorted(pair.adapter.factors.items())):
        progress("changes by module", done, len(pair.adapter.factors))
        name = base.named(f"{module}.weight")
        known = name in base.headers
        size = sum(_square(piece) for piece in base.pieces(name)) if known else 0.0
        fourth, change = _core_moments(a, b)
        found.append(_delta(name, base.headers[name].shape if known else (b.shape[0], a.shape[1]),
                            Moments(change, size, fourth), pair.adapter.source_ranks[module]))
    progress("changes by module", len(found), len(found))
    return found


def _core_moments(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Sums of fourth and of second powers of the singular values of B A."""
    core = torch.linalg.qr(b.double())[1] @ torch.linalg.qr(a.double().T)[1].T
    squares = torch.linalg.svdvals(core).square()
    return float(squares.square().sum()), float(squares.sum())


def _full(pair: CheckpointPair, progress: Progress) -> list[ModuleDelta]:
    base, tuned = _Files(read_headers(pair.base_dir)), _Files(read_headers(pair.tuned_dir))
    others = as_named(base.headers, tuned.headers)
    names = sorted(name for name, info in base.headers.items()
                   if others[name] in tuned.headers and info.dtype in SAFETENSORS_DTYPES)
    found = []
    for done, name in enumerate(names):
        progress("changes by module", done, len(names))
        shape = base.headers[name].shape
        found.append(_delta(name, shape, _moments(base, tuned, name, others[name]), min(shape, default=1)))
    progress("changes by module", len(names), len(names))
    return found


def _moments(base: _Files, tuned: _Files, name: str, other: str) -> Moments:
    """Go through one tensor of both files piece by piece along its longer side."""
    change, size, gram = 0.0, 0.0, None
    for old, new in zip(base.pieces(name), tuned.pieces(other), strict=True):
        wide = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
        moved = new.to(wide) - old.to(wide)
        change, size = change + _square(moved), size + _square(old)
        if moved.dim() == 2:
            sides = (moved.T, moved) if base.is_tall(name) else (moved, moved.T)
            gram = sides[0] @ sides[1] if gram is None else gram.addmm_(*sides)  # in place: it is as large as a piece
    return Moments(change, size, None if gram is None else _square(gram))


def _delta(name: str, shape: tuple[int, ...], found: Moments, limit: int) -> ModuleDelta:
    rank = found.change ** 2 / found.fourth if found.fourth else None
    relative = math.sqrt(found.change / found.base) if found.base else None
    return ModuleDelta(name, shape, math.sqrt(found.change), relative, rank, limit)


def _square(t: Tensor) -> float:
    return sum(float(part.double().square().sum()) for part in t.reshape(-1).split(PIECE))


@dataclass(frozen=True)
class _Files:
    """The tensors of a checkpoint, read in pieces. A file is open for one tensor: its mapped pages go with it."""

    headers: Mapping[str, TensorInfo]

    def named(self, name: str) -> str:
        """Return a tensor's name as the files have it: a checkpoint may have been saved without its head."""
        return name if name in self.headers else next((n for n in self.headers if name.endswith(f".{n}")), name)

    def is_tall(self, name: str) -> bool:
        """Tell whether pieces of a tensor are cut along its rows."""
        shape = self.headers[name].shape
        return len(shape) != 2 or shape[0] >= shape[1]

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor in pieces along its longer side, or whole where it is no matrix.

        Raises:
            MismatchError: A file that safetensors refuses.
        """
        info = self.headers[name]
        try:
            with safe_open(info.file, framework="pt") as tensors:
                yield from self._cut(tensors, name, info.shape)
        except SafetensorError as error:
            raise MismatchError(f"corrupted safetensors file ({error}) - {info.file}", hint=AGAIN) from error

    def _cut(self, tensors: Any, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        if len(shape) != 2:
            yield tensors.get_tensor(name)
            return
        step, whole = max(1, PIECE // max(1, min(shape)), min(shape) // 4), tensors.get_slice(name)
        for start in range(0, max(shape), step):
            yield whole[start:start + step] if self.is_tall(name) else whole[:, start:start + step]
