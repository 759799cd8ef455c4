"""Safety objectives against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel
from saferestore.core.config import OBJECTIVES as NAMES
from saferestore.core.errors import UsageError
from saferestore.core.losses import log_probabilities, row_losses
from saferestore.core.restoration.objectives import NEEDS_HARMFUL, OBJECTIVES, SafetyData, safety_losses

from .. import dense
from ..cases import live_model, ragged_batches

SAFE, HARMFUL = ragged_batches(5, seed=1), ragged_batches(6, seed=2)


def _data(live: LiveModel) -> SafetyData:
    """What the base, the adapter switched off, says of both sets."""
    with live.model.disable_adapter():
        sums, tokens = row_losses(live.model, HARMFUL)
        safe_sums, safe_tokens = row_losses(live.model, SAFE)
        log_p = log_probabilities(live.model, HARMFUL)
    return SafetyData(SAFE, float(safe_sums.sum() / safe_tokens.sum()), HARMFUL, sums / tokens, log_p.__getitem__)


def test_every_objective_a_user_may_name_is_a_row_of_the_table():
    assert set(OBJECTIVES) == set(NAMES) >= NEEDS_HARMFUL


def test_anchor_is_cross_entropy_on_safe_answers_with_the_bases_own_as_target():
    live = live_model()
    (loss,) = safety_losses("anchor", _data(live))
    wanted = dense.cross_entropy(live, dense.flat(live.leaves), SAFE)
    assert loss.value(live.model) == pytest.approx(float(wanted), rel=1e-10)
    with live.model.disable_adapter():
        assert loss.value(live.model) == pytest.approx(loss.target, rel=1e-12)


def test_ascent_is_the_mean_shortfall_of_harmful_rows_and_zero_at_the_base():
    live = live_model()
    data = _data(live)
    (loss,) = safety_losses("ascent", data)
    sums, tokens = row_losses(live.model, HARMFUL)
    wanted = sum(max(0.0, float(b - s / t)) for b, s, t in zip(data.base_row_losses, sums, tokens, strict=True)) / 6
    assert loss.value(live.model) == pytest.approx(wanted, rel=1e-10) and wanted > 0
    with live.model.disable_adapter():
        assert loss.value(live.model) == pytest.approx(0, abs=1e-12)


def test_match_is_the_divergence_from_the_base_along_harmful_answers_and_zero_at_the_base():
    live = live_model()
    data = _data(live)
    with live.model.disable_adapter():
        base = [log_p.exp() for log_p in log_probabilities(live.model, HARMFUL)]
    (loss,) = safety_losses("match", data)
    wanted = dense.divergence(live, dense.flat(live.leaves), HARMFUL, base)
    assert loss.value(live.model) == pytest.approx(float(wanted), rel=1e-9) and float(wanted) > 0.01
    with live.model.disable_adapter():
        assert loss.value(live.model) == pytest.approx(0, abs=1e-12)


def test_a_sum_has_a_term_for_each_name_in_order():
    assert [loss.name for loss in safety_losses("match+anchor", _data(live_model()))] == ["match", "anchor"]


@pytest.mark.parametrize("name", sorted(NEEDS_HARMFUL))
def test_an_objective_over_harmful_answers_needs_some(name: str):
    data = replace(_data(live_model()), harmful=[])
    with pytest.raises(UsageError, match=f"--objective anchor\\+{name}") as caught:
        safety_losses(f"anchor+{name}", data)
    assert "--objective anchor" in caught.value.hint
    assert len(safety_losses("anchor", data)) == 1


def test_curvature_of_anchor_and_match_is_weighted_by_token_and_that_of_ascent_is_none():
    weights = {loss.name: loss.token_weight for loss in safety_losses("anchor+ascent+match", _data(live_model()))}
    tokens = {name: sum(b.answer_tokens for b in rows) for name, rows in (("safe", SAFE), ("harmful", HARMFUL))}
    assert weights == {"anchor": 1 / tokens["safe"], "ascent": 0.0, "match": 1 / tokens["harmful"]}
    assert torch.is_tensor(_data(live_model()).base_row_losses)
