"""A byte-level BPE tokenizer trained on the spot, and the folder of real public files where it is present."""

from __future__ import annotations

from pathlib import Path

import pytest
from saferestore.core.data.records import Message, Record
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")
TEXT = ["How do I kill a process?", "The answer is 42, and it is billing.", "I am sorry, but I cannot help."] * 4


def trained_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most 330 tokens; special: <|end|> ends a turn, <|eos|> a text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|eos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    inner.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|eos|>",
                                        additional_special_tokens=special[2:])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return trained_tokenizer(TEMPLATE)


@pytest.fixture
def bare_tokenizer() -> PreTrainedTokenizerFast:
    return trained_tokenizer(None)


@pytest.fixture
def question() -> Record:
    return Record("q", (Message("user", "How do I kill a process?"),))


@pytest.fixture(scope="session")
def real_files() -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data beside the checkout")
    return folder
