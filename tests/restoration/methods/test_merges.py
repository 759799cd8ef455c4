"""Merges against their formulas: the projector, the threshold, the vector added, the safety adapter mixed in."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from saferestore.core.checkpoint.session import read_params
from saferestore.core.errors import MismatchError
from saferestore.core.restoration.methods import edits, merges
from saferestore.core.restoration.methods.inputs import Edit, Inputs
from saferestore.core.restoration.methods.weights import Weights
from torch import Tensor

from ...cases import WIDTH, live_model
from .given import inputs, save_weights, weights_of


@pytest.fixture(scope="module")
def shapes() -> dict[str, Tensor]:
    return weights_of(read_params(live_model(rank=WIDTH)))


@pytest.fixture(scope="module")
def folders(shapes: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("weights")
    return save_weights(home / "base", shapes, seed=1), save_weights(home / "unaligned", shapes, seed=2)


def difference(folders: tuple[Path, Path], module: str, like: Tensor) -> Tensor:
    base, unaligned = (Weights(folder, transposed=False)(module, like) for folder in folders)
    return base - unaligned


def test_the_projector_of_orthonormal_columns_is_the_projection_over_their_norm() -> None:
    columns = torch.linalg.qr(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    found = merges.projector(columns) * 3**0.5
    torch.testing.assert_close(found @ found, found)
    torch.testing.assert_close(found @ columns, columns)


def test_a_direction_of_zero_projects_to_zero_and_turns_nothing() -> None:
    zero = torch.zeros(4, 3, dtype=torch.float64)
    assert not merges.projector(zero).any() and merges.cosine(zero, zero) == 1.0


@pytest.mark.parametrize("make", [merges.safelora, merges.resta, merges.safemerge, edits.prune_random, edits.antidote])
def test_no_matrix_of_a_modules_size_is_kept_from_one_try_to_the_next(
        folders: tuple[Path, Path], make: Callable[[Inputs], Edit]) -> None:
    """Those of all modules would be as large as the model."""
    live = live_model()
    sizes = {change.shape for change in weights_of(read_params(live)).values()}

    def held() -> int:
        gc.collect()
        return sum(type(thing) is Tensor and thing.shape in sizes for thing in gc.get_objects())

    given = inputs(live, base_dir=folders[0], unaligned=folders[1])
    before, edit = held(), make(given)
    edit(0.5)
    assert held() == before


def test_safelora_projects_modules_under_the_threshold_and_leaves_the_others_bit_for_bit(
        shapes: dict[str, Tensor], folders: tuple[Path, Path]) -> None:
    given = inputs(live_model(rank=WIDTH), base_dir=folders[0], unaligned=folders[1])
    start = read_params(given.problem.live)
    cosines = {}
    for module, change in shapes.items():
        v = difference(folders, module, change)
        turned = v @ v.T @ change / v.norm()
        cosines[module] = float((change * turned).sum() / change.norm() / turned.norm())
    threshold = sum(sorted(cosines.values())[1:3]) / 2
    after = merges.safelora(given)(threshold).params
    for module, change in shapes.items():
        v = difference(folders, module, change)
        if cosines[module] < threshold:
            torch.testing.assert_close(weights_of(after)[module], v @ v.T @ change / v.norm())
        else:
            assert all(torch.equal(after[f"{module}.lora_{f}.weight"], start[f"{module}.lora_{f}.weight"])
                       for f in "AB")
    assert sum(cosine < threshold for cosine in cosines.values()) == 2


def test_safelora_at_threshold_zero_returns_its_input(folders: tuple[Path, Path]) -> None:
    given = inputs(live_model(rank=WIDTH), base_dir=folders[0], unaligned=folders[1])
    start, found = read_params(given.problem.live), merges.safelora(given)(0.0)
    assert all(torch.equal(found.params[name], t) for name, t in start.items())


def test_resta_adds_the_safety_vector_where_the_rank_holds_it(
        shapes: dict[str, Tensor], folders: tuple[Path, Path]) -> None:
    given = inputs(live_model(rank=WIDTH), base_dir=folders[0], unaligned=folders[1])
    found = merges.resta(given)(0.3)
    for module, change in shapes.items():
        torch.testing.assert_close(weights_of(found.params)[module],
                                   change + 0.3 * difference(folders, module, change))
    assert found.lost == pytest.approx(0, abs=1e-12)


def test_resta_says_what_a_small_rank_loses(shapes: dict[str, Tensor], folders: tuple[Path, Path]) -> None:
    given = inputs(live_model(rank=2), base_dir=folders[0], unaligned=folders[1])
    changes, wanted, kept = weights_of(read_params(given.problem.live)), 0.0, 0.0
    for module, change in changes.items():
        values = torch.linalg.svdvals(change + 0.5 * difference(folders, module, change)).square()
        wanted, kept = wanted + float(values.sum()), kept + float(values[:2].sum())
    assert merges.resta(given)(0.5).lost == pytest.approx(1 - kept / wanted, rel=1e-9)


def test_an_unaligned_model_of_other_shapes_or_names_is_refused(shapes: dict[str, Tensor], tmp_path: Path) -> None:
    base = save_weights(tmp_path / "base", shapes, seed=1)
    narrow = save_weights(tmp_path / "narrow", {m: t[:, :-1] for m, t in shapes.items()}, seed=2)
    other = save_weights(tmp_path / "other", {f"x{m}": t for m, t in shapes.items()}, seed=2)
    for folder in (narrow, other):
        for make in (merges.safelora, merges.resta):
            with pytest.raises(MismatchError) as caught:
                make(inputs(live_model(rank=WIDTH), base_dir=base, unaligned=folder))
            assert "same architecture" in caught.value.hint


def test_a_corrupted_file_of_the_unaligned_model_is_named(shapes: dict[str, Tensor], tmp_path: Path) -> None:
    base = save_weights(tmp_path / "base", shapes, seed=1)
    given = inputs(live_model(rank=WIDTH), base_dir=base, unaligned=save_weights(tmp_path / "bad", shapes, seed=2))
    weights = Weights(tmp_path / "bad", transposed=False)
    file = tmp_path / "bad" / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(MismatchError, match="bad"):
        weights(next(iter(shapes)), next(iter(shapes.values())))
    with pytest.raises(MismatchError):
        merges.resta(given)


def test_the_safety_adapter_learns_the_safe_answers_from_the_base_and_leaves_the_model_as_it_was() -> None:
    given = inputs(max_passes=20)
    live, start = given.problem.live, read_params(given.problem.live)
    with live.model.disable_adapter():
        base = given.problem.safety[0].value(live.model)
    found = merges.safety_adapter(given)
    assert all(torch.equal(read_params(live)[name], t) for name, t in start.items())
    for name, leaf in live.leaves.items():
        leaf.data.copy_(found[name])
    assert given.problem.safety[0].value(live.model) < base
    assert given.cost.gradient_passes == 10


def test_safemerge_mixes_the_modules_that_lie_off_the_safety_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(live_model(rank=WIDTH))
    start, other = read_params(given.problem.live), read_params(live_model(rank=WIDTH, seed=7))
    monkeypatch.setattr(merges, "safety_adapter", lambda _: other)
    edit, before, safe = merges.safemerge(given), weights_of(start), weights_of(other)
    assert all(torch.equal(edit(0.0).params[name], t) for name, t in start.items())
    cosines = {}
    for module, change in before.items():
        turned = safe[module] @ safe[module].T @ change
        cosines[module] = float((change * turned).sum() / change.norm() / turned.norm())
    median = sorted(cosines.values())[len(cosines) // 2]
    after = weights_of(edit(0.25).params)
    for module, change in before.items():
        mixed = 0.75 * change + 0.25 * safe[module] if cosines[module] <= median else change
        torch.testing.assert_close(after[module], mixed)
    assert any(cosine > median for cosine in cosines.values())
