"""Problems as data: tiny causal models with LoRA adapters, and ragged batches, all float64 and seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, get_peft_model
from saferestore.core.checkpoint.session import LiveModel
from saferestore.core.data.batches import Batch, Row, make_batches
from saferestore.core.params import Params
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import LlamaRMSNorm

VOCAB = 31
WIDTH = 16




class _Norm64(LlamaRMSNorm):
    """The same norm without the cast to float32 that would leave 1e-7 of rounding in every reference."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        mean_square = hidden_states.square().mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(mean_square + self.variance_epsilon)


def _attention64(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor,
                 scaling: float, **_: object) -> tuple[Tensor, None]:
    """Eager attention without the softmax in float32."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(2, 3) * scaling + attention_mask
    return (nn.functional.softmax(scores, dim=-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("float64", _attention64)
AttentionMaskInterface.register("float64", eager_mask)

_SHAPE = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
          "attn_implementation": "float64"}


def _in_float64(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.__class__ = _Norm64
    return model


def _llama() -> nn.Module:
    return _in_float64(LlamaForCausalLM(LlamaConfig(**_SHAPE)))


def _qwen2() -> nn.Module:
    return _in_float64(Qwen2ForCausalLM(Qwen2Config(**_SHAPE)))


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64,
                                      bos_token_id=1, eos_token_id=2, attn_implementation="float64"))


def _opt() -> nn.Module:
    return OPTForCausalLM(OPTConfig(vocab_size=VOCAB, hidden_size=WIDTH, ffn_dim=24, num_hidden_layers=2,
                                    num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=WIDTH,
                                    activation_function="gelu", attn_implementation="float64"))


def _deepseek() -> nn.Module:
    return _in_float64(DeepseekV3ForCausalLM(DeepseekV3Config(
        **{**_SHAPE, "num_key_value_heads": 2}, first_k_dense_replace=2, q_lora_rank=6, kv_lora_rank=6,
        qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4)))


@dataclass(frozen=True)
class Family:
    """How a kind of model is made, and which of its modules take adapters."""

    make: Callable[[], nn.Module]
    some: tuple[str, ...]
    every: tuple[str, ...]
    transposed: bool = False


_LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, ("q_proj", "v_proj"), _LLAMA_LINEAR),
    "qwen2": Family(_qwen2, ("q_proj", "v_proj"), _LLAMA_LINEAR),  # its q, k, v have biases
    "gpt2": Family(_gpt2, ("c_attn",), ("c_attn", "c_proj", "c_fc"), transposed=True),  # Conv1D, not nn.Linear
}

ODD = {"opt": Family(_opt, ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
       "head": Family(_llama, ("lm_head",), ("q_proj", "lm_head")),
       "deepseek": Family(_deepseek, ("kv_b_proj",), ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
                                                      "o_proj"))}
"""MLPs that see the tokens of all rows in a line; an adapted vocabulary projection, which sees few of them; keys and
values of latent attention, which are projected with an axis for their heads."""


def live_model(family: str = "llama", *, seed: int = 0, every_module: bool = False, rank: int = 2,
               dtype: torch.dtype = torch.float64) -> LiveModel:
    """A 2-layer model of a family with random weights, biases included, and a random adapter on some modules.

    Weights are large enough that softmaxes are far from uniform: curvature is then far from a multiple of I.
    """
    made = {**FAMILIES, **ODD}[family]
    torch.manual_seed(seed)
    model = made.make()
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(made.every if every_module else made.some),
                      fan_in_fan_out=made.transposed, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, lora).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.dim() > 1 or "bias" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(0.3 * noise)
    leaves = {leaf_name(name): p for name, p in sorted(wrapped.named_parameters()) if p.requires_grad}
    return LiveModel(wrapped, cast(PreTrainedTokenizerBase, None), leaves, torch.device("cpu"))


def live_model_frozen_in(dtype: torch.dtype) -> LiveModel:
    """Every module adapted, the adapter in float32, all else in a narrower type."""
    live = live_model(dtype=torch.float32, every_module=True)
    for parameter in live.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return live


def leaf_name(name: str) -> str:
    """`base_model.model.MODULE.lora_A.default.weight` -> `MODULE.lora_A.weight`."""
    return name.removeprefix("base_model.model.").replace(".default.", ".")


def ragged_rows(count: int, *, seed: int = 0, longest: int = 5) -> list[Row]:
    """Rows of differing prompt and answer lengths (1 to `longest`)."""
    generator = torch.Generator().manual_seed(seed)

    def tokens() -> tuple[int, ...]:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist())

    return [Row(index, tokens(), tokens()) for index in range(count)]


def ragged_batches(count: int = 6, *, batch_size: int = 4, seed: int = 0, longest: int = 5) -> list[Batch]:
    """Those rows in right-padded batches."""
    return make_batches(ragged_rows(count, seed=seed, longest=longest), batch_size=batch_size, pad_id=0)


def vector_like(params: Params | dict[str, nn.Parameter], *, seed: int) -> Params:
    """A seeded Gaussian vector of the shapes of `params`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
            for name, t in params.items()}


def moved(live: LiveModel, *, by: float, seed: int) -> Params:
    """The model's parameters plus `by` times a Gaussian vector."""
    noise = vector_like(live.leaves, seed=seed)
    return {name: leaf.detach() + by * noise[name] for name, leaf in live.leaves.items()}


def rows_of(batches: Sequence[Batch]) -> int:
    """Rows of a set."""
    return sum(len(batch.rows) for batch in batches)
