"""Answers in batches that are the same as one prompt at a time, leaving the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from ..config import Progress, no_progress
from ..errors import UsageError
from .batch_size import fitting_batch_size, ran_out_of_memory, smaller
from .padding import leaves_out_padding, left_padded
from .sampling import GREEDY, Decoding, Sampler

Decodings = Decoding | Sequence[Decoding]


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        tokens: Its token ids, without the one that ended it.
        finished: Whether it ended by itself within the tokens allowed.
        end: The token that ended it, where that is known; it tells no two answers apart.
    """

    tokens: tuple[int, ...]
    finished: bool
    end: int | None = field(default=None, compare=False)


NONE_KNOWN: Mapping[int, Generation] = {}


def generate(model: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, batch_size: int | str,
             pad_id: int, eos_ids: Sequence[int], decoding: Decodings = GREEDY, progress: Progress = no_progress,
             stage: str = "generate", known: Mapping[int, Generation] = NONE_KNOWN,
             keep: Callable[[Mapping[int, Generation]], None] | None = None) -> list[Generation]:
    """Answer every prompt.

    Prompts of similar length are batched, the longest first, and padded on the left. Of the checkpoint's own
    generation settings (sampling, repetition penalty, forced tokens, ...) the ends alone are used. When a batch does
    not fit in memory, it and all later ones are halved; when one prompt alone does not, that is a SaferestoreError.
    An empty prompt, or a size below 1, is a UsageError.

    Args:
        model: A Hugging Face causal LM or a PEFT model around one; its mode, settings and cache switch are as
            before on return.
        prompts: Token ids, each at least one.
        max_new_tokens: Longest answer.
        batch_size: Prompts a batch, at most, or `auto` (see `fitting_batch_size`).
        pad_id: Any token id; it is masked out.
        eos_ids: Ids that end an answer, beside those of `own_ends`; without any, all have `max_new_tokens` tokens.
        decoding: How tokens are chosen, for all prompts or one a prompt; greedy unless given.
        progress: Called after every batch with the number of prompts answered.
        stage: The name that progress is reported under.
        known: Prompt number -> its answer, of a run that was killed.
        keep: Called with the new answers of every batch before the next one begins.

    Returns:
        One answer a prompt, in the order of the prompts.
    """
    size = fitting_batch_size(model, prompts, max_new_tokens, batch_size)
    answers = dict(known)
    # The plan is that of a run that was never killed, so that every prompt has the neighbours it would have had.
    todo = [batch for batch in plan_batches(prompts, size) if not all(i in known for i in batch)]
    for batch, found in generate_batches(model, prompts, todo, max_new_tokens=max_new_tokens, pad_id=pad_id,
                                         eos_ids=eos_ids, decoding=decoding):
        new = {i: answer for i, answer in zip(batch, found, strict=True) if i not in answers}
        if keep is not None:
            keep(new)
        answers.update(new)
        progress(stage, len(answers), len(prompts))
    return [answers[i] for i in range(len(prompts))]


