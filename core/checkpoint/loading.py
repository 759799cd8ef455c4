"""A causal language model from a local folder, exactly as its files say, or not at all."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import MismatchError, UsageError
from .quiet import quiet
from .safetensors_files import TensorInfo

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
SAFETENSORS_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DEVICES = ("cpu", "cuda", "mps")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
QUANTISATIONS: dict[str, dict[str, Any]] = {
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8bit": {"load_in_8bit": True},
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")


@dataclass(frozen=True)
class Placement:
    """Where and how weights are held.

    Attributes:
        dtype: Of the frozen weights.
        device: Of the whole model where there is no device map.
        device_map: accelerate's: `auto`, `balanced`, `sequential`, ...
        max_memory: Per device (`0`, `cpu`), as accelerate reads it.
        load_in: `4bit` or `8bit`.
    """

    dtype: torch.dtype
    device: torch.device
    device_map: str | None = None
    max_memory: dict[int | str, str] | None = None
    load_in: str | None = None


def place(dtype: str, device: str, device_map: str | None, max_memory: str | None, load_in: str | None,
          stored: torch.dtype, *, sums: bool = False) -> Placement:
    """Turn the flags into a placement.

    Args:
        dtype: A name, or `auto`.
        device: `auto`, `cpu`, `cuda[:N]`, `mps`.
        device_map: One of `DEVICE_MAPS`.
        max_memory: `0=20GiB,cpu=60GiB`.
        load_in: One of `QUANTISATIONS`.
        stored: The dtype of the checkpoint's files.
        sums: Whether vectors of parameters are summed there, in float64.

    Returns:
        The placement.

    Raises:
        UsageError: An unknown value, a device that is not there or has no float64 for sums, memory of devices without
            a map, or a quantisation without bitsandbytes.
    """
    where = _device(device)
    if sums and where.type == "mps":
        raise UsageError("no float64 there, in which sums over parameters are taken - --device mps",
                         hint="use --device cpu; eval runs on mps")
    if device_map is not None and device_map not in DEVICE_MAPS:
        raise UsageError(f"unknown value - --device-map {device_map}", hint=f"one of: {', '.join(DEVICE_MAPS)}")
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"unknown value - --dtype {dtype}", hint=f"one of: auto, {', '.join(DTYPES)}")
    if load_in is not None and load_in not in QUANTISATIONS:
        raise UsageError(f"unknown value - --load-in {load_in}", hint=f"one of: {', '.join(QUANTISATIONS)}")
    if load_in is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"bitsandbytes is not installed - --load-in {load_in}", hint="pip install bitsandbytes")
    memory = _memory(max_memory)
    if memory is not None and device_map is None:
        raise UsageError(f"no --device-map reads it - --max-memory {max_memory}", hint="add --device-map auto")
    # Half precision on a CPU is slow and coarse; on a GPU the checkpoint's own dtype is what it was trained for.
    automatic = stored if where.type == "cuda" else torch.float32
    return Placement(DTYPES.get(dtype, automatic), where, device_map, memory, load_in)


def _device(name: str) -> torch.device:
    if name == "auto":
        # mps is never chosen unasked: it has no float64, in which sums are accumulated.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        usable = device.type in DEVICES and torch.empty(0, device=device) is not None
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise UsageError(f"no such device here - --device {name}", hint="use --device auto or --device cpu")
    return device


def _memory(text: str | None) -> dict[int | str, str] | None:
    if not text:
        return None
    memory: dict[int | str, str] = {}
    for item in text.split(","):
        device, separator, amount = item.strip().partition("=")
        if not separator or not device or not amount:
            raise UsageError(f"unreadable - --max-memory {text}", hint="write it as --max-memory 0=20GiB,cpu=60GiB")
        memory[int(device) if device.isdigit() else device] = amount
    return memory


def read_model_config(folder: Path) -> PreTrainedConfig:
    """Return the model configuration of a checkpoint.

    Raises:
        MismatchError: None there, unreadable, or of a model that only runs with code from its repository.
    """
    if not (folder / "config.json").is_file():
        raise MismatchError(f"no config.json - {folder}", hint="give the folder of a checkpoint or of an adapter")
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"a model that transformers cannot read without remote code - {folder / 'config.json'}",
                            hint="check model_type; code from a repository is never run") from error


def skeleton(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Return the model of a configuration without weights (device `meta`): its module names and shapes.

    Raises:
        MismatchError: Not a causal language model.
    """
    try:
        with quiet(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, AttributeError) as error:
        raise MismatchError(f"no causal language model ({config.model_type}) - {folder}",
                            hint="give a decoder-only language model") from error


