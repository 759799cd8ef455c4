"""Models, tokenizers and placements: exactly as the files say, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint import loading
from saferestore.core.checkpoint.loading import (
    load_model,
    load_tokenizer,
    place,
    read_model_config,
    skeleton,
    stored_dtype,
)
from saferestore.core.checkpoint.safetensors_files import TensorInfo
from saferestore.core.errors import MismatchError, UsageError
from safetensors.torch import load_file
from torch import Tensor

from .conftest import Saved
from .tiny import IDS, edit_json, edit_tensors, llama, save_base

CPU = place("auto", "cpu", None, None, None, torch.bfloat16)


def test_the_stored_dtype_is_that_of_most_numbers_which_packed_weights_are_not() -> None:
    """As a 4-bit file of bitsandbytes has them: bytes and their scales, two tensors a module, beside plain weights."""
    def infos(**shapes: tuple[int, ...]) -> list[TensorInfo]:
        return [TensorInfo(name.partition("_")[0], shape, Path()) for name, shape in shapes.items()]

    packed = infos(U8_a=(4096, 1), F32_a=(128,), U8_b=(4096, 1), F32_b=(128,), F32_c=(128,), BF16_embedding=(100, 64))
    assert stored_dtype(packed) == torch.bfloat16
    assert stored_dtype(infos(I32_packed=(512, 64), F16_scales=(8, 64), F16_norm=(64,))) == torch.float16
    assert stored_dtype(infos(F32_a=(8, 8), BF16_norm=(8,), BF16_bias=(8,))) == torch.float32
    assert stored_dtype(infos(U8_a=(9,))) == stored_dtype([]) == torch.bfloat16


def test_a_loaded_model_is_frozen_in_eval_mode_with_a_double_backward(saved: Saved) -> None:
    model = load_model(saved.base, CPU)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "eager"
    scale = torch.ones((), requires_grad=True)
    value = model(inputs_embeds=model.get_input_embeddings()(IDS) * scale).logits.square().sum()
    (slope,) = torch.autograd.grad(value, scale, create_graph=True)
    (bend,) = torch.autograd.grad(slope, scale)
    assert torch.isfinite(bend)


def test_nothing_is_written_to_stderr_by_other_libraries(saved: Saved, tmp_path: Path,
                                                         capfd: pytest.CaptureFixture[str]) -> None:
    broken = save_base(tmp_path / "broken", lambda: llama(num_hidden_layers=1))
    edit_json(broken / "config.json", num_hidden_layers=2)
    capfd.readouterr()
    load_model(saved.base, CPU)
    with pytest.raises(MismatchError):
        load_model(broken, CPU)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", lambda: llama(num_hidden_layers=1))
    edit_json(base / "config.json", num_hidden_layers=2)
    with pytest.raises(MismatchError, match=r"9 weights missing: model\.layers\.1\."):
        load_model(base, CPU)


def test_weights_left_over_are_refused_by_name(mine: Saved) -> None:
    edit_json(mine.base / "config.json", num_hidden_layers=1)
    with pytest.raises(MismatchError, match=r"9 weights not of this model: model\.layers\.1\."):
        load_model(mine.base, CPU)


def test_weights_of_another_shape_are_refused_by_name(mine: Saved) -> None:
    edit_json(mine.base / "config.json", intermediate_size=30)
    with pytest.raises(MismatchError, match=r"6 weights of another shape.*mlp\.down_proj"):
        load_model(mine.base, CPU)


def test_a_file_that_safetensors_refuses_is_refused(mine: Saved) -> None:
    file = mine.base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(MismatchError, match="cannot load"):
        load_model(mine.base, CPU)


def test_pickled_weights_are_never_loaded(mine: Saved) -> None:
    (mine.base / "model.safetensors").rename(mine.base / "pytorch_model.bin")
    with pytest.raises(MismatchError, match="cannot load"):
        load_model(mine.base, CPU)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no config.json"):
        read_model_config(tmp_path)


@pytest.mark.parametrize("change", [{"model_type": "of-tomorrow"}, {"model_type": "of-tomorrow", "auto_map": {
    "AutoConfig": "configuration.Evil", "AutoModelForCausalLM": "modeling.Evil"}}])
def test_a_model_that_needs_code_from_its_repository_is_refused(mine: Saved, change: dict[str, object]) -> None:
    (mine.base / "configuration.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    edit_json(mine.base / "config.json", **change)
    with pytest.raises(MismatchError, match="without remote code"):
        read_model_config(mine.base)


def test_a_configuration_that_is_no_json_is_refused(mine: Saved) -> None:
    (mine.base / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(MismatchError, match="cannot read"):
        read_model_config(mine.base)


def test_a_model_that_is_no_causal_language_model_is_refused(mine: Saved) -> None:
    edit_json(mine.base / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(MismatchError, match=r"no causal language model \(t5\)"):
        skeleton(read_model_config(mine.base), mine.base)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_an_unreadable_tokenizer_is_refused(mine: Saved) -> None:
    (mine.base / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(MismatchError, match="unreadable tokenizer"):
        load_tokenizer(mine.base)


def test_a_skeleton_has_names_and_shapes_but_no_weights(saved: Saved) -> None:
    model = skeleton(read_model_config(saved.base), saved.base)
    assert all(p.is_meta for p in model.parameters())
    real = load_model(saved.base, CPU)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_dtype_auto_is_float32_on_a_cpu_and_the_checkpoints_own_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CPU.dtype == torch.float32
    monkeypatch.setattr(loading, "_device", torch.device)
    assert place("auto", "cuda", None, None, None, torch.bfloat16).dtype == torch.bfloat16
    assert place("float32", "cuda", None, None, None, torch.bfloat16).dtype == torch.float32


def test_a_gpu_holds_the_whole_model_unless_a_map_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_device", torch.device)
    whole = place("auto", "cuda:1", None, None, None, torch.bfloat16)
    assert loading._load_settings(whole)["device_map"] == {"": torch.device("cuda:1")}
    spread = place("auto", "cuda", "auto", "0=20GiB, cpu=60GiB", None, torch.bfloat16)
    settings = loading._load_settings(spread)
    assert settings["device_map"] == "auto"
    assert settings["max_memory"] == {0: "20GiB", "cpu": "60GiB"}


def test_a_device_map_on_a_cpu_gives_the_same_model(saved: Saved) -> None:
    mapped = place("auto", "cpu", "auto", "cpu=10GiB", None, torch.float32)
    with torch.no_grad():
        expected, found = (load_model(saved.base, where)(input_ids=IDS).logits for where in (CPU, mapped))
    assert torch.equal(expected, found)


BAD_FLAGS = {
    "--dtype int3": {"dtype": "int3"},
    "--device-map sideways": {"device_map": "sideways"},
    "--load-in 3bit": {"load_in": "3bit"},
    "--max-memory lots": {"max_memory": "lots"},
    "--max-memory 0=": {"max_memory": "0="},
    "no --device-map reads it - --max-memory cpu=1GiB": {"max_memory": "cpu=1GiB"},
    "--device nowhere": {"device": "nowhere"},
    "--device meta": {"device": "meta"},
    "--device cuda:97": {"device": "cuda:97"},
}


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_a_placement_that_cannot_be_had_names_its_flag(flag: str) -> None:
    plain: dict[str, object] = {"dtype": "auto", "device": "cpu", "device_map": None, "max_memory": None,
                                "load_in": None, "stored": torch.float32}
    with pytest.raises(UsageError, match=flag) as caught:
        place(**(plain | BAD_FLAGS[flag]))
    assert caught.value.exit_code == 2


def test_quantised_loading_without_bitsandbytes_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="bitsandbytes is not installed") as caught:
        place("auto", "cpu", None, None, "4bit", torch.float32)
    assert "pip install" in caught.value.hint


def test_quantised_loading_asks_for_nf4_computed_in_the_models_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    settings = loading._quantisation(place("bfloat16", "cpu", None, None, "4bit", torch.float32))
    assert settings is not None
    assert (settings.load_in_4bit, settings.bnb_4bit_quant_type) == (True, "nf4")
    assert settings.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_checkpoint_that_is_quantised_itself_is_loaded_as_it_says(mine: Saved) -> None:
    whole = load_file(mine.base / "model.safetensors")
    largest = torch.finfo(torch.float8_e4m3fn).max
    scales = {name: t.abs().max() / largest for name, t in whole.items() if "_proj." in name}

    def in_eight_bits(held: dict[str, Tensor]) -> dict[str, Tensor]:
        packed = {name: (held[name] / scale).to(torch.float8_e4m3fn) for name, scale in scales.items()}
        return held | packed | {f"{name}_scale_inv": scale.reshape(1, 1) for name, scale in scales.items()}

    edit_tensors(mine.base / "model.safetensors", in_eight_bits)
    edit_json(mine.base / "config.json", quantization_config={
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "dequantize": True})
    held = load_model(mine.base, CPU).state_dict()
    for name, scale in scales.items():
        torch.testing.assert_close(held[name], (whole[name] / scale).to(torch.float8_e4m3fn).float() * scale)


def test_weights_are_held_in_the_dtype_asked_for(mine: Saved) -> None:
    edit_tensors(mine.base / "model.safetensors", lambda ts: {n: t.bfloat16() for n, t in ts.items()})
    model = load_model(mine.base, CPU)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
