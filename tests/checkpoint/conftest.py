"""Saved tiny checkpoints, shared where no test changes them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from .tiny import FAMILIES, save_adapter, save_base


@dataclass(frozen=True)
class Saved:
    """A base, a LoRA adapter on it, and a full checkpoint of the same shape with other weights."""

    base: Path
    adapter: Path
    full: Path


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Every model family in turn; not to be changed."""
    make, modules = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family")
    base = save_base(folder / "base", make)
    return Saved(base, save_adapter(folder / "adapter", base, target_modules=modules),
                 save_base(folder / "full", make, seed=5))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Llama; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    base = save_base(folder / "base")
    return Saved(base, save_adapter(folder / "adapter", base), save_base(folder / "full", seed=5))


@pytest.fixture
def mine(tmp_path: Path, saved: Saved) -> Saved:
    """A copy of `saved` for this test to damage; the adapter records the copied base."""
    for name in ("base", "adapter", "full"):
        shutil.copytree(getattr(saved, name), tmp_path / name)
    return Saved(tmp_path / "base", tmp_path / "adapter", tmp_path / "full")
