"""Safetensors headers, damage of every kind, and the scan for NaN."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.safetensors_files import (
    INDEX_FILE,
    check_finite,
    iter_tensors,
    read_header,
    read_headers,
    sha256,
    weight_files,
)
from saferestore.core.errors import MismatchError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .tiny import edit_json, save_base


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save_base(tmp_path / "sharded", max_shard_size="5KB")


def _file(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_headers_say_what_the_tensors_are(tmp_path: Path) -> None:
    file = _file(tmp_path, {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.tensor(1)})
    header = read_header(file)
    assert {name: (info.dtype, info.shape) for name, info in header.items()} == {
        "a": ("F32", (2, 3)), "b": ("BF16", (4,)), "c": ("I64", ())}


def test_sharded_and_single_checkpoints_have_the_same_headers_and_tensors(tmp_path: Path, sharded: Path) -> None:
    single = save_base(tmp_path / "single")
    assert len(weight_files(sharded)) > 2
    assert ({n: (i.dtype, i.shape) for n, i in read_headers(sharded).items()}
            == {n: (i.dtype, i.shape) for n, i in read_headers(single).items()})
    whole = load_file(single / "model.safetensors")
    for name, tensor in iter_tensors(weight_files(sharded)):
        assert torch.equal(tensor, whole[name])


def test_a_missing_shard_is_named(sharded: Path) -> None:
    lost = weight_files(sharded)[0]
    lost.unlink()
    with pytest.raises(MismatchError, match=f"missing shard {lost.name}"):
        weight_files(sharded)


def test_one_file_saved_over_shards_is_read_though_their_index_stays(sharded: Path) -> None:
    save_base(sharded, seed=1)
    assert (sharded / INDEX_FILE).is_file()
    assert weight_files(sharded) == (sharded / "model.safetensors",)
    assert set(read_headers(sharded)) == set(load_file(sharded / "model.safetensors"))


def test_one_file_that_an_index_names_is_read(tmp_path: Path) -> None:
    file = _file(tmp_path, {"a": torch.ones(2)})
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": file.name}}), encoding="utf-8")
    assert weight_files(tmp_path) == (file,)


def test_shards_beside_one_file_are_refused_since_no_one_knows_which_is_meant(tmp_path: Path) -> None:
    folder = save_base(save_base(tmp_path / "both"), max_shard_size="5KB", seed=1)
    with pytest.raises(MismatchError, match="two sets of weights") as error:
        weight_files(folder)
    assert "model-00001-of-0000" in error.value.what and "move away those" in error.value.hint


def test_a_shard_outside_the_folder_is_refused(sharded: Path) -> None:
    (sharded.parent / "other.safetensors").touch()
    edit_json(sharded / INDEX_FILE, weight_map={"a": "../other.safetensors"})
    with pytest.raises(MismatchError, match="missing shard"):
        weight_files(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_unreadable_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(MismatchError, match="unreadable index"):
        weight_files(tmp_path)


def test_an_index_naming_a_tensor_that_no_shard_has_is_refused(sharded: Path) -> None:
    weight_map = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    edit_json(sharded / INDEX_FILE, weight_map=weight_map | {"ghost": next(iter(weight_map.values()))})
    with pytest.raises(MismatchError, match="in no shard: ghost"):
        read_headers(sharded)


def test_pickled_weights_are_refused_with_the_conversion_command(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "pytorch_model.bin", "training_args.bin"):
        (tmp_path / name).write_bytes(b"never opened")
    with pytest.raises(MismatchError, match="pickled weights are never opened - .*pytorch_model.bin") as caught:
        weight_files(tmp_path)
    assert caught.value.exit_code == 5
    assert "save_pretrained" in caught.value.hint


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no safetensors weights"):
        weight_files(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 8, 40, 150, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    file = _file(tmp_path, {"a": torch.ones(20, 3), "b": torch.zeros(7)})
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MismatchError, match=r"truncated.*model\.safetensors"):
        read_header(file)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    file = _file(tmp_path, {"a": torch.ones(3)})
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(MismatchError, match="where its header says"):
        read_header(file)


def test_a_header_claiming_more_bytes_than_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(MismatchError, match="truncated"):
        read_header(file)


def test_a_header_at_odds_with_its_shapes_is_refused_when_read(tmp_path: Path) -> None:
    file = _file(tmp_path, {"a": torch.ones(4)})
    file.write_bytes(file.read_bytes().replace(b'"shape":[4]', b'"shape":[5]'))
    assert read_header(file)["a"].shape == (5,)
    with pytest.raises(MismatchError, match="corrupted safetensors file"):
        list(iter_tensors((file,)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite_is_found_and_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    bad = torch.zeros(50, dtype=dtype)
    bad[17] = value
    file = _file(tmp_path, {"good": torch.ones(4), "bad": bad})
    with pytest.raises(MismatchError, match="values in bad"):
        check_finite((file,))


def test_integers_and_eight_bit_floats_are_scanned_too(tmp_path: Path) -> None:
    file = _file(tmp_path, {"i": torch.arange(4), "f": torch.ones(3).to(torch.float8_e4m3fn)})
    check_finite((file,))
    file = _file(tmp_path, {"f": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)})
    with pytest.raises(MismatchError, match="values in f"):
        check_finite((file,))


def test_the_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc" * 3_000_000)
    assert sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
