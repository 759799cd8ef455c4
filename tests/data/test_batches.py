"""Right-padded batches: every answer token labelled once at its own place, rows of similar length together."""

from __future__ import annotations

import random

import pytest
import torch
from saferestore.core.data.batches import IGNORED, Row, make_batches, truncate
from saferestore.core.errors import UsageError

PAD = 99


def some_rows(n: int) -> list[Row]:
    draw = random.Random(0)
    return [Row(i, tuple(range(draw.randint(1, 9))), tuple(range(50, 50 + draw.randint(1, 7)))) for i in range(n)]


def test_every_row_comes_back_from_its_batch_token_by_token() -> None:
    rows, seen = some_rows(17), []
    for batch in make_batches(rows, batch_size=4, pad_id=PAD):
        for k, index in enumerate(batch.rows.tolist()):
            row = rows[index]
            tokens = batch.input_ids[k][batch.attention_mask[k].bool()].tolist()
            assert tokens == [*row.prompt, *row.answer]
            answer = batch.labels[k] != IGNORED
            assert batch.labels[k][answer].tolist() == batch.input_ids[k][answer].tolist() == list(row.answer)
            assert answer.nonzero().flatten().tolist() == list(range(len(row.prompt), len(row)))
            assert (batch.input_ids[k][len(row):] == PAD).all()
            seen.append(index)
        assert batch.answer_tokens == int((batch.labels != IGNORED).sum())
    assert sorted(seen) == list(range(17))


def test_batches_do_not_depend_on_the_order_of_the_rows() -> None:
    rows = some_rows(11)
    one = make_batches(rows, batch_size=3, pad_id=PAD)
    other = make_batches(rows[::-1], batch_size=3, pad_id=PAD)
    assert all(torch.equal(a.input_ids, b.input_ids) and torch.equal(a.rows, b.rows)
               for a, b in zip(one, other, strict=True))


def test_the_longest_batch_comes_first_and_padding_is_the_least_possible() -> None:
    batches = make_batches(some_rows(40), batch_size=8, pad_id=PAD)
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    lengths = sorted((len(row) for row in some_rows(40)), reverse=True)
    assert widths == [lengths[i] for i in range(0, 40, 8)]


def test_moving_a_batch_keeps_its_values() -> None:
    batch = make_batches(some_rows(3), batch_size=3, pad_id=PAD)[0]
    moved = batch.to("cpu")
    assert torch.equal(moved.labels, batch.labels)
    assert moved.answer_tokens == batch.answer_tokens
    assert batch.to(torch.device("meta")).rows.device.type == "meta"


@pytest.mark.parametrize(("prompt", "answer", "what"), [((), (1,), "empty prompt - row 5"),
                                                        ((1,), (), "empty answer - row 5")])
def test_a_row_without_prompt_or_answer_is_refused(prompt: tuple[int, ...], answer: tuple[int, ...],
                                                   what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Row(5, prompt, answer)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="batch size must be at least 1 - 0"):
        make_batches(some_rows(2), batch_size=0, pad_id=PAD)


# prompt length, answer length, context -> (prompt kept, answer kept)
CUTS = [((4, 4, 8), (4, 4)), ((4, 9, 8), (4, 4)), ((2, 9, 8), (2, 6)), ((9, 2, 8), (6, 2)), ((9, 9, 8), (4, 4)),
        ((7, 1, 2), (1, 1)), ((1, 7, 2), (1, 1))]


@pytest.mark.parametrize(("lengths", "kept"), CUTS)
def test_a_long_row_keeps_the_end_of_its_prompt_and_the_start_of_its_answer(
        lengths: tuple[int, int, int], kept: tuple[int, int]) -> None:
    n_prompt, n_answer, context = lengths
    row = Row(0, tuple(range(n_prompt)), tuple(range(100, 100 + n_answer)))
    (cut,), count = truncate([row], context)
    assert (len(cut.prompt), len(cut.answer)) == kept
    assert cut.prompt == row.prompt[n_prompt - kept[0]:]
    assert cut.answer == row.answer[:kept[1]]
    assert count == (cut != row)


def test_a_context_without_room_for_two_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="context too short - 1"):
        truncate(some_rows(1), 1)
