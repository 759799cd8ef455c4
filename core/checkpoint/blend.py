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
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from ..errors import MismatchError
from .layout import Group, Layout, places, read_layout
from .loading import read_model_config, skeleton
from .pair import CheckpointPair
from .safetensors_files import as_named, iter_tensors, read_headers, weight_files


@contextmanager
def blended_weights(model: PreTrainedModel, pair: CheckpointPair, alpha: float) -> Iterator[None]:
    """Hold the frozen weights at (1 - alpha) tuned + alpha base inside; restored from the tuned files on leaving.

    Does nothing where alpha is 0, nor for a pair of kind `lora`, whose frozen weights are the base's. A few copies of
    one tensor in 32 bits at most are in memory beside the model; where transformers merges weights while it loads them
    (experts), what `places` takes of one layer, too. Weights of 16 bits are rounded at random (`rounded`), the same at
    every call on one kind of device.

    Yields:
        Nothing. MismatchError: parameters that cannot be told from the files (quantised, offloaded, converted with no
        way back).
    """
    if pair.kind == "lora" or alpha == 0:
        yield
        return
    layout = _layout(model, pair)
    try:
        _move(model, layout, pair.base_dir, alpha)
        yield
    finally:
        _move(model, layout, pair.tuned_dir, 1.0)


def check_blend(pair: CheckpointPair) -> None:
    """Refuse a full pair that `blended_weights` cannot move, from headers alone.

    Raises:
        MismatchError: Parameters that transformers could not have made of the files' tensors.
    """
    folder = pair.tuned_dir
    read_layout(skeleton(read_model_config(folder), folder), read_headers(folder), folder)


def _layout(model: PreTrainedModel, pair: CheckpointPair) -> Layout:
    """Return where the tensors of the tuned files are in memory.

    Raises:
        MismatchError: As `read_layout`, or weights that are offloaded.
    """
    layout = read_layout(model, read_headers(pair.tuned_dir), pair.tuned_dir)
    away = [name for held in (layout.same, *layout.converted) for name, p in held.items() if p.is_meta]
    if away:
        raise MismatchError(f"{len(away)} weights are not in memory, e.g. {away[0]} - {pair.tuned_dir}",
                            hint="use a model held whole and unquantised in memory")
    return layout


@torch.no_grad()
def _move(model: PreTrainedModel, layout: Layout, folder: Path, alpha: float) -> None:
    headers = read_headers(folder)
    names = as_named(headers, layout.names)
    numbers = {name: number for number, name in enumerate(headers)}
    for name, tensor in iter_tensors(weight_files(folder)):
        if names[name] in layout.same:  # else a tied copy, a buffer of an older version, or converted
            p = layout.same[names[name]]
            p.copy_(_between(p, tensor, alpha, seed=numbers[name]))
    for group in layout.converted:
        where = places(model, group)
        files = {headers[name].file for name in headers if names[name] in where}
        for name, tensor in iter_tensors(sorted(files), {name for name in headers if names[name] in where}):
            _move_numbers(group, where[names[name]].flatten(), tensor.flatten(), alpha, seed=numbers[name])


def _move_numbers(group: Group, where: Tensor, tensor: Tensor, alpha: float, *, seed: int) -> None:
    """Move the numbers of a group's parameters, laid end to end, that a tensor of a file holds."""
    start = 0
    for p in group.values():
        inside = (where >= start) & (where < start + p.numel())
        if bool(inside.any()):
            flat, at = p.view(-1), (where[inside] - start).to(p.device, torch.int64)
            flat[at] = _between(flat[at], tensor[inside], alpha, seed=seed)
        start += p.numel()


def _between(p: Tensor, tensor: Tensor, alpha: float, *, seed: int) -> Tensor:
    """Return (1 - alpha) p + alpha tensor in the type of p, computed in at least 32 bits."""
    if alpha == 1:  # bit for bit: lerp loses the sign of a zero, and gives NaN where p is infinite
        return tensor.to(p.device, p.dtype)
    wide = torch.promote_types(p.dtype, torch.float32)
    between = torch.lerp(p.to(wide), tensor.to(p.device, wide), alpha)
    return rounded(between, p.dtype, seed=seed) if 0 < alpha < 1 else between.to(p.dtype)


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