def plan_batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Return the numbers of the prompts of each batch, prompts of similar length together, the longest first.

    Args:
        prompts: Token ids.
        batch_size: Prompts a batch, at most.

    Returns:
        Batches that hold each prompt once; they depend on the lengths alone.

    Raises:
        UsageError: `batch_size` below 1.
    """
    if batch_size < 1:
        raise UsageError(f"must be at least 1 - --batch-size {batch_size}", hint="try --batch-size 32")
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[i:i + batch_size] for i in range(0, len(order), batch_size)]


def generate_batches(model: Any, prompts: Sequence[Sequence[int]], batches: Sequence[Sequence[int]], *,
                     max_new_tokens: int, pad_id: int, eos_ids: Sequence[int], decoding: Decodings = GREEDY,
                     start: int = 0) -> Iterator[tuple[list[int], list[Generation]]]:
    """Answer planned batches one after another, so that a long run can keep each and go on from any.

    A batch that does not fit in memory is answered in halves and yielded whole; later ones start at the size that
    fitted. A model that reads padding as text (`leaves_out_padding`) answers the prompts of each length by themselves.
    The model is as before whenever a batch is yielded.

    Args:
        model: See `generate`, as all that follows.
        prompts: Token ids.
        batches: From `plan_batches`; a run that goes on needs the same plan.
        max_new_tokens: Longest answer.
        pad_id: Any token id.
        eos_ids: Ids that end an answer.
        decoding: How tokens are chosen.
        start: Number of the first batch to answer.

    Yields:
        A batch's prompt numbers and their answers in that order.
    """
    _check(prompts, max_new_tokens)
    eos_ids = sorted({*eos_ids, *own_ends(model)})
    how = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
    ends, size = frozenset(eos_ids), max(map(len, batches), default=1)
    for batch in batches[start:]:
        rows: list[list[int]] = []
        with quiet_model(model) as inner:
            while len(rows) < len(batch):
                part = _part(inner, prompts, batch[len(rows):len(rows) + size], pad_id)
                found = _attempt(inner, [prompts[i] for i in part], max_new_tokens, pad_id, eos_ids,
                                 [how[i] for i in part])
                if found is None:
                    size = smaller(len(part))
                else:
                    rows += found
        yield list(batch), [_until_eos(row, ends) for row in rows]


def own_ends(model: Any) -> tuple[int, ...]:
    """Return the ids that end an answer by the settings that a checkpoint brings in a file of its own.

    Models whose template writes no end of a turn stop at the next speaker's name, which only stands there.

    Args:
        model: A Hugging Face model, or a PEFT model around one.

    Returns:
        The ids; none where the settings are but made of the model's configuration, whose defaults are often wrong.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or getattr(settings, "_from_model_config", False):
        return ()
    ids = settings.eos_token_id
    return tuple(ids) if isinstance(ids, list | tuple) else () if ids is None else (int(ids),)


def _part(model: Any, prompts: Sequence[Sequence[int]], batch: Sequence[int], pad_id: int) -> Sequence[int]:
    """Return as many of a batch as can be answered at once: those as long as the first where padding is read."""
    same = list(takewhile(lambda i: len(prompts[i]) == len(prompts[batch[0]]), batch))
    if len(same) == len(batch) or leaves_out_padding(model, [prompts[i] for i in batch], pad_id):
        return batch
    return same


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    empty = next((i for i, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise UsageError(f"empty prompt - number {empty}", hint="leave such prompts out")
    if max_new_tokens < 1:
        raise UsageError(f"must be at least 1 - --max-new-tokens {max_new_tokens}", hint="try --max-new-tokens 64")


@contextmanager
def quiet_model(model: Any) -> Iterator[Any]:
    """Yield the Hugging Face model in evaluation mode with empty generation settings; restore both on exit.

    PEFT's own `generate` rewires two attributes of the wrapped model and leaves one so; the adapters sit
    inside the wrapped model and work without it. Passing a GenerationConfig alone would not do: the
    checkpoint's settings fill in whatever it leaves unset.

    Args:
        model: A Hugging Face causal LM or a PEFT model around one.

    Yields:
        The model that has `generate`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, training = inner.generation_config, [module for module in inner.modules() if module.training]
    inner.eval()
    inner.generation_config = GenerationConfig()
    try:
        yield inner
    finally:
        inner.generation_config = own
        for module in training:
            module.training = True


def _attempt(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, pad_id: int,
             eos_ids: Sequence[int], decodings: Sequence[Decoding]) -> list[list[int]] | None:
    """Return the new tokens of each prompt, None when memory ran out."""
    ids, mask = left_padded(prompts, pad_id)
    settings = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
                                pad_token_id=pad_id, eos_token_id=list(eos_ids) or None)
    greedy = all(how.greedy for how in decodings)
    drawn = [] if greedy else [Sampler(prompts, decodings, ids.shape[1], max_new_tokens)]
    try:
        with torch.no_grad():
            out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                                 generation_config=settings, logits_processor=LogitsProcessorList(drawn))
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return None
    return out[:, ids.shape[1]:].tolist()


def _until_eos(tokens: Sequence[int], ends: frozenset[int]) -> Generation:
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    return Generation(tuple(tokens), False) if end is None else Generation(tuple(tokens[:end]), True, tokens[end])
