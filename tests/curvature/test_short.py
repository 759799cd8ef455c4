"""Our own second derivatives against torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from saferestore.core.curvature.short import NARROW, ShortDerivatives
from torch import Tensor, nn
from torch.nn import functional

Function = Callable[..., Tensor]
LABELS = torch.tensor([2, 0, 4, 1])


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def taken(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [drawn(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


CASES: dict[str, tuple[Function, list[tuple[int, ...]], str]] = {
    "silu": (nn.SiLU(), [(3, 7)], "_Silu"),
    "gated": (lambda x, u: functional.silu(x) * u, [(3, 7), (3, 7)], "_Gated"),
    "gated, turned round": (lambda x, u: u * functional.silu(x), [(3, 7), (3, 7)], "_Gated"),
    "linear": (functional.linear, [(2, 3, 5), (4, 5)], "_Linear"),
    "linear, of a matrix": (functional.linear, [(3, 5), (4, 5)], "_Linear"),
    "linear, wide": (functional.linear, [(2, 3, NARROW + 1), (NARROW + 2, NARROW + 1)], "_Linear"),
    "linear, narrow and wide": (functional.linear, [(2, 3, 2), (NARROW + 2, 2)], "_Linear"),
    "linear, scaled": (lambda x, w: functional.linear(x, w) * 2.5, [(2, 3, 5), (4, 5)], "_Linear"),
    "softmax": (lambda x: functional.softmax(x, dim=-1), [(2, 3, 5)], "_Softmax"),
    "softmax, dimension named": (lambda x: functional.softmax(x, 1, dtype=torch.float64), [(3, 5)], "_Softmax"),
    "cross-entropy": (lambda x: functional.cross_entropy(x, LABELS, reduction="none"), [(4, 5)], "_CrossEntropy"),
}


def short(function: Function) -> Function:
    def run(*inputs: Tensor) -> Tensor:
        with ShortDerivatives():
            return function(*inputs)
    return run


def derivatives(function: Function, inputs: Sequence[Tensor], *, ours: bool) -> list[Tensor]:
    """Value, the gradient along a direction that depends on the inputs, and that gradient's own along another."""
    with ShortDerivatives() if ours else nullcontext():
        value = function(*inputs)
        along = drawn(*value.shape, seed=9, dtype=value.dtype) * torch.sin(value)
        first = torch.autograd.grad(value, inputs, along, create_graph=True)
    again = torch.autograd.grad(first, inputs, [drawn(*f.shape, seed=10 + i, dtype=f.dtype)
                                              for i, f in enumerate(first)])
    return [each.detach() for each in (value, *first, *again)]


@pytest.mark.parametrize("case", CASES)
def test_value_and_both_derivatives_are_torchs(case: str) -> None:
    function, shapes, name = CASES[case]
    inputs = taken(*shapes)
    assert name in str(short(function)(*inputs).grad_fn)
    pairs = zip(derivatives(function, inputs, ours=True), derivatives(function, inputs, ours=False), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_check_of_torch_agrees(case: str) -> None:
    function, shapes, _ = CASES[case]
    assert torch.autograd.gradcheck(short(function), taken(*shapes))
    assert torch.autograd.gradgradcheck(short(function), taken(*shapes))


def test_far_from_zero_silu_has_torchs_derivatives() -> None:
    x = torch.linspace(-40, 40, 161, dtype=torch.float64, requires_grad=True)
    pairs = zip(derivatives(nn.SiLU(), [x], ours=True), derivatives(nn.SiLU(), [x], ours=False), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in pairs)


def test_an_input_without_a_gradient_gets_none() -> None:
    x, weight = drawn(2, 3, 5), drawn(4, 5, seed=1).requires_grad_()
    first = torch.autograd.grad(short(functional.linear)(x, weight).sin().sum(), weight, create_graph=True)[0]
    wanted = torch.autograd.grad(functional.linear(x, weight).sin().sum(), weight, create_graph=True)[0]
    v = drawn(4, 5, seed=2)
    assert torch.allclose(*(torch.autograd.grad(g, weight, v)[0] for g in (first, wanted)), rtol=1e-12)


@pytest.mark.parametrize("case", ["silu", "gated", "softmax"])
def test_in_bfloat16_second_derivatives_are_as_near_as_torchs(case: str) -> None:
    function, shapes, _ = CASES[case]
    rough = [each.detach().bfloat16().requires_grad_() for each in taken(*((64, *shape[1:]) for shape in shapes))]
    exact = derivatives(function, [each.detach().double().requires_grad_() for each in rough], ours=False)

    def errors(*, ours: bool) -> list[float]:
        pairs = zip(exact, derivatives(function, rough, ours=ours), strict=True)
        return [float((a - b).norm() / a.norm()) for a, b in pairs]

    assert all(mine < 1.25 * theirs < 0.05 for mine, theirs in zip(errors(ours=True), errors(ours=False), strict=True))


PLAIN: dict[str, Function] = {
    "GELU": nn.GELU(),
    "SiLU in place": lambda x: functional.silu(x + 0, inplace=True),
    "a product of two tensors": lambda x: x * x,
    "a SiLU times a number": lambda x: functional.silu(x) * 2.0,
    "a SiLU times a row": lambda x: functional.silu(x) * x[:1],
    "a linear map times a tensor": lambda x: functional.linear(x, x) * torch.ones(4, 4, dtype=x.dtype),
    "a frozen weight": lambda x: functional.linear(x, x.detach()),
    "a bias": lambda x: functional.linear(x, x, x[:, 0]),
    "a weight that is a vector": lambda x: functional.linear(x, x[0]),
    "another dimension": lambda x: functional.softmax(x, dim=0),
    "a mean": lambda x: functional.cross_entropy(x, LABELS),
    "label smoothing": lambda x: functional.cross_entropy(x, LABELS, reduction="none", label_smoothing=0.1),
    "class weights": lambda x: functional.cross_entropy(x, LABELS, x[0].detach().abs(), reduction="none"),
    "a label to be ignored": lambda x: functional.cross_entropy(x, LABELS.clone().fill_(-100), reduction="none"),
    "labels that are distributions": lambda x: functional.cross_entropy(x, x.detach().softmax(1), reduction="none"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_any_other_call_is_torchs(case: str) -> None:
    x = drawn(4, 5).requires_grad_()
    ours, torchs = short(PLAIN[case])(x).grad_fn, PLAIN[case](x).grad_fn
    assert type(ours) is type(torchs)


def test_outside_of_the_context_nothing_changes() -> None:
    for function, shapes, name in CASES.values():
        assert name not in str(function(*taken(*shapes)).grad_fn)
