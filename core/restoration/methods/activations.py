"""What goes into each adapted module on some rows: sums over tokens of x x' and of x squared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ...checkpoint.session import LiveModel
from ...curvature.fisher import by_row
from ...data.batches import Batch
from ...losses import answer_logits, answer_positions
from ..modules import module_of


def module_inputs(live: LiveModel, batches: Sequence[Batch]) -> Iterator[tuple[str, Tensor]]:
    """Yield (module, inputs [tokens, in]) for every batch and adapted module, padding left out; forward passes only.

    Args:
        live: The model at its present parameters.
        batches: Rows; prompts count as answers do, but not for the vocabulary projection, which runs where an answer
            token is predicted alone.

    Raises:
        MismatchError: A module whose inputs do not tell which row they are of.
    """
    owners = {id(module.weight): module for module in live.model.modules() if isinstance(module, nn.Linear)}
    for batch in batches:
        calls: list[tuple[str, Tensor]] = []

        def keep(name: str, calls: list[tuple[str, Tensor]] = calls) -> Callable[..., None]:
            return lambda _, args: calls.append((name, args[0].detach()))

        handles = [owners[id(leaf)].register_forward_pre_hook(keep(module_of(name)))
                   for name, leaf in live.leaves.items() if ".lora_A." in name]
        try:
            with torch.no_grad():
                answer_logits(live.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        masks = (batch.attention_mask.bool(), batch.attention_mask[:, answer_positions(batch)].bool())
        used = {mask.shape[1]: mask for mask in reversed(masks)}
        for module, flat in calls:
            x = by_row(module, flat, batch)
            yield module, x[used[x.shape[1]].to(x.device)]


def squared_norms(live: LiveModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return module -> sum over tokens of x^2, [in]."""
    found: dict[str, Tensor] = {}
    for module, x in module_inputs(live, batches):
        found[module] = found.get(module, torch.zeros((), dtype=x.dtype, device=x.device)) + x.square().sum(0)
    return found


def grams(live: LiveModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return module -> sum over tokens of x x', [in, in], float64."""
    found: dict[str, Tensor] = {}
    for module, x in module_inputs(live, batches):
        wide = x.double()
        found[module] = found.get(module, torch.zeros((), dtype=wide.dtype, device=x.device)) + wide.T @ wide
    return found
