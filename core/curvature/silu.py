"""SiLU with short second derivatives.

torch differentiates its SiLU a second time through six elementwise steps on the widest tensors of a Llama-like model,
and keeps all of them. Here the gradient d s'(x) is one step: two tensors are kept, s'(x) and d s''(x), and its own
derivative is two products. Third derivatives are not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ShortSilu(TorchFunctionMode):
    """Inside this context `torch.nn.functional.silu` has short second derivatives, whatever module calls it."""

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call a function of torch, SiLU by ours."""
        if func is functional.silu:
            return _Silu.apply(args[0])
        return func(*args, **(kwargs or {}))


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return functional.silu(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        return _Slope.apply(*ctx.saved_tensors, d)


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        rise = s * (1 - s)
        slope = torch.addcmul(s, x, rise)
        ctx.save_for_backward(slope, d * rise * (2 + x * (1 - 2 * s)))
        return d * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        slope, bend = ctx.saved_tensors
        return v * bend, v * slope
