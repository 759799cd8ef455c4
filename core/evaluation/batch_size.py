"""How many prompts to answer at once: a first guess from the memory that is free, which running out of it corrects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ..errors import SaferestoreError, UsageError

WITHOUT_A_GPU = 64
NO_MEMORY = ("out of memory", "can't allocate memory")
"""What a plain RuntimeError says where memory ran out: mps and the CPU have no exception of their own."""

Result = TypeVar("Result")


def fitting_batch_size(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, wanted: int | str) -> int:
    """Return how many prompts a batch may have.

    `auto` is 64 where memory cannot be asked for; on a GPU the largest power of two up to 256 whose keys and values,
    at the longest prompt, take half of what is free. Too much of it is halved later, so it may be a guess.

    Args:
        model: The model that is to answer, in memory.
        prompts: Token ids.
        max_new_tokens: Longest answer.
        wanted: A number, or `auto`.

    Returns:
        The number itself where one was given.

    Raises:
        UsageError: Any other word.
    """
    if isinstance(wanted, int):
        return wanted
    if wanted != "auto":
        raise UsageError(f"neither a number nor `auto` - --batch-size {wanted}", hint="give --batch-size auto")
    device = torch.device(model.device)
    if device.type != "cuda":
        return WITHOUT_A_GPU
    row = bytes_per_row(model.config.get_text_config(), max(map(len, prompts), default=1) + max_new_tokens)
    return largest_power_of_two(torch.cuda.mem_get_info(device)[0] / 2 / row)


def bytes_per_row(shape: Any, tokens: int) -> int:
    """Return the bytes of one row's keys and values in 16 bits and of its last logits in 32 bits, thrice.

    Args:
        shape: A configuration of transformers.
        tokens: Prompt and answer.
    """
    heads = getattr(shape, "num_attention_heads", None) or 1  # Mamba has none: as if it kept its width a token
    width = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    kept = getattr(shape, "num_key_value_heads", None) or heads
    return 2 * 2 * shape.num_hidden_layers * kept * width * tokens + 3 * 4 * shape.vocab_size


def largest_power_of_two(bound: float) -> int:
    """Return the largest power of two that is at most `bound`, from 1 to 256."""
    return next((2**i for i in range(8, 0, -1) if 2**i <= bound), 1)


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that a smaller batch may fit."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY))


def smaller(batch_size: int) -> int:
    """Return half of a batch size that did not fit, and let go of what the failed batch had reserved.

    Raises:
        SaferestoreError: It is 1 already.
    """
    if batch_size == 1:
        raise SaferestoreError("out of memory - one prompt alone does not fit",
                               hint="lower --max-new-tokens, or give --device cpu")
    torch.cuda.empty_cache()  # does nothing where there is no CUDA
    return batch_size // 2


def stepping_down(batch_size: int, work: Callable[[int], Result]) -> tuple[Result, int]:
    """Do work in batches, with half their size whenever memory runs out.

    Args:
        batch_size: To begin with.
        work: Takes a batch size; begun anew with each.

    Returns:
        Its result, and the batch size that fitted; `smaller`'s error where one row alone does not fit.

    Raises:
        Exception: Whatever is not about memory, as it is.
    """
    size = batch_size
    while True:
        try:
            return work(size), size
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
        size = smaller(size)  # outside of `except`, whose traceback holds on to the tensors of the failed batch
