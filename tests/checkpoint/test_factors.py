"""Padding and balance of low-rank factors, against the dense product."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.checkpoint.factors import balanced, pad, servable_rank


def _random(rank: int, inside: int, outside: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rank, inside, generator=g, dtype=torch.float64),
            0.1 * torch.randn(outside, rank, generator=g, dtype=torch.float64))


@pytest.mark.parametrize(("ranks", "rank"), [([1], 8), ([8], 8), ([9], 16), ([4, 17], 32), ([64], 64), ([65, 2], 128)])
def test_ranks_are_rounded_up_to_what_servers_take(ranks: list[int], rank: int) -> None:
    assert servable_rank(ranks) == rank


def test_padding_leaves_the_product_alone() -> None:
    a, b = _random(3, 10, 7)
    wide_a, wide_b = pad(a, b, 8)
    assert wide_a.shape == (8, 10)
    assert wide_b.shape == (7, 8)
    assert torch.equal(wide_b @ wide_a, b @ a) or torch.allclose(wide_b @ wide_a, b @ a, atol=1e-15)


@pytest.mark.parametrize("shape", [(4, 10, 7), (8, 5, 12), (8, 12, 5), (8, 3, 3)])
def test_balanced_factors_have_the_same_product_and_equal_gram_matrices(shape: tuple[int, int, int]) -> None:
    a, b = _random(*shape)
    new_a, new_b = balanced(a, b)
    assert new_a.shape == a.shape
    assert new_b.shape == b.shape
    torch.testing.assert_close(new_b @ new_a, b @ a, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(new_a @ new_a.T, new_b.T @ new_b, atol=1e-12, rtol=1e-9)


def test_the_scale_of_the_factors_is_forgotten() -> None:
    a, b = _random(4, 10, 7)
    first, second = balanced(a, b), balanced(100 * a, b / 100)
    # Each singular direction keeps its sign freedom.
    torch.testing.assert_close(first[0].abs(), second[0].abs())
    torch.testing.assert_close(first[1].abs(), second[1].abs())


def test_padded_rows_stay_exact_zeros() -> None:
    a, b = pad(*_random(3, 10, 7), 8)
    new_a, new_b = balanced(a.float(), b.float())
    assert torch.count_nonzero(new_a[3:]) == 0
    assert torch.count_nonzero(new_b[:, 3:]) == 0
    assert torch.count_nonzero(new_a[:3].abs().sum(1)) == 3


def test_columns_that_cancel_become_zeros() -> None:
    a, b = _random(2, 10, 7)
    new_a, new_b = balanced(torch.cat([a, a]).float(), torch.cat([b, b], dim=1).float())
    assert torch.count_nonzero(new_a.abs().sum(1)) == 2
    torch.testing.assert_close(new_b @ new_a, (2 * b @ a).float())


def test_a_product_of_zero_keeps_its_factors_so_that_gradients_survive() -> None:
    a, b = _random(4, 10, 7)
    kept_a, kept_b = balanced(a, torch.zeros_like(b))
    assert torch.equal(kept_a, a)
    assert torch.count_nonzero(kept_b) == 0
