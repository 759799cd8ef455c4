"""Weights that transformers renames, splits or merges while it loads them, between two checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint import layout as layout_module
from saferestore.core.checkpoint.layout import places, read_layout
from saferestore.core.checkpoint.loading import read_model_config, skeleton
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.safetensors_files import iter_tensors, read_headers, weight_files
from saferestore.core.checkpoint.session import open_session
from saferestore.core.errors import MismatchError
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from .tiny import SHAPE, deepseek, logits, plain_logits, save_base


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1))


def granite_moe() -> PreTrainedModel:
    return GraniteMoeForCausalLM(GraniteMoeConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1))


def gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}))


def deepseek_with_biases() -> PreTrainedModel:
    model = deepseek()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_()
    return model


MAKERS = pytest.mark.parametrize("make", [mixtral, granite_moe, gpt_neox, deepseek_with_biases])


def _pair(folder: Path, make: Callable[[], PreTrainedModel], **save: object) -> tuple[Path, Path]:
    return save_base(folder / "base", make, **save), save_base(folder / "full", make, seed=5, **save)


def _tensors(folder: Path) -> dict[str, Tensor]:
    return dict(iter_tensors(weight_files(folder)))


@MAKERS
@pytest.mark.parametrize("save", [{}, {"max_shard_size": "4KB"}], ids=["one file", "sharded"])
def test_a_blend_is_the_model_of_blended_files(tmp_path: Path, make: Callable[[], PreTrainedModel],
                                               save: dict[str, object]) -> None:
    base, full = _pair(tmp_path, make, **save)
    between = shutil.copytree(full, tmp_path / "between", ignore=shutil.ignore_patterns("*.safetensors*"))
    ends = _tensors(base), _tensors(full)
    save_file({name: torch.lerp(t, ends[0][name], 0.3) for name, t in ends[1].items()},
              between / "model.safetensors", {"format": "pt"})
    session = open_session(open_pair(str(base), str(full), force=True), between=True)
    model = session.adapter().model
    before = logits(model)
    for alpha, wanted in ((0.3, between), (1.0, base)):
        with session.blend(alpha):
            assert torch.equal(logits(model), plain_logits(wanted))
        assert torch.equal(logits(model), before)
    torch.testing.assert_close(before, plain_logits(full), atol=1e-6, rtol=0)


def test_merged_weights_of_16_bits_are_rounded_to_a_neighbour_and_right_in_the_mean(tmp_path: Path) -> None:
    base, full = _pair(tmp_path, lambda: mixtral().bfloat16())
    session = open_session(open_pair(str(base), str(full), force=True), dtype="bfloat16")
    model = session.adapter().model.get_base_model()
    experts = [p for name, p in model.named_parameters() if ".experts." in name]
    before = torch.cat([p.double().flatten() for p in experts])
    with session.blend(1.0):
        there = torch.cat([p.double().flatten() for p in experts])
    with session.blend(0.1):
        moved = torch.cat([p.double().flatten() for p in experts])
    exact = torch.lerp(before, there, 0.1)
    assert float(((moved - exact).abs() / exact.abs().clamp(min=1e-3)).max()) <= torch.finfo(torch.bfloat16).eps
    share = float((moved - before) @ (there - before) / (there - before).square().sum())
    assert share == pytest.approx(0.1, abs=1e-3)


def test_every_number_of_merged_weights_has_one_place(tmp_path: Path) -> None:
    """Against the names: the files have w1, w3 (gate, up) and w2 (down) for each expert."""
    folder = save_base(tmp_path / "model", mixtral)
    model = skeleton(read_model_config(folder), folder)
    layout = read_layout(model, read_headers(folder), folder)
    assert len(layout.converted) == 2 and "model.layers.0.self_attn.q_proj.weight" in layout.same
    group = layout.converted[1]
    end_to_end = torch.cat([p.flatten() for p in _parameters(folder, group)])
    stored, found = _tensors(folder), places(model, group)
    assert sorted(found) == sorted(n for n in stored if n.startswith("model.layers.1.block_sparse_moe"))
    for name, where in found.items():
        assert torch.equal(end_to_end[where.long()], stored[name])


def _parameters(folder: Path, group: dict[str, Tensor]) -> list[Tensor]:
    loaded = dict(MixtralForCausalLM.from_pretrained(folder).named_parameters())
    return [loaded[name] for name in group]


def test_what_the_files_do_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_base(tmp_path / "model", mixtral)
    model, headers = skeleton(read_model_config(folder), folder), read_headers(folder)
    less = {name: info for name, info in headers.items() if not name.endswith("experts.1.w2.weight")}
    with pytest.raises(MismatchError, match=r"6 weights cannot be interpolated from disk, e\.g\. model\.layers\.0"):
        read_layout(model, less, folder)
    group = read_layout(model, headers, folder).converted[0]

    def no_way_back(*_: object) -> dict[str, Tensor]:
        raise NotImplementedError

    monkeypatch.setattr(layout_module, "revert_weight_conversion", no_way_back)
    with pytest.raises(MismatchError, match="6 weights cannot be interpolated"):
        read_layout(model, headers, folder)
    monkeypatch.setattr(layout_module, "revert_weight_conversion",
                        lambda _, held: {name: (t + 1) % 4096 for name, t in held.items()})
    assert sum(t.numel() for t in places(model, {"a": torch.zeros(4096)}).values()) == 4096
    monkeypatch.setattr(layout_module, "revert_weight_conversion",
                        lambda _, held: {name: t // 2 for name, t in held.items()})
    with pytest.raises(MismatchError, match="does not only move the weights of model.layers.0"):
        places(model, group)
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(MismatchError, match="quantised weights cannot be interpolated"):
        read_layout(model, headers, folder)
