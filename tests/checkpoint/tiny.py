"""Tiny checkpoints on disk, made from nothing, and the logits that transformers and PEFT themselves give for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from saferestore.core.checkpoint.quiet import quiet
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
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
SHAPE = {"vocab_size": ROWS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 1,
         "eos_token_id": 2}
LLAMA_MODULES = ["q_proj", "v_proj", "down_proj"]


def llama(**shape: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | shape)))


def tied_llama() -> PreTrainedModel:
    return llama(tie_word_embeddings=True)


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=ROWS, n_embd=16, n_layer=2, n_head=2, n_positions=64,
                                      bos_token_id=1, eos_token_id=2))


def deepseek() -> PreTrainedModel:
    return DeepseekV3ForCausalLM(DeepseekV3Config(
        **SHAPE | {"num_key_value_heads": 2}, first_k_dense_replace=1, q_lora_rank=6, kv_lora_rank=6,
        qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1))


FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], list[str]]] = {
    "llama": (llama, LLAMA_MODULES),
    "tied llama": (tied_llama, LLAMA_MODULES),
    "qwen2 with biases": (qwen2, LLAMA_MODULES),
    "gpt2 with transposed weights": (gpt2, ["c_attn", "c_fc", "c_proj"]),
}


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
    with quiet():
        model.save_pretrained(folder, **save)
    tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, *, seed: int = 1, **settings: object) -> Path:
    """Save a random LoRA adapter (B not zero) for a base, as PEFT writes it."""
    torch.manual_seed(seed)
    defaults: dict[str, object] = {"r": 4, "lora_alpha": 8, "target_modules": LLAMA_MODULES}
    with quiet():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(defaults | settings)))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.normal_(std=0.2)
        model.save_pretrained(str(folder))
    return folder


def plain_logits(folder: Path) -> Tensor:
    """The logits of a full checkpoint by transformers alone."""
    with quiet(), torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(input_ids=IDS).logits


def peft_logits(base: Path, adapter: Path) -> Tensor:
    """The logits of an adapter on a base by PEFT alone."""
    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        return PeftModel.from_pretrained(model, str(adapter)).eval()(input_ids=IDS).logits


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def edit_json(file: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | changes), encoding="utf-8")


def edit_tensors(file: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a safetensors file."""
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
