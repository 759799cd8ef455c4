"""Whether a model leaves out what pads a batch on the left, tried rather than assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from .batch_size import ran_out_of_memory

TRIED = 16
"""Tokens of the prompt by which padding is tried, and tokens it is padded with."""

PADDED_ALIKE = {torch.float32: 1e-3}
"""Largest relative distance of logits at which padding counts as left out, by the model's dtype.

Of 66 small random models of transformers 5.23 those that leave it out are within 5e-7 (bfloat16: 0.012), the three that
do not 0.075 and more away.
"""

ROUGHLY_ALIKE = 0.05
"""The same for dtypes of 16 bits."""

_leaves_out: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""What `leaves_out_padding` found, by model."""


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask [prompts, longest], int64; the mask is 0 at padding."""
    width = max(map(len, prompts))
    gaps = [width - len(prompt) for prompt in prompts]
    ids = [[pad_id] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)


def leaves_out_padding(model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> bool:
    """Tell whether a model answers a prompt that is padded on the left as it does alone; tried once a model.

    Some recurrent models read padding as text (RWKV, RecurrentGemma) or carry it on to the second token (MiniMax);
    eager attention in float64 gives NaN, for its softmax is in float32, where the least float64 of the mask is -inf.

    Args:
        model: With `generate`, its settings empty.
        prompts: Token ids, of which a few are tried.
        pad_id: Any token id.

    Returns:
        Whether the logits of its first two tokens, the first one given, are alike. A rough model taken for one that
        reads padding is slower, not wrong. False where memory runs out, and tried again later.
    """
    if model not in _leaves_out:
        short = list(min(prompts, key=len))[-TRIED:]
        longer = [token for prompt in prompts for token in prompt][:len(short) + TRIED]
        longer = (longer * (2 * TRIED))[:len(short) + TRIED]
        try:
            alone, beside = (_first_logits(model, rows, short[0], pad_id) for rows in ([short], [short, longer]))
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            return False
        distance = (alone - beside).norm(dim=-1) / (alone - alone.mean(dim=-1, keepdim=True)).norm(dim=-1)
        _leaves_out[model] = bool(distance.max() <= PADDED_ALIKE.get(model.dtype, ROUGHLY_ALIKE))
    return _leaves_out[model]


def _first_logits(model: Any, prompts: Sequence[Sequence[int]], first: int, pad_id: int) -> Tensor:
    """Return the logits [2, vocabulary], float64, of the first prompt's first two tokens, the first one `first`."""
    def given(_: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -1.0).index_fill(1, torch.tensor([first], device=scores.device), 1.0)

    ids, mask = left_padded(prompts, pad_id)
    settings = GenerationConfig(max_new_tokens=2, do_sample=False, num_beams=1, use_cache=True, pad_token_id=pad_id,
                                return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                             generation_config=settings, logits_processor=LogitsProcessorList([given]))
    return torch.stack([step[0] for step in out.logits]).cpu().double()  # mps has no float64