def stored_dtype(headers: Iterable[TensorInfo]) -> torch.dtype:
    """Return the dtype of most of a checkpoint's numbers that are stored as they are; bfloat16 where none is.

    Args:
        headers: Of all its tensors. Packed weights (4 and 8 bits, FP8) do not count: what is computed beside them does.
    """
    numbers: Counter[torch.dtype] = Counter()
    for info in headers:
        if info.dtype in SAFETENSORS_DTYPES:
            numbers[SAFETENSORS_DTYPES[info.dtype]] += math.prod(info.shape)
    return max(numbers, key=lambda dtype: (numbers[dtype], str(dtype)), default=torch.bfloat16)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a tokenizer of its own."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return a folder's tokenizer.

    Raises:
        MismatchError: None there, or unreadable.
    """
    if not has_tokenizer(folder):
        raise MismatchError(f"no tokenizer - {folder}", hint="copy tokenizer.json and tokenizer_config.json there")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise MismatchError(f"unreadable tokenizer ({type(error).__name__}) - {folder}",
                            hint="copy the tokenizer files again") from error


def load_model(folder: Path, placement: Placement) -> PreTrainedModel:
    """Load a model: frozen, in eval mode, without dropout or cache, with attention that has a double backward.

    Args:
        folder: A full checkpoint.
        placement: Where to and in which dtype.

    Returns:
        The model.

    Raises:
        MismatchError: Weights that are missing, left over or of another shape, or that transformers refuses.
    """
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **_load_settings(placement))
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        raise MismatchError(f"cannot load: {_first_line(error)} - {folder}",
                            hint="check the folder with AutoModelForCausalLM.from_pretrained") from error
    model, info = loaded
    _refuse_partial(info, folder)
    model.config.use_cache = False
    return model.requires_grad_(False).eval()


def _load_settings(placement: Placement) -> dict[str, object]:
    mapped: object = placement.device_map
    if mapped is None and placement.device.type != "cpu":
        mapped = {"": placement.device}
    quantisation = _quantisation(placement)
    # None, too, would take the place of what a quantised checkpoint says of itself.
    asked: dict[str, object] = {} if quantisation is None else {"quantization_config": quantisation}
    return asked | {
        "dtype": placement.dtype,
        # sdpa and flash attention have no double backward.
        "attn_implementation": "eager",
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": False,
        "device_map": mapped,
        "max_memory": placement.max_memory,
        "output_loading_info": True,
        # Mismatches come back in the loading info and are refused there, with their names.
        "ignore_mismatched_sizes": True,
    }


def _quantisation(placement: Placement) -> BitsAndBytesConfig | None:
    if placement.load_in is None:
        return None
    return BitsAndBytesConfig(bnb_4bit_compute_dtype=placement.dtype, **QUANTISATIONS[placement.load_in])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refuse_partial(info: dict[str, Any], folder: Path) -> None:
    for kind, words in PARTIAL.items():
        # A mismatched key comes with its two shapes.
        names = sorted(entry[0] if isinstance(entry, tuple) else entry for entry in info.get(kind) or ())
        if names:
            raise MismatchError(f"{len(names)} weights {words}: {', '.join(names[:3])} - {folder}",
                                hint="config.json and the weights belong to different checkpoints")


PARTIAL = {
    "missing_keys": "missing",
    "mismatched_keys": "of another shape than config.json says",
    "unexpected_keys": "not of this model",
}
"""Keys of transformers' loading info that must be empty, and what they mean."""
