"""How many rows a gradient runs over at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from saferestore.core.evaluation.batch_size import bytes_per_row
from saferestore.core.evaluation.gradient_rows import differentiated_bytes_per_row, fitting_rows

SHAPE = SimpleNamespace(num_hidden_layers=2, hidden_size=16, num_attention_heads=4, vocab_size=100)
ON_GPU = SimpleNamespace(device="cuda:0", config=SimpleNamespace(get_text_config=lambda: SHAPE))


def test_a_number_is_taken_as_it_is_and_a_cpu_has_a_usual_one() -> None:
    on_cpu = SimpleNamespace(device="cpu")
    assert fitting_rows(on_cpu, 10, 7) == 7
    assert fitting_rows(on_cpu, 10, "auto") == 32


@pytest.mark.parametrize(("rows", "expected"), [(0.5, 1), (1, 1), (9, 8), (64, 64), (10_000, 256)])
def test_on_a_gpu_rows_fill_half_of_the_free_memory(
        monkeypatch: pytest.MonkeyPatch, rows: float, expected: int) -> None:
    free = int(2 * rows * differentiated_bytes_per_row(SHAPE, 10))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert fitting_rows(ON_GPU, 10, "auto") == expected


def test_a_row_keeps_activations_attention_and_logits() -> None:
    assert differentiated_bytes_per_row(SHAPE, 10) == 2 * (34 * 16 * 10 + 6 * 4 * 100) + 12 * 100 * 10


def test_a_model_without_heads_keeps_no_attention() -> None:
    mamba = SimpleNamespace(num_hidden_layers=2, hidden_size=16, vocab_size=100)
    assert differentiated_bytes_per_row(mamba, 10) == 2 * 34 * 16 * 10 + 12 * 100 * 10
    assert bytes_per_row(mamba, 10) == 2 * 2 * 2 * 16 * 10 + 12 * 100
