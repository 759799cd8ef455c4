"""Weights of 16 bits between those of two checkpoints: exact where they can be, right in the mean elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint.tiny import edit_tensors, llama, save_base
from saferestore.core.checkpoint import blend as blend_module
from saferestore.core.checkpoint.blend import blended_weights, rounded
from saferestore.core.checkpoint.pair import open_pair
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALVES
def test_numbers_are_rounded_to_either_neighbour_and_right_in_the_mean(dtype: torch.dtype) -> None:
    wide = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 0.02
    found = rounded(wide, dtype, seed=1)
    gap = (found.float() - wide).abs() / (wide.abs() * torch.finfo(dtype).eps)
    assert found.dtype == dtype and float(gap[wide.abs() > 1e-3].max()) <= 1.0
    one = torch.full((100_000,), 1 + 0.3 * torch.finfo(dtype).eps)
    ups = (rounded(one, dtype, seed=2) > 1).double().mean()
    assert float(ups) == pytest.approx(0.3, abs=0.006)  # four standard errors


@HALVES
def test_numbers_that_fit_stay_as_they_are(dtype: torch.dtype) -> None:
    held = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    assert torch.equal(rounded(held.float(), dtype, seed=3), held)
    assert torch.equal(rounded(-held.float(), dtype, seed=3), -held)
    exact = torch.randn(10)
    assert torch.equal(rounded(exact, torch.float32, seed=0), exact)


@torch.no_grad()
def test_small_updates_in_16_bits_are_followed_in_the_mean(tmp_path: Path) -> None:
    """To the nearest number a tenth of an update as small as a weight's last bit would move next to nothing."""
    base = save_base(tmp_path / "base", lambda: llama(hidden_size=64, intermediate_size=256).bfloat16())
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_((torch.randn(p.shape, generator=generator) * 1e-4).to(p.dtype))
    model.save_pretrained(tmp_path / "tuned")
    pair = open_pair(str(base), str(tmp_path / "tuned"), force=True)
    ends = [load_file(folder / "model.safetensors") for folder in (tmp_path / "tuned", base)]
    names = [name for name, p in ends[0].items() if p.dim() > 1]
    way = torch.cat([(ends[1][name].float() - ends[0][name].float()).flatten() for name in names])
    before = {name: p.clone() for name, p in model.named_parameters()}
    with blended_weights(model, pair, 0.1):
        held = dict(model.named_parameters())
        moved = torch.cat([(held[name].float() - ends[0][name].float()).flatten() for name in names])
    share = float(moved @ way / (way @ way))
    assert share == pytest.approx(0.1, abs=0.01)
    nearest = torch.cat([torch.lerp(ends[0][n].float(), ends[1][n].float(), 0.1).bfloat16().float().flatten()
                         - ends[0][n].float().flatten() for n in names])
    assert abs(float(nearest @ way / (way @ way)) - 0.1) > 0.02  # what this is for
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@torch.no_grad()
def test_weights_are_restored_to_their_last_bit_from_numbers_that_their_type_does_not_hold(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", llama)
    tuned = save_base(tmp_path / "tuned", llama, seed=1)
    edit_tensors(base / "model.safetensors", lambda held: {
        name: t.fill_(1e5) if name == "model.norm.weight" else t for name, t in held.items()})
    edit_tensors(tuned / "model.safetensors", lambda held: {
        name: torch.where(t.abs() < 0.01, -torch.zeros(()), t) for name, t in held.items()})
    model = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float16)
    before = {name: p.view(torch.int16).clone() for name, p in model.named_parameters()}
    for alpha in (0.5, 1.0):
        with blended_weights(model, open_pair(str(base), str(tuned), force=True), alpha):
            assert alpha < 1 or bool(model.model.norm.weight.isinf().all())
        assert all(torch.equal(before[name], p.view(torch.int16)) for name, p in model.named_parameters())


def test_no_file_is_read_for_the_tuned_model_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = open_pair(str(save_base(tmp_path / "base")), str(save_base(tmp_path / "tuned", seed=1)), force=True)
    monkeypatch.setattr(blend_module, "iter_tensors", lambda *_: pytest.fail("a file is read"))
    with blended_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"), pair, 0.0):
        pass
