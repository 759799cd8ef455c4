"""How weight files hold a model's parameters: as they are in memory, or renamed, split or merged by transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import PreTrainedModel

from ..errors import MismatchError
from .safetensors_files import TensorInfo, as_named

LAYER = re.compile(r".*?\.\d+(?=\.)")
"""What names of one layer begin with; transformers converts no tensors of two layers together."""

Group = dict[str, Tensor]
"""Parameters that are converted together, by their names in the model."""


@dataclass(frozen=True)
class Layout:
    """Where the tensors of weight files are in memory, each parameter once.

    Attributes:
        same: The parameter or buffer that a tensor is, by the tensor's name.
        converted: Groups of the other parameters: `places` says which numbers of them a tensor holds.
        names: Of all those tensors.
    """

    same: dict[str, Tensor]
    converted: tuple[Group, ...]
    names: frozenset[str]


def read_layout(model: PreTrainedModel, headers: Mapping[str, TensorInfo], folder: Path) -> Layout:
    """Return where a model's parameters come from, by names and shapes alone.

    Args:
        model: Loaded from the files, an adapter inside or not, or their skeleton.
        headers: Of the weight files.
        folder: For messages.

    Raises:
        MismatchError: Quantised weights, or parameters for which the files have no tensors that transformers could
            have made them of.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise MismatchError(f"quantised weights cannot be interpolated - {folder}",
                            hint="give checkpoints of 16 or 32 bits, or the change as a LoRA adapter")
    named = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters() if ".lora_" not in name}
    held = named | {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    files = as_named(held, headers)
    same = {files[name]: tensor for name, tensor in held.items() if _is_held(headers, files[name], tensor)}
    other = {name: p for name, p in named.items() if same.get(files[name]) is not p}
    groups: dict[str, Group] = {}
    for name, p in other.items():
        layer = LAYER.match(name)
        groups.setdefault(layer[0] if layer else name, {})[name] = p
    names = set(same)
    for group in groups.values():
        tensors = _in_files(model, {name: torch.empty(p.shape, device="meta") for name, p in group.items()})
        if not tensors or not all(_is_held(headers, name, tensor) for name, tensor in tensors.items()):
            raise MismatchError(f"{len(other)} weights cannot be interpolated from disk, e.g. {next(iter(group))} - "
                                f"{folder}", hint="give the change as a LoRA adapter; restore works without --train")
        names |= set(tensors)
    return Layout(same, tuple(groups.values()), frozenset(names))


def _is_held(headers: Mapping[str, TensorInfo], name: str, tensor: Tensor) -> bool:
    return name in headers and headers[name].shape == tuple(tensor.shape)


def _in_files(model: PreTrainedModel, group: Group) -> dict[str, Tensor]:
    """Return what transformers saves a group as; nothing where it cannot."""
    try:
        return revert_weight_conversion(model, dict(group))
    except (NotImplementedError, ValueError, RuntimeError):  # a conversion that has no way back
        return {}


def places(model: PreTrainedModel, group: Group) -> dict[str, Tensor]:
    """Return which numbers of a group's parameters, laid end to end, each tensor of the files holds.

    Numbers of places are sent the way that transformers saves the weights themselves. They take up to 8 bytes for each
    of the group's weights, twice as many where there are 2^31 or more: what is cut along another side is copied.

    Args:
        model: As of `read_layout`.
        group: One of `Layout.converted`.

    Returns:
        Integers of the tensor's shape, by the tensor's name.

    Raises:
        MismatchError: A weight that no tensor holds, or more than one: the way is not one of places.
    """
    sizes = [p.numel() for p in group.values()]
    total = sum(sizes)
    numbers = torch.arange(total, dtype=torch.int32 if total < 1 << 31 else torch.int64).split(sizes)
    found = _in_files(model, {name: part.view(p.shape) for part, (name, p) in zip(numbers, group.items(), strict=True)})
    seen = torch.zeros(total, dtype=torch.bool)
    for tensor in found.values():
        seen[tensor.flatten()] = True
    if sum(tensor.numel() for tensor in found.values()) != total or not bool(seen.all()):
        raise MismatchError(f"transformers does not only move the weights of {next(iter(group))} while it loads them",
                            hint="give the change as a LoRA adapter")
    return found
