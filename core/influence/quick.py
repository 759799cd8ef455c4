"""Forward passes for answer losses alone, without the work that these do not need.

- Where the adapted weights are of 32 bits or more and memory has room for a copy of them, W + BA takes the place of W
  and the adapter is switched off: LoRA's small products are a third of a small model's time. Weights of 16 bits could
  not hold the small moves of a difference; they stay as they are.
- Tokens that all rows begin with, as those of a system prompt, run once; rows go on from their keys and values.
- Nothing follows a row's last token: the last column of a batch is left out.
- Behind the last attention no token is read by another: the last block's MLP and the vocabulary projection run on the
  tokens before answer tokens alone.

Up to rounding the losses are those of the whole pass.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from ..checkpoint.session import ADAPTER, LiveModel
from ..data.batches import IGNORED, Batch
from ..data.scratch import is_small
from ..losses import AnswerLogits

PLAIN = (nn.Linear, Conv1D)
WIDE = (torch.float32, torch.float64)


def is_mergeable(live: LiveModel) -> bool:
    """Tell whether W + BA can take the place of every adapted weight W: see `merged`."""
    parts = [module for module in live.model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    weights = [_foldable(part) for part in parts]
    sizes: Counter[torch.device] = Counter()
    for weight in weights:
        if weight is None:
            return False
        sizes[weight.device] += weight.numel() * weight.element_size()
    return bool(weights) and all(is_small(size, device) for device, size in sizes.items())


def _foldable(part: Any) -> Tensor | None:
    """W of a module y = W x + B A x of one plain adapter, both of one type of 32 bits or more, in memory; else None."""
    if type(part) is not LoraLinear or type(part.base_layer) not in PLAIN:
        return None
    if part.active_adapters != [ADAPTER] or part.lora_variant or part.lora_bias[ADAPTER]:
        return None
    if part.merged or part.disable_adapters:
        return None
    weight: Any = part.base_layer.weight
    factor = part.lora_B[ADAPTER].weight
    alike = weight.dtype == factor.dtype and weight.device == factor.device
    known = isinstance(weight, Tensor) and alike and weight.dtype in WIDE and weight.device.type != "meta"
    return weight if known else None


@contextmanager
def merged(live: LiveModel) -> Iterator[None]:
    """Run the model by plain weights that hold the adapter at its present parameters; for `is_mergeable` models.

    The weights are copies, one of each adapted matrix, dropped on leaving; the model's own are not touched, so that a
    matrix that also serves as the embedding does so unchanged.

    Yields:
        Nothing. Parameters of the adapter that are set inside have no effect.
    """
    layers: list[Any] = [module for module in live.model.modules() if type(module) is LoraLinear]
    own = [layer.base_layer.weight for layer in layers]
    try:
        with torch.no_grad():
            for layer, weight in zip(layers, own, strict=True):
                whole = layer.get_delta_weight(ADAPTER).add_(weight)
                layer.base_layer.weight = nn.Parameter(whole, requires_grad=False)
        with live.model.disable_adapter():
            yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.base_layer.weight = weight


def last_mlp(model: nn.Module) -> nn.Module | None:
    """Return the MLP of a transformers model's last block; None where the blocks are built in another way.

    Args:
        model: A causal language model, plain or under PEFT.
    """
    config: Any = getattr(model, "config", None)
    depth = config.get_text_config().num_hidden_layers if isinstance(config, PretrainedConfig) else None
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(stacks) != 1:
        return None
    mlps = [getattr(block, "mlp", None) for block in stacks[0]]
    return mlps[-1] if isinstance(mlps[-1], nn.Module) and all(mlp is not mlps[-1] for mlp in mlps[:-1]) else None


def common_start(batches: Sequence[Batch]) -> Tensor:
    """Return the tokens that all rows begin with, [P], without the last one before an answer token."""
    first = batches[0].input_ids[0]
    for batch in batches:
        length = min(len(first), batch.input_ids.shape[1] - 1)
        same = (batch.input_ids[:, :length] == first[:length]).all(dim=0)
        go_on = same & (batch.labels[:, 1:length + 1] == IGNORED).all(dim=0)
        first = first[:int(go_on.cumprod(0).sum())]
    return first


def started(model: nn.Module, start: Tensor, head: nn.Module | None = None) -> DynamicCache | None:
    """Return the keys and values of a beginning, [P] tokens; None where it is empty or the model keeps none.

    Args:
        model: A causal language model.
        start: The tokens.
        head: Its projection on the vocabulary, which then runs on one token alone.
    """
    if not len(start):
        return None
    given = start.unsqueeze(0).to(next(model.parameters()).device)
    last = torch.zeros_like(given, dtype=torch.bool)
    last[:, -1] = True
    with _only_at(head, last, spread=False) if head is not None else nullcontext():
        out = model(input_ids=given, attention_mask=torch.ones_like(given), use_cache=True)
    past = getattr(out, "past_key_values", None)
    return past if isinstance(past, DynamicCache) else None


@dataclass(frozen=True)
class QuickPasses:
    """What passes over some batches have in common.

    Attributes:
        model: A causal language model, at the parameters of `past`.
        mlp: `last_mlp` of it; None: it runs on all tokens.
        head: Its projection on the vocabulary; None: it runs on all tokens.
        past: Keys and values of the tokens that all rows begin with; None: of none.
    """

    model: nn.Module
    mlp: nn.Module | None
    head: nn.Module | None
    past: DynamicCache | None

    def answer_logits(self, batch: Batch) -> AnswerLogits:
        """Return what `losses.answer_logits` does.

        Args:
            batch: B rows, which begin with the tokens of `past`.

        Raises:
            TypeError: The MLP does not map one tensor to one tensor, or the head does not give the logits.
        """
        batch = batch.to(next(self.model.parameters()).device)
        known = self.past.get_seq_length() if self.past is not None else 0
        following = batch.labels[:, known + 1:]
        wanted = following != IGNORED
        inputs = {"input_ids": batch.input_ids[:, known:-1], "attention_mask": batch.attention_mask[:, :-1],
                  "use_cache": False, **_for_rows(self.past, len(wanted))}
        with ExitStack() as hooks:
            if self.mlp is not None:
                hooks.enter_context(_only_at(self.mlp, wanted))
            if self.head is not None:
                hooks.enter_context(_only_at(self.head, wanted, spread=False))
            logits = self.model(**inputs).logits
        labels = following[wanted].to(logits.device)
        if self.head is None:
            logits = logits[wanted.to(logits.device)].unsqueeze(0)
        if logits.shape[:2] != (1, len(labels)):
            raise TypeError(f"logits of shape {list(logits.shape)} for {len(labels)} tokens")
        rows = batch.rows.unsqueeze(1).expand_as(wanted)[wanted].to(logits.device)
        return AnswerLogits(logits[0].to(torch.promote_types(logits.dtype, torch.float32)), labels, rows)


def quick_passes(live: LiveModel, batches: Sequence[Batch]) -> QuickPasses:
    """Return what passes over some batches have in common at the present parameters; runs their common beginning."""
    model: Any = live.model.get_base_model()
    head = model.get_output_embeddings()
    return QuickPasses(live.model, last_mlp(live.model), head, started(live.model, common_start(batches), head))


def _for_rows(past: DynamicCache | None, count: int) -> dict[str, Any]:
    """The model's arguments by which so many rows go on from one beginning."""
    if past is None:
        return {}
    rows = copy.deepcopy(past)
    rows.batch_repeat_interleave(count)
    return {"past_key_values": rows, "use_cache": True}


@contextmanager
def _only_at(part: nn.Module, wanted: Tensor, *, spread: bool = True) -> Iterator[None]:
    """Inside, a module of [B, T, d] runs on the N tokens where `wanted` [B, T] is true.

    Its output is 0 elsewhere; without `spread` it is [1, N, d].
    """
    places = wanted.flatten().nonzero().squeeze(1)

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        if len(args) != 1 or args[0].shape[:-1] != wanted.shape:
            raise TypeError(f"{type(part).__name__} does not take {list(wanted.shape)} tokens alone")
        return (args[0].flatten(0, 1)[places.to(args[0].device)].unsqueeze(0),)

    def put_back(_: nn.Module, __: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"{type(part).__name__} gives a {type(output).__name__}")
        whole = output.new_zeros(wanted.numel(), output.shape[-1])
        return whole.index_copy_(0, places.to(output.device), output[0]).view(*wanted.shape, -1)

    handles = [part.register_forward_pre_hook(pick), *([part.register_forward_hook(put_back)] if spread else [])]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
