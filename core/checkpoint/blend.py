"""Weights of a full checkpoint moved toward its base, in place, one tensor at a time from disk.

Most weights of a fine-tuned model differ from the base's by about what 16 bits can tell apart there: rounded to the
nearest, those between would mostly stay where they are. They are rounded at random, so that they are right in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import MismatchError
from .fit import weights_in_files
from .loading import read_model_config, skeleton
from .pair import CheckpointPair
from .safetensors_files import as_named, iter_tensors, read_headers, weight_files


@contextmanager
def blended_weights(model: nn.Module, pair: CheckpointPair, alpha: float) -> Iterator[None]:
    """Hold the frozen weights at (1 - alpha) tuned + alpha base inside; restored from the tuned files on leaving.

    Does nothing for a pair of kind `lora`, whose frozen weights are the base's. A few copies of one tensor in 32 bits
    at most are in memory beside the model. Weights of 16 bits are rounded at random (`rounded`), the same at every
    call on one kind of device.

    Yields:
        Nothing. MismatchError: parameters that are not in memory as their files have them (merged or renamed while
        loading, quantised, offloaded).
    """
    if pair.kind == "lora":
        yield
        return
    targets = _targets(model, pair)
    try:
        _move(targets, pair.base_dir, alpha)
        yield
    finally:
        _move(targets, pair.tuned_dir, 1.0)


def check_blend(pair: CheckpointPair) -> None:
    """Refuse a full pair that `blended_weights` cannot move, from headers alone.

    Raises:
        MismatchError: Parameters that are merged or renamed while they are loaded.
    """
    folder = pair.tuned_dir
    weights_in_files(skeleton(read_model_config(folder), folder), read_headers(folder), folder)


def _targets(model: nn.Module, pair: CheckpointPair) -> dict[str, Tensor]:
    """Return the parameter of each tensor of the files, by the tensor's name, each parameter once.

    Raises:
        MismatchError: Parameters that are not in memory as their files have them (merged while loading, quantised,
            offloaded).
    """
    found = weights_in_files(model, read_headers(pair.tuned_dir), pair.tuned_dir)
    away = [name for name, p in found.items() if p.is_meta]
    if away:
        raise MismatchError(f"{len(away)} weights are not in memory, e.g. {away[0]} - {pair.tuned_dir}",
                            hint="use a model held whole and unquantised in memory")
    return found


def _move(targets: dict[str, Tensor], folder: Path, alpha: float) -> None:
    names = as_named(read_headers(folder), targets)
    with torch.no_grad():
        for number, (name, tensor) in enumerate(iter_tensors(weight_files(folder))):
            if names[name] not in targets:  # a tied copy, or a buffer of an older version
                continue
            p = targets[names[name]]
            wide = torch.promote_types(p.dtype, torch.float32)
            # lerp is exact at both ends, a weighted sum is not.
            between = torch.lerp(p.to(wide), tensor.to(p.device, wide), alpha)
            p.copy_(rounded(between, p.dtype, seed=number) if 0 < alpha < 1 else between)


def rounded(wide: Tensor, dtype: torch.dtype, *, seed: int) -> Tensor:
    """Return numbers in another type, those between two of its numbers as either, so that the mean is right.

    Args:
        wide: Floating-point numbers; those that the type can hold stay as they are.
        dtype: A type of 16 bits; of a wider one nearest numbers are returned.
        seed: Of what is drawn.
    """
    if dtype.itemsize > 2 or wide.dtype != torch.float32:
        return wide.to(dtype)
    dropped = 23 + round(math.log2(torch.finfo(dtype).eps))  # bits of the mantissa that the type has no room for
    generator = torch.Generator(wide.device).manual_seed(seed)
    bits = wide.view(torch.int32)
    drawn = torch.randint(1 << dropped, bits.shape, generator=generator, device=wide.device, dtype=torch.int32)
    return ((bits + drawn) & -(1 << dropped)).view(torch.float32).to(dtype)
