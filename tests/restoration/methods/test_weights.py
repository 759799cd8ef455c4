"""Weights on disk, and the way of a dense change back into factors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.session import read_params
from saferestore.core.errors import MismatchError
from saferestore.core.restoration.methods import weights
from saferestore.core.restoration.methods.weights import Weights, difference, folded, truncated, tuned_changes

from ...cases import WIDTH, live_model
from .given import inputs, save_weights, weights_of


def matrix() -> torch.Tensor:
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_truncation_keeps_the_leading_singular_values_and_says_what_it_leaves() -> None:
    values = torch.linalg.svdvals(matrix())
    a, b, lost = truncated(matrix(), 2)
    torch.testing.assert_close(torch.linalg.svdvals(b @ a)[:2], values[:2])
    assert lost == pytest.approx(float((matrix() - b @ a).square().sum()), rel=1e-9)
    assert lost == pytest.approx(float(values[2:].square().sum()), rel=1e-9)
    torch.testing.assert_close(a @ a.T, b.T @ b)


def test_factors_of_a_rank_above_the_matrixs_are_padded_and_lose_nothing() -> None:
    a, b, lost = truncated(matrix(), 8)
    assert a.shape == (8, 6) and b.shape == (9, 8) and lost == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(b @ a, matrix())


def test_a_large_matrix_of_low_rank_is_found_by_random_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "WHOLE", 10)
    generator = torch.Generator().manual_seed(2)
    low = torch.randn(60, 3, generator=generator).double() @ torch.randn(3, 50, generator=generator).double()
    before = torch.random.get_rng_state()
    a, b, lost = truncated(low, 3, seed=1)
    torch.testing.assert_close(b @ a, low)
    assert lost == pytest.approx(0, abs=1e-6) and torch.equal(before, torch.random.get_rng_state())


def test_of_a_large_matrix_whose_values_hardly_fall_random_projection_leaves_little_more_than_need_be(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "WHOLE", 10)
    full = torch.randn(60, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    least = float(torch.linalg.svdvals(full)[5:].square().sum())
    a, b, lost = truncated(full, 5)
    assert least <= lost * (1 + 1e-9) and lost == pytest.approx(float((full - b @ a).square().sum()))
    assert lost < 1.01 * least


def test_what_is_lost_is_the_share_of_all_modules_together() -> None:
    given = inputs(live_model(rank=2))
    start, generator = read_params(given.problem.live), torch.Generator().manual_seed(6)
    wanted = {module: (1 + number) * torch.randn(like.shape, generator=generator, dtype=torch.float64)
              for number, (module, like) in enumerate(weights_of(start).items())}
    edited = folded(given, start, lambda module, _: wanted[module])
    left = sum(float((wanted[module] - change).square().sum()) for module, change in weights_of(edited.params).items())
    assert len(wanted) > 1
    assert edited.lost == pytest.approx(left / sum(float(t.square().sum()) for t in wanted.values()))


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_found_without_the_name_of_the_models_body_and_turned(tmp_path: Path, transposed: bool) -> None:
    shapes = weights_of(read_params(live_model()))
    plain = Weights(save_weights(tmp_path / "a", shapes, seed=4), transposed=False)
    short = Weights(save_weights(tmp_path / "b", shapes, seed=4, prefix="model.", transposed=transposed),
                    transposed=transposed)
    for module, like in shapes.items():
        torch.testing.assert_close(plain(module, like), short(module, like))
        assert plain(module, like).shape == like.shape and not difference(plain, short, module, like).any()


def test_a_weight_that_is_not_there_is_named(tmp_path: Path) -> None:
    shapes = weights_of(read_params(live_model()))
    with pytest.raises(MismatchError, match=r"no weight model\.x\.weight - a"):
        Weights(save_weights(tmp_path / "a", shapes, seed=4), transposed=False)("model.x", torch.zeros(1))


def test_changes_of_an_adapter_are_its_products_and_of_a_full_checkpoint_the_difference_of_files(
        tmp_path: Path) -> None:
    shapes = weights_of(read_params(live_model(rank=WIDTH)))
    given = inputs(live_model(rank=WIDTH))
    start = read_params(given.problem.live)
    for module, change in tuned_changes(given, start):
        torch.testing.assert_close(change, shapes[module])
    full = inputs(live_model(rank=WIDTH), kind="full", base_dir=save_weights(tmp_path / "base", shapes, seed=1))
    full.pair.__dict__["tuned_dir"] = save_weights(tmp_path / "tuned", shapes, seed=2)
    both = [Weights(tmp_path / name, transposed=False) for name in ("tuned", "base")]
    for module, change in tuned_changes(full, start):
        torch.testing.assert_close(change, both[0](module, change) - both[1](module, change))
    halved = weights_of(folded(full, start, lambda _, before: 0.5 * before).params)
    for module, change in tuned_changes(full, start):
        torch.testing.assert_close(halved[module], -0.5 * change)
