"""Perplexity against its definition, a token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from cases import live_model, ragged_rows
from saferestore.core.data.batches import Row, make_batches
from saferestore.core.errors import NumericalError, UsageError
from saferestore.core.evaluation.perplexity import perplexity


def by_hand(model: torch.nn.Module, rows: list[Row]) -> float:
    """Exp of the mean of -log p over all answer tokens, each row alone and without padding."""
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*row.prompt, *row.answer]])).logits[0]
        for i, token in enumerate(row.answer):
            losses.append(-torch.log_softmax(logits[len(row.prompt) + i - 1], -1)[token].item())
    return math.exp(sum(losses) / len(losses))


def test_every_token_has_one_weight_whatever_its_row_and_batch() -> None:
    model, rows = live_model().model, ragged_rows(9)
    for size in (1, 4):
        found = perplexity(model, make_batches(rows, batch_size=size, pad_id=0), seed=0)
        assert found.value == pytest.approx(by_hand(model, rows), rel=1e-9)
        assert (found.rows, found.tokens) == (9, sum(len(row.answer) for row in rows))
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert found.ci_low < found.value < found.ci_high


def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_tokens() -> None:
    live = live_model()
    with torch.no_grad():
        live.model.get_base_model().lm_head.weight.zero_()
    found = perplexity(live.model, make_batches(ragged_rows(4), batch_size=4, pad_id=0), seed=0)
    assert found.value == pytest.approx(31)
    for end in (found.ci_low, found.ci_high):  # rows that differ by rounding alone give the bootstrap nothing
        assert end is None or end == pytest.approx(31)


def test_one_row_has_no_interval() -> None:
    found = perplexity(live_model().model, make_batches(ragged_rows(1), batch_size=1, pad_id=0), seed=0)
    assert (found.rows, found.ci_low, found.ci_high) == (1, None, None)


def test_a_hopeless_model_has_a_perplexity_that_can_be_written() -> None:
    live = live_model()
    with torch.no_grad():
        live.model.get_base_model().lm_head.weight.mul_(1e6)
    found = perplexity(live.model, make_batches(ragged_rows(4), batch_size=4, pad_id=0), seed=0)
    assert math.isfinite(found.value)


def test_no_rows_have_no_perplexity() -> None:
    with pytest.raises(UsageError, match="no rows - a perplexity needs at least one"):
        perplexity(live_model().model, [], seed=0)


def test_a_loss_that_is_no_number_is_an_error() -> None:
    live = live_model()
    with torch.no_grad():
        live.model.get_base_model().lm_head.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="behind a perplexity is not finite"):
        perplexity(live.model, make_batches(ragged_rows(2), batch_size=2, pad_id=0), seed=0)
