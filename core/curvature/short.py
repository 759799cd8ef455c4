"""Short second derivatives of the functions that a Hessian product of a transformer spends its time on.

torch differentiates a gradient by differentiating each of its steps: a SiLU, a softmax or a cross-entropy becomes up to
a dozen passes over the widest tensors of a model, each into fresh memory. It also multiplies by an adapter's factors,
a few columns wide, in the order that is slowest. Here the gradient of such a function is one step whose derivative is
written out, and what does not depend on the vector is kept from one product to the next. Third derivatives are not
defined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

NARROW = 16
"""Columns below which a product of matrices is computed transposed: 2 to 9 times faster on a CPU, else no different."""


class ShortDerivatives(TorchFunctionMode):
    """Inside this context the functions of `_SHORT` have short second derivatives, whatever module calls them.

    A call that is not of the plain kind (another reduction, a frozen weight) is torch's own.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call a function of torch, or ours in its place."""
        options = kwargs or {}
        found = _SHORT[func](*args, **options) if func in _SHORT else None
        return func(*args, **options) if found is None else found


def _silu(input: Tensor, inplace: bool = False) -> Tensor | None:
    return None if inplace else _Silu.apply(input)


def _mul(one: Any, other: Any) -> Tensor | None:
    """The value of a SiLU times a tensor (a gated layer), or of a linear map times a number (an adapter's scale)."""
    if _is_of(_Linear, one) and isinstance(other, int | float):
        x, weight = one.grad_fn.saved_tensors
        return _Linear.apply(x, weight * other)
    for gate, up in ((one, other), (other, one)):
        if _is_of(_Silu, gate) and isinstance(up, Tensor) and (up.shape, up.dtype) == (gate.shape, gate.dtype):
            return _Gated.apply(gate.grad_fn.saved_tensors[0], up)
    return None


def _is_of(function: Any, value: Any) -> bool:
    return isinstance(value, Tensor) and isinstance(value.grad_fn, function._backward_cls)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    plain = weight.requires_grad and bias is None and min(input.dim(), weight.dim()) > 1 and input.dtype == weight.dtype
    return _Linear.apply(input, weight) if plain else None


def _softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3,
             dtype: torch.dtype | None = None) -> Tensor | None:
    return _Softmax.apply(input.to(dtype or input.dtype)) if dim in (-1, input.dim() - 1) else None


def _cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
                   ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean",
                   label_smoothing: float = 0.0) -> Tensor | None:
    plain = weight is None and reduction == "none" and not label_smoothing and input.dim() == 2 and target.dim() == 1
    return _CrossEntropy.apply(input, target) if plain and not bool((target == ignore_index).any()) else None


_SHORT: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    functional.silu: _silu, Tensor.mul: _mul, functional.linear: _linear, functional.softmax: _softmax,
    functional.cross_entropy: _cross_entropy}

# Each pair below is a function and its gradient d -> d f'(x). A first backward pass records the gradient as one step
# of the graph; the backward pass of a product (no gradients enabled) comes through the function, too, and computes it.


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, _silu_slope(x, torch.ones_like(x)))
        return functional.silu(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        x, slope = ctx.saved_tensors
        return _SiluBack.apply(x, d, slope) if torch.is_grad_enabled() else d * slope


class _SiluBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope, d * _silu_bend(x))
        return d * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> Any:  # type: ignore[override]
        slope, bend = ctx.saved_tensors
        return v * bend, v * slope, None


