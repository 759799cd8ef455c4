"""Weights of a full checkpoint moved toward its base, in place, one tensor at a time from disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import MismatchError
from .pair import CheckpointPair
from .safetensors_files import iter_tensors, read_headers, weight_files


@contextmanager
def blended_weights(model: nn.Module, pair: CheckpointPair, alpha: float) -> Iterator[None]:
    """Hold the frozen weights at (1 - alpha) tuned + alpha base inside; restored from the tuned files on leaving.

    Does nothing for a pair of kind `lora`, whose frozen weights are the base's. Two tensors at most are in memory
    beside the model.
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


def _targets(model: nn.Module, pair: CheckpointPair) -> dict[str, Tensor]:
    """Return the parameter of each tensor of the files, by the tensor's name, each parameter once.

    Raises:
        MismatchError: Parameters that are not in memory as their files have them (merged while loading, quantised,
            offloaded).
    """
    named = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters() if ".lora_" not in name}
    headers, prefix = read_headers(pair.tuned_dir), f"{getattr(model, 'base_model_prefix', '')}."
    # A checkpoint may have been saved without its head, and so without the name of the model's body.
    files = {name: name if name in headers else name.removeprefix(prefix) for name in named}
    lost = [name for name, p in named.items() if files[name] not in headers or p.is_meta
            or headers[files[name]].shape != tuple(p.shape)]
    if lost:
        raise MismatchError(f"{len(lost)} weights cannot be interpolated from disk, e.g. {lost[0]} - {pair.tuned_dir}",
                            hint="use a model held whole and unquantised in memory, or --no-controls")
    return {files[name]: p for name, p in named.items()}


def _move(targets: dict[str, Tensor], folder: Path, alpha: float) -> None:
    with torch.no_grad():
        for name, tensor in iter_tensors(weight_files(folder)):
            if name not in targets:  # a tied copy, or a buffer of an older version
                continue
            p = targets[name]
            wide = torch.promote_types(p.dtype, torch.float32)
            # lerp is exact at both ends, a weighted sum is not.
            p.copy_(torch.lerp(p.to(wide), tensor.to(p.device, wide), alpha))
