"""How many rows a gradient may run over at once: a guess from the memory that is free."""

from __future__ import annotations

from typing import Any

import torch

from .batch_size import largest_power_of_two

WITHOUT_A_GPU = 32
KEPT_A_LAYER = 34
"""Numbers of the hidden width that a decoder layer keeps for its backward pass, a token (Korthikanti et al. 2022)."""


def fitting_rows(model: Any, tokens: int, wanted: int | str) -> int:
    """Return how many rows a gradient may run over at once.

    `auto` is 32 where memory cannot be asked for; on a GPU the largest power of two up to 256 whose activations take
    half of what is free. It is a guess: where it was too much, a number has to be given.

    Args:
        model: The model that is differentiated, in memory.
        tokens: Of the longest row.
        wanted: A number, or `auto`.
    """
    if isinstance(wanted, int):
        return wanted
    device = torch.device(model.device)
    if device.type != "cuda":
        return WITHOUT_A_GPU
    row = differentiated_bytes_per_row(model.config.get_text_config(), tokens)
    return largest_power_of_two(torch.cuda.mem_get_info(device)[0] / 2 / row)


def differentiated_bytes_per_row(shape: Any, tokens: int) -> int:
    """Return the bytes that a row keeps for its backward pass: activations and attention in 16 bits, logits in 32.

    Args:
        shape: A configuration of transformers.
        tokens: Prompt and answer.
    """
    # Eager attention keeps its scores, their softmax and what dropout made of it; Mamba has no heads.
    heads = getattr(shape, "num_attention_heads", None) or 0
    layer = KEPT_A_LAYER * shape.hidden_size * tokens + 3 * 2 * heads * tokens**2
    return shape.num_hidden_layers * layer + 3 * 4 * shape.vocab_size * tokens
