"""Forward passes for answer losses alone, without the work that these do not need.

- Where the adapted weights are of 32 bits or more and memory has room for a copy of them, W + BA takes the place of W
  and the adapter is switched off: LoRA's small products are a third of a small model's time. Weights of 16 bits could
  not hold the small moves of a difference; they stay as they are.
- Tokens that all rows begin with, as those of a system prompt, run once; rows go on from their keys and values.
- Nothing follows a row's last token: the last column of a batch is left out.
- Behind the last attention no token is read by another: the last block's MLP runs on the tokens before answer tokens.

Up to rounding the losses are those of the whole pass.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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


def started(model: nn.Module, start: Tensor) -> DynamicCache | None:
    """Return the keys and values of a beginning, [P] tokens; None where it is empty or the model keeps none."""
    if not len(start):
        return None
    device = next(model.parameters()).device
    past = getattr(model(input_ids=start.unsqueeze(0).to(device), use_cache=True), "past_key_values", None)
    return past if isinstance(past, DynamicCache) else None


@dataclass(frozen=True)
class QuickPasses:
    """What passes over some batches have in common.

    Attributes:
        model: The model, at the parameters of `past`.
        mlp: `last_mlp` of it; None: it runs on all tokens.
        past: Keys and values of the tokens that all rows begin with; None: of none.
    """

    model: nn.Module
    mlp: nn.Module | None
    past: DynamicCache | None

    @contextmanager
    def answers_only(self, batch: Batch) -> Iterator[Batch]:
        """Give what to run instead of a batch; inside, the model goes on from `past` and spares the last MLP.

        Args:
            batch: B rows of T tokens, P of them in `past`.

        Yields:
            The batch with T - 1 - P input tokens. Its labels are [B, T - P]: the first is not used, as nothing comes
            before it.

        Raises:
            TypeError: The MLP does not map one tensor to one tensor (while the model runs).
        """
        skip = self.past.get_seq_length() if self.past is not None else 0
        short = replace(batch, input_ids=batch.input_ids[:, skip:-1], attention_mask=batch.attention_mask[:, skip:-1],
                        labels=batch.labels[:, skip:])
        with ExitStack() as hooks:
            if self.past is not None:
                hooks.enter_context(_going_on(self.model, self.past, batch.attention_mask[:, :-1]))
            if self.mlp is not None:
                hooks.enter_context(_only_at(self.mlp, short.labels[:, 1:] != IGNORED))
            yield short


def quick_passes(live: LiveModel, batches: Sequence[Batch]) -> QuickPasses:
    """Return what passes over some batches have in common at the present parameters; runs their common beginning."""
    return QuickPasses(live.model, last_mlp(live.model), started(live.model, common_start(batches)))


@contextmanager
def _going_on(model: nn.Module, past: DynamicCache, mask: Tensor) -> Iterator[None]:
    """Inside, the model takes its input as what follows `past`; `mask` [B, P + T] is that of both."""

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = copy.deepcopy(past)
        rows.batch_repeat_interleave(len(mask))
        own = kwargs["attention_mask"]
        return args, {**kwargs, "past_key_values": rows, "attention_mask": mask.to(own), "use_cache": True}

    handle = model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _only_at(mlp: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Inside, a module of [B, T, d] runs only where `wanted` [B, T] is true; elsewhere it gives 0."""
    places = wanted.flatten().nonzero().squeeze(1)

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        if len(args) != 1:
            raise TypeError(f"an MLP of {len(args)} arguments")
        return (args[0].flatten(0, 1)[places.to(args[0].device)].unsqueeze(0),)

    def spread(_: nn.Module, __: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"an MLP that gives a {type(output).__name__}")
        whole = output.new_zeros(wanted.numel(), output.shape[-1])
        return whole.index_copy_(0, places.to(output.device), output[0]).view(*wanted.shape, -1)

    handles = mlp.register_forward_pre_hook(pick), mlp.register_forward_hook(spread)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
