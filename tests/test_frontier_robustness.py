"""The frontier benchmark's rounding to 4 bits: what it is, and that it leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel, read_params

from .cases import FAMILIES, live_model, ragged_batches

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import frontier_robustness as robustness  # noqa: E402


def logits(live: LiveModel) -> torch.Tensor:
    with torch.no_grad():
        return live.model(input_ids=ragged_batches()[0].input_ids).logits


def test_every_weight_lies_at_the_nearest_of_fifteen_levels_of_its_group() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    found = robustness.round_to_4_bits(weight)
    for row, near in zip(weight.reshape(-1, 32), found.reshape(-1, 32), strict=True):
        levels = row.abs().max() * torch.arange(-7, 8) / 7
        wanted = levels[(row[:, None] - levels).abs().argmin(1)]
        torch.testing.assert_close(near, wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(robustness.round_to_4_bits(torch.zeros(2, 32)), torch.zeros(2, 32))


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_folds_the_adapter_in_and_puts_everything_back(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    live = live_model(family)
    params, before = read_params(live), logits(live)
    monkeypatch.setattr(robustness, "round_to_4_bits", lambda weight: weight)
    with robustness.merged_and_rounded(live, params):
        folded = logits(live)
    torch.testing.assert_close(folded, before, rtol=1e-6, atol=1e-8)
    monkeypatch.setattr(robustness, "round_to_4_bits", torch.round)
    with robustness.merged_and_rounded(live, params):
        assert not torch.allclose(logits(live), before)
    assert torch.equal(logits(live), before)
