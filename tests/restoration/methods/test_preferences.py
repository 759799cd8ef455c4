"""Preference losses against their published formulas written another way, and how answers are paired."""

from __future__ import annotations

import math

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel, read_params, write_params
from saferestore.core.data.batches import Batch
from saferestore.core.losses import Loss, gradient
from saferestore.core.restoration.methods.preferences import (
    count_rows,
    dpo,
    first_rows,
    npo,
    paired,
    rise,
    simnpo,
    token_rows,
)
from torch import Tensor

from ... import dense
from ...cases import live_model, moved
from .given import answered

HARMFUL, SAFE = answered(12), answered(11)


def sequences(live: LiveModel, theta: Tensor, batches: list[Batch]) -> dict[int, tuple[Tensor, int]]:
    """Row -> (log of the probability of the whole answer, tokens), token by token."""
    found: dict[int, tuple[Tensor, int]] = {}
    for batch in batches:
        logits = dense.logits_of(live, theta, batch)
        for i, (place, _, label) in enumerate(dense.answer_positions(batch)):
            row = int(batch.rows[place])
            log_p, tokens = found.get(row, (torch.zeros((), dtype=torch.float64), 0))
            found[row] = (log_p + torch.log(torch.softmax(logits[i], 0)[label]), tokens + 1)
    return found


def at_another_point(make) -> tuple[LiveModel, Loss, Tensor, Tensor]:
    """A loss made at one point and looked at from another: (model there, loss, theta of reference, theta there)."""
    live = live_model()
    reference, loss = dense.flat(live.leaves), make(live)
    write_params(live, moved(live, by=0.05, seed=3))
    return live, loss, reference, dense.flat(live.leaves).requires_grad_()


def check(live: LiveModel, loss: Loss, theta: Tensor, wanted: Tensor) -> None:
    value, slope = gradient(live, loss)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-9)
    torch.testing.assert_close(dense.flat(slope), torch.autograd.grad(wanted, theta)[0], rtol=1e-7, atol=1e-11)


def test_npo_is_its_formula_in_probabilities() -> None:
    live, loss, reference, theta = at_another_point(lambda live: npo(live, HARMFUL, 0.7))
    before, now = sequences(live, reference, HARMFUL), sequences(live, theta, HARMFUL)
    terms = [2 / 0.7 * torch.log1p((torch.exp(now[row][0]) / torch.exp(before[row][0])) ** 0.7) for row in now]
    check(live, loss, theta, sum(terms) / len(terms))


def test_npo_becomes_gradient_ascent_up_to_its_constant_as_beta_falls() -> None:
    errors = []
    for beta in (1e-2, 1e-3):
        live, loss, reference, theta = at_another_point(lambda live, beta=beta: npo(live, HARMFUL, beta))
        before, now = sequences(live, reference, HARMFUL), sequences(live, theta, HARMFUL)
        ascent = sum(now[row][0] - before[row][0].detach() for row in now) / len(now)
        slope = torch.autograd.grad(ascent, theta)[0]
        errors.append(dense.relative_error(dense.flat(gradient(live, loss)[1]), slope))
        assert loss.value(live.model) == pytest.approx(2 / beta * math.log(2) + float(ascent), abs=100 * beta)
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2) and errors[1] < 0.01


def test_simnpo_is_its_formula_without_a_reference() -> None:
    live, loss, _, theta = at_another_point(lambda _: simnpo(HARMFUL, 2.5, 0.3))
    terms = [-2 / 2.5 * torch.log(torch.sigmoid(-2.5 / tokens * log_p - 0.3))
             for log_p, tokens in sequences(live, theta, HARMFUL).values()]
    check(live, loss, theta, sum(terms) / len(terms))


def test_dpo_is_the_bradley_terry_log_likelihood_of_implicit_rewards() -> None:
    live, loss, reference, theta = at_another_point(lambda live: dpo(live, SAFE, HARMFUL, 0.4))
    rewards = []
    for batches in (SAFE, HARMFUL):
        before, now = sequences(live, reference, batches), sequences(live, theta, batches)
        rewards.append({row: 0.4 * (now[row][0] - before[row][0]) for row in now})
    terms = [-(w - torch.logaddexp(w, rewards[1][row])) for row, w in rewards[0].items()]
    check(live, loss, theta, sum(terms) / len(terms))


def test_at_its_reference_dpo_is_log_two_and_prefers_safe_to_harmful_answers() -> None:
    live = live_model()
    loss = dpo(live, SAFE, HARMFUL, 0.1)
    assert loss is not None and loss.value(live.model) == pytest.approx(math.log(2), rel=1e-12)


def test_ascent_is_minus_the_cross_entropy() -> None:
    live = live_model()
    assert rise("a", HARMFUL).value(live.model) == pytest.approx(
        -float(dense.cross_entropy(live, dense.flat(read_params(live)), HARMFUL)), rel=1e-12)


def test_pairs_share_their_prompt_and_hold_every_answer_once() -> None:
    prompts = {tuple(p): (p, a) for p, a in token_rows(SAFE)}
    rows = [(int(number), row) for batch in paired(SAFE, HARMFUL)
            for number, row in zip(batch.rows, token_rows([batch]), strict=True)]
    assert [number for number, _ in rows] == list(range(10))
    for (_, safe), (_, harmful) in zip(rows[0::2], rows[1::2], strict=True):
        assert safe == prompts[tuple(harmful[0])] and harmful in list(token_rows(HARMFUL))


def test_prompts_that_have_one_answer_alone_make_no_pair() -> None:
    assert not list(paired(SAFE, [])) and not list(paired([], HARMFUL))
    assert dpo(live_model(), SAFE, [], 0.1) is None
    strangers = answered(12)
    for batch in strangers:
        batch.input_ids[:, 0] = 30
    assert dpo(live_model(), SAFE, strangers, 0.1) is None


def test_the_first_rows_are_those_of_the_lowest_numbers_as_they_were() -> None:
    kept = first_rows(SAFE, 3)
    assert sorted(int(row) for batch in kept for row in batch.rows) == [0, 1, 2]
    assert sum(batch.answer_tokens for batch in kept) == sum(len(a) for _, a in token_rows(kept))
    assert count_rows(first_rows(SAFE, 99)) == count_rows(SAFE) == 5
    assert all(row in list(token_rows(SAFE)) for row in token_rows(kept))
