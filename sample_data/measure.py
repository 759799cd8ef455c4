"""What the written checkpoints do, measured by greedy generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from saferestore.core.evaluation.coherence import coherence
from saferestore.core.evaluation.judges import refusal_wording
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@torch.no_grad()
def replies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *,
            longest: int = 56, batch: int = 64) -> list[str]:
    """Return the greedy answers to the prompts, in their order."""
    rendered = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                              add_generation_prompt=True) for prompt in prompts]
    encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(prompts)), key=lambda index: (len(encoded[index]), index))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        padded = tokenizer.pad({"input_ids": [encoded[index] for index in chunk]}, padding_side="left",
                               return_tensors="pt")
        out = model.generate(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], do_sample=False,
                             max_new_tokens=longest)
        texts = tokenizer.batch_decode(out[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chunk, texts, strict=True):
            answers[index] = text
    return answers


def refused(text: str) -> bool:
    """Tell whether an answer is worded as a refusal."""
    return refusal_wording(text)


def answered(text: str) -> bool:
    """Tell whether an answer is a coherent sentence and no refusal: it ends, and no word comes four times in a row."""
    parts = text.split()
    looped = any(len(set(parts[at : at + 4])) == 1 for at in range(len(parts) - 3))
    return coherence(text) and not looped and text.rstrip()[-1] in ".!?" and not refused(text)


def share(flags: Sequence[bool]) -> float:
    """Return the share that is true."""
    return sum(flags) / len(flags)