class _Gated(torch.autograd.Function):
    """silu(x) u."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor) -> Tensor:
        gate = functional.silu(x)
        ctx.save_for_backward(x, u, _silu_slope(x, u), gate)
        return gate * u

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        x, u, by_x, by_u = ctx.saved_tensors
        return _GatedBack.apply(x, u, d, by_x, by_u) if torch.is_grad_enabled() else (d * by_x, d * by_u)


class _GatedBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, d: Tensor, by_x: Tensor, by_u: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(by_x, by_u, _silu_bend(x).mul_(u).mul_(d), _silu_slope(x, d))
        return d * by_x, d * by_u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor, vu: Tensor) -> Any:  # type: ignore[override]
        by_x, by_u, by_xx, by_xu = ctx.saved_tensors
        return (vx * by_xx).addcmul_(vu, by_xu), vx * by_xu, (vx * by_x).addcmul_(vu, by_u), None, None


def _silu_slope(x: Tensor, d: Tensor) -> Tensor:
    """The derivative of SiLU, times d."""
    return torch.ops.aten.silu_backward(d, x)


def _silu_bend(x: Tensor) -> Tensor:
    """The second derivative of SiLU, rounded once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    s = torch.sigmoid(wide)
    return (s * (1 - s)).mul_(wide.mul(1 - 2 * s).add_(2)).to(x.dtype)


class _Linear(torch.autograd.Function):
    """x W'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        return _LinearBack.apply(*ctx.saved_tensors, d, ctx.needs_input_grad[0])


class _LinearBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, d: Tensor, to_x: bool) -> tuple[Tensor | None, Tensor]:
        ctx.save_for_backward(x, weight, d)
        d = d.flatten(0, -2)
        return _times(d, weight).view_as(x) if to_x else None, _times(d.t(), x.flatten(0, -2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor) -> Any:  # type: ignore[override]
        x, weight, d = ctx.saved_tensors
        by_d = _times(x.flatten(0, -2), vw.t())
        if vx is None:
            return None, None, by_d.view_as(d), None
        flat, vx = d.flatten(0, -2), vx.flatten(0, -2)
        by_d = _times(vx, weight.t(), added_to=by_d)
        return _times(flat, vw).view_as(x), _times(flat.t(), vx), by_d.view_as(d), None


def _times(a: Tensor, b: Tensor, *, added_to: Tensor | None = None) -> Tensor:
    """The matrix a b, transposed in memory where it is narrow; or another such matrix with a b added in place."""
    if b.shape[1] < NARROW:
        return _product(b.t(), a.t(), added_to if added_to is None else added_to.t()).t()
    return _product(a, b, added_to)


def _product(a: Tensor, b: Tensor, added_to: Tensor | None) -> Tensor:
    return a @ b if added_to is None else added_to.addmm_(a, b)


class _Softmax(torch.autograd.Function):
    """Over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        p = torch.softmax(x, -1)
        ctx.save_for_backward(x, p)
        return p

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        x, p = ctx.saved_tensors
        return _SoftmaxBack.apply(x, d, p) if torch.is_grad_enabled() else _covariance(p, d)


class _SoftmaxBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(p, d - (p * d).sum(-1, keepdim=True))
        return _covariance(p, d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> Any:  # type: ignore[override]
        p, centred = ctx.saved_tensors
        by_d = _covariance(p, v)
        by_x = by_d * centred
        return by_x.addcmul_(p, by_x.sum(-1, keepdim=True), value=-1), by_d, None


def _covariance(p: Tensor, v: Tensor) -> Tensor:
    """(diag p - p p') v over the last dimension."""
    return torch.ops.aten._softmax_backward_data(v, p, -1, p.dtype)


class _CrossEntropy(torch.autograd.Function):
    """-log p(label) of each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(x, labels)
        return functional.cross_entropy(x, labels, reduction="none")

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        return _CrossEntropyBack.apply(*ctx.saved_tensors, d), None


class _CrossEntropyBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor, d: Tensor) -> Tensor:
        p = torch.softmax(x, -1)
        ctx.save_for_backward(p, labels, d)
        return p.scatter_add(1, labels[:, None], -torch.ones_like(p[:, :1])).mul_(d[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> Any:  # type: ignore[override]
        p, labels, d = ctx.saved_tensors
        by_d = (p * v).sum(-1) - v.gather(1, labels[:, None]).squeeze(1) if ctx.needs_input_grad[2] else None
        return _covariance(p, v).mul_(d[:, None]), None, by_d
