"""Tiny checkpoints on disk, made from nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

ROWS, WORDS = 40, 36
IDS = torch.tensor([[3, 7, 11, 5, 2, 9], [4, 4, 8, 30, 21, 1]])


def llama(tie: bool = False, width: int = 16, layers: int = 2) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=ROWS, hidden_size=width, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tie, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=ROWS, n_embd=16, n_layer=2, n_head=2, n_positions=64,
                                      bos_token_id=1, eos_token_id=2))


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=ROWS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2))


def tokenizer(words: int = WORDS, prefix: str = "w") -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({f"{prefix}{i}": i for i in range(words)}, unk_token=f"{prefix}0"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=f"{prefix}0", eos_token=f"{prefix}2")


def save_base(folder: Path, make: Callable[[], PreTrainedModel] = llama, *, seed: int = 0, **save: object) -> Path:
    """Save a random model with a tokenizer; biases are random too, so that none is neutral."""
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    model.save_pretrained(folder, **save)
    tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, *, seed: int = 1, **settings: object) -> Path:
    """Save a random LoRA adapter (B not zero) for a base, as PEFT writes it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(defaults | settings)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def edit_json(file: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | changes), encoding="utf-8")
