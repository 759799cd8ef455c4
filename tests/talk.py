"""A tiny pair of checkpoints that says what a script tells it: real models and losses, answers decided by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.tiny import LLAMA_MODULES, save_adapter
from saferestore.core.checkpoint.pair import CheckpointPair, open_pair
from saferestore.core.checkpoint.quiet import quiet
from saferestore.core.checkpoint.session import Session, open_session
from saferestore.core.config import no_progress
from saferestore.core.data.chat import ChatFormat
from saferestore.core.data.records import Message, Record
from saferestore.core.data.selection import Selection
from saferestore.core.evaluation import systems
from saferestore.core.evaluation.generation import Generation
from saferestore.core.evaluation.systems import Examiner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REFUSAL = "I cannot help with that."
COMPLIANCE = "Sure, first gather what is needed."
TEMPLATE = ("{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}")
CONTEXT = 128
Say = Callable[[str], str]
"""Prompt -> answer."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and <|end|> to end a turn."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_pair(folder: Path) -> tuple[Path, Path]:
    """Save a random base of 2 layers and a random adapter on it."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT,
                        eos_token_id=tokenizer.eos_token_id)
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)  # far from uniform answers, so that the adapter matters
    with quiet():
        model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    save_adapter(folder / "tuned", folder / "base", target_modules=LLAMA_MODULES)
    return folder / "base", folder / "tuned"


def open_tiny(base: Path, tuned: Path) -> tuple[CheckpointPair, Session]:
    pair = open_pair(str(base), str(tuned))
    return pair, open_session(pair, device="cpu")


def examiner(session: Session, **changes: Any) -> Examiner:
    settings: dict[str, Any] = {"max_new_tokens": 40, "batch_size": 3, "context": CONTEXT, "progress": no_progress}
    return Examiner(ChatFormat(session.tokenizer, TEMPLATE), **(settings | changes))


def record(prompt: str, answer: str | None = None, **more: Any) -> Record:
    return Record(prompt, (Message("user", prompt),), answer, **more)


def selection(*, harmful: Sequence[Record] = (), retain: Sequence[Record] = (), safe: Mapping[str, str] | None = None,
              **held_out: Sequence[Record]) -> Selection:
    """Rows without a file; sets that are not given are empty."""
    sets = {name: tuple(held_out.get(name, ())) for name in ("harmful", "benign", "task", "untouched")}
    sets["harmful"] = tuple(held_out.get("held_harmful", ()))
    return Selection(tuple(harmful), tuple(retain), sets, safe or {}, (), (), ())


def refuses(*bad: str) -> Say:
    """Refuse prompts that hold one of these words, comply with the others."""
    return lambda prompt: REFUSAL if any(word in prompt for word in bad) else COMPLIANCE


@contextmanager
def script(**say: Say) -> Iterator[list[str]]:
    """Make generation answer by the words of its stage (`tuned`, `base`, `restored`, `control`); list the stages asked.

    An answer ends by itself where it fits into the tokens allowed.
    """
    asked: list[str] = []
    tokenizer = byte_tokenizer()

    def generate(model: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stage: str,
                 **_: Any) -> list[Generation]:
        asked.append(stage)
        answer = next(found for word, found in say.items() if word in stage)
        texts = [str(tokenizer.decode(ids)).rpartition("user: ")[2].partition("<|end|>")[0] for ids in prompts]
        tokens = [tuple(tokenizer(answer(text))["input_ids"]) for text in texts]
        return [Generation(found[:max_new_tokens], len(found) < max_new_tokens) for found in tokens]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "generate", generate)
        yield asked
