"""SiLU's own derivatives against torch's."""

from __future__ import annotations

import torch
from saferestore.core.curvature.silu import ShortSilu
from torch import Tensor, nn


def derivatives(x: Tensor, *, short: bool) -> list[Tensor]:
    """Value, first derivative along u and second derivative along v of a sum that holds SiLU."""
    u, v = (torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype) for seed in (1, 2))
    value = _silu(x) if short else nn.SiLU()(x)
    first = torch.autograd.grad(value, x, u * x, create_graph=True)[0]
    return [value, first, torch.autograd.grad(first, x, v)[0]]


def _silu(x: Tensor) -> Tensor:
    with ShortSilu():
        return nn.SiLU()(x)


def test_value_and_both_derivatives_are_torchs() -> None:
    x = torch.linspace(-40, 40, 161, dtype=torch.float64, requires_grad=True)
    for ours, theirs in zip(derivatives(x, short=True), derivatives(x, short=False), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_gradient_check_of_torch_agrees() -> None:
    x = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(_silu, x) and torch.autograd.gradgradcheck(_silu, x)


def test_outside_of_the_context_and_for_other_functions_nothing_changes() -> None:
    x = torch.ones(2, requires_grad=True)
    assert "SiluBackward" in str(nn.SiLU()(x).grad_fn)
    with ShortSilu():
        assert "_Silu" in str(nn.SiLU()(x).grad_fn) and "GeluBackward" in str(nn.GELU()(x).grad_fn)
