"""The switch for algorithms that repeat bit for bit."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.checkpoint.determinism import deterministic


@pytest.mark.parametrize("on", [True, False])
def test_it_is_on_inside_and_as_before_after_a_failure(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with pytest.raises(KeyError), deterministic(on=on):
        assert torch.are_deterministic_algorithms_enabled() == on
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_user_who_has_switched_it_on_keeps_it() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic(on=False):
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
