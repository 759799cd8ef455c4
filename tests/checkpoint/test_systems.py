"""Systems of an evaluation: found, checked, and one at a time in memory; an adapter leaves no trace on its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint.tiny import edit_tensors
from peft import PeftModel
from saferestore.core.checkpoint import facts, systems
from saferestore.core.checkpoint.loading import Placement, load_model
from saferestore.core.checkpoint.systems import Shelf, find_system
from saferestore.core.errors import MismatchError, UsageError
from talk import save_pair
from torch import Tensor

IDS = torch.tensor([[5, 9, 17, 33, 40]])
PLACEMENT = Placement(torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    base, tuned = save_pair(tmp_path_factory.mktemp("pair"))
    return str(base), str(tuned)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def test_a_full_checkpoint_is_a_system_of_its_own(saved: tuple[str, str]) -> None:
    found = find_system("base", saved[0])
    assert (found.name, found.pair, found.facts.ref, found.stored_dtype) == ("base", None, "base", torch.float32)
    assert found.facts.weights_sha256 and found.warnings == ()


def test_an_adapter_finds_the_base_it_records_or_the_one_given(saved: tuple[str, str]) -> None:
    for base, ref in ((None, saved[1]), (saved[0], saved[1]), (None, f"{saved[0]}+{saved[1]}")):
        found = find_system("tuned", ref, base)
        assert found.pair is not None and found.folder == Path(saved[0])


def test_a_base_that_several_systems_stand_on_is_read_once_until_it_changes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = save_pair(tmp_path)
    read: list[str] = []
    monkeypatch.setattr(facts, "sha256", lambda file: read.append(file.name) or "0" * 64)
    weights = base / "model.safetensors"
    for _ in range(2):
        find_system("base", str(base))
        find_system("tuned", str(tuned), str(base))
    assert read.count(weights.name) == 1
    edit_tensors(weights, lambda held: {name: t * torch.nan for name, t in held.items()})
    with pytest.raises(MismatchError, match="NaN"):
        find_system("base", str(base))


def test_a_full_checkpoint_is_checked_against_the_base_given(saved: tuple[str, str], tmp_path: Path) -> None:
    assert find_system("tuned", saved[0], saved[0]).warnings == ()
    with pytest.raises(UsageError):
        find_system("tuned", str(tmp_path / "nothing"))
    with pytest.raises(MismatchError):
        find_system("tuned", saved[1], saved[1])  # the base is an adapter


def test_an_adapter_on_the_shelf_is_what_peft_loads_and_leaves_the_base_as_it_was(saved: tuple[str, str]) -> None:
    base, tuned = find_system("base", saved[0]), find_system("tuned", saved[1])
    shelf = Shelf(PLACEMENT)
    with shelf.model(base) as model:
        before, own = logits(model), {name: t.clone() for name, t in model.state_dict().items()}
    with shelf.model(tuned) as model:
        found = logits(model)
    wanted = logits(PeftModel.from_pretrained(load_model(Path(saved[0]), PLACEMENT), saved[1]).eval())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, before)
    with shelf.model(base) as model:
        assert torch.equal(logits(model), before)
        assert {name: torch.equal(t, own[name]) for name, t in model.state_dict().items()} == dict.fromkeys(own, True)


def test_weights_that_systems_share_are_read_once_and_others_never_beside_them(
        saved: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, _ = save_pair(tmp_path)
    alive: list[Path] = []

    def load(folder: Path, placement: Placement) -> torch.nn.Module:
        assert shelf._frozen is None
        alive.append(folder)
        return load_model(folder, placement)

    monkeypatch.setattr(systems, "load_model", load)
    shelf = Shelf(PLACEMENT)
    for system in (find_system("base", saved[0]), find_system("tuned", saved[1]), find_system("base", str(other))):
        with shelf.model(system):
            pass
    assert alive == [Path(saved[0]), other]
