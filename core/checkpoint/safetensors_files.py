"""Safetensors files seen through their headers: names, shapes, lengths, hashes, and a streamed scan for NaN."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import MismatchError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
AGAIN = "copy or download the checkpoint again"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NO_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""How files begin that a trainer pickles beside the weights."""
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its dtype as safetensors writes it (`F32`, `BF16`, ...), its shape, its file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a full checkpoint, sorted: `model.safetensors`, or every shard of its index.

    Args:
        folder: The checkpoint's.

    Returns:
        The files. `MismatchError` says where there are none (pickled ones are never opened), a shard is missing, or
        there are two sets of weights.
    """
    if weight_map := _weight_map(folder):
        return tuple(sorted({folder / name for name in weight_map.values()}))
    if not (folder / SINGLE_FILE).is_file():
        _refuse_no_safetensors(folder)
    return (folder / SINGLE_FILE,)


def _weight_map(folder: Path) -> dict[str, str]:
    """Return the shard of each tensor; nothing without an index, or where one file was saved over its shards."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return {}
    try:
        entries = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        weight_map = {name: str(file) for name, file in entries.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"unreadable index of shards - {index}", hint=AGAIN) from error
    shards = sorted(set(weight_map.values()) - {SINGLE_FILE})
    if (folder / SINGLE_FILE).is_file():
        # transformers takes the one file, and removes shards that it saves over, but not their index.
        if left := next((name for name in shards if (folder / name).is_file()), None):
            raise MismatchError(f"two sets of weights: {SINGLE_FILE} and the shards of {INDEX_FILE}, e.g. {left}"
                                f" - {folder}",
                                hint=f"move away those that are older: transformers would read {SINGLE_FILE}")
        return {}
    for name in shards:
        # A name with a folder in it could point outside the checkpoint.
        if Path(name).name != name or not (folder / name).is_file():
            raise MismatchError(f"missing shard {name} - {index}", hint=AGAIN)
    return weight_map


def pickled_weights(folder: Path) -> list[Path]:
    """Return the files of a folder that look like pickled weights, sorted; they are never opened."""
    return sorted(f for f in folder.iterdir() if f.suffix in PICKLES and not f.name.startswith(NO_WEIGHTS))


def _refuse_no_safetensors(folder: Path) -> NoReturn:
    pickles = pickled_weights(folder)
    if not pickles:
        raise MismatchError(f"no safetensors weights - {folder}",
                            hint=f"give a folder with {SINGLE_FILE}, or an adapter's folder")
    target = f"{folder}-safetensors"
    command = (f'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
               f"M.from_pretrained('{folder}').save_pretrained('{target}'); "
               f"T.from_pretrained('{folder}').save_pretrained('{target}')\" and give {target}")
    raise MismatchError(f"pickled weights are never opened - {pickles[0]}",
                        hint=f"if you trust the file, convert it: {command}")


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one safetensors file, by name, without reading them.

    Raises:
        MismatchError: The file is no safetensors file, or shorter or longer than its header says.
    """
    try:
        infos, expected = _parse_header(file)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MismatchError(f"truncated or no safetensors file - {file}", hint=AGAIN) from error
    size = file.stat().st_size
    if size != expected:
        raise MismatchError(f"truncated or corrupted: {size} bytes where its header says {expected} - {file}",
                            hint=AGAIN)
    return infos


def _parse_header(file: Path) -> tuple[dict[str, TensorInfo], int]:
    """Return the tensors and the length that the file must have, from 8 bytes of length and a JSON object."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        # Any number of bytes may be claimed: the file's own size bounds what is read.
        entries = json.loads(stream.read(min(length, file.stat().st_size)))
    entries.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    infos = {name: TensorInfo(e["dtype"], tuple(e["shape"]), file) for name, e in entries.items()}
    return infos, 8 + length + end


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Return all tensors of a full checkpoint, single or sharded, by name.

    Raises:
        MismatchError: An index that names tensors its shards lack; and as `weight_files` and `read_header`.
    """
    infos = {name: info for file in weight_files(folder) for name, info in read_header(file).items()}
    lost = sorted(set(_weight_map(folder)) - set(infos))
    if lost:
        raise MismatchError(f"tensors in the index but in no shard: {', '.join(lost[:3])} - {folder}", hint=AGAIN)
    return infos


def as_named(names: Iterable[str], other: Collection[str]) -> dict[str, str]:
    """Return tensor names with those that another checkpoint of the same model has for them.

    A checkpoint that was saved without its head, as GPT-2's and BLOOM's were, leaves out the name of the model's body.

    Args:
        names: Of tensors.
        other: Names in the other checkpoint; a mapping or a set.

    Returns:
        Name to the other checkpoint's name; to itself where that has none.
    """
    firsts = sorted({name.partition(".")[0] for name in other})

    def found(name: str) -> str:
        forms = (name, name.partition(".")[2], *(f"{first}.{name}" for first in firsts))
        return next((form for form in forms if form in other), name)

    return {name: found(name) for name in names}


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def iter_tensors(files: Iterable[Path], names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor on the CPU) of all files, one tensor in memory at a time.

    Args:
        files: Safetensors files.
        names: Of the tensors to read; all unless given.

    Raises:
        MismatchError: A file that safetensors refuses.
    """
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                    if names is None or name in names:
                        yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise MismatchError(f"corrupted safetensors file ({error}) - {file}",
                                hint=AGAIN) from error


def check_finite(files: Iterable[Path]) -> None:
    """Refuse NaN and infinity anywhere in the files.

    Raises:
        MismatchError: A tensor with a value that is not finite, named with its file.
    """
    for file in files:
        for name, tensor in iter_tensors((file,)):
            if not _finite(tensor):
                raise MismatchError(f"NaN or infinite values in {name} - {file}",
                                    hint="the training run diverged: use an earlier checkpoint")


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # Eight-bit floats have no isfinite of their own.
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(wide).all())
