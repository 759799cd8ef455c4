"""Tiny judging models on disk that write what a test says."""

from __future__ import annotations

from pathlib import Path

import torch
from saferestore.core.checkpoint.quiet import quiet
from talk import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 4096
END = "<|end|>"


def chain(tokens: list[str], *, context: int = CONTEXT) -> LlamaForCausalLM:
    """A model whose next token depends on the last one alone: each of `tokens` is followed by the next."""
    tokenizer = byte_tokenizer()
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]  # type: ignore[arg-type]
    size = -(-len(tokenizer) // 4) * 4  # two heads of an even width
    shape = LlamaConfig(vocab_size=len(tokenizer), hidden_size=size, intermediate_size=8, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
                        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False)
    model = LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for before, after in zip(ids, ids[1:], strict=False):
            model.lm_head.weight[after, before] = 1.0
    return model


def says(word: str, after: str) -> LlamaForCausalLM:
    return chain([after, *word, END])


def saved(folder: Path, model: LlamaForCausalLM) -> Path:
    with quiet():
        model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
