"""The trace of a symmetric matrix by Hutch++ (Meyer, Musco, Musco and Woodruff 2021), with a stated 95% bound.

A third of the products sketches the range, a third takes the trace there exactly, and a third estimates what is left
with random signs. The bound is Student's t over the last third: the first two have no error beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats

from ..config import Progress, no_progress
from ..errors import UsageError
from ..params import Params, dot
from .spectrum import Basis, Products

LEAST_PRODUCTS = 6
"""Two in each third: one sample has no spread."""


@dataclass(frozen=True)
class Trace:
    """A trace.

    Attributes:
        value: The estimate.
        bound: Half of its 95% interval; 0 where the sketch caught the whole range.
        products: Products it took.
    """

    value: float
    bound: float
    products: int


def hutchpp(products: Products, like: Params, *, count: int, seed: int, stage: str = "trace",
            progress: Progress = no_progress) -> Trace:
    """Estimate a trace.

    Args:
        products: v -> M v.
        like: A vector of the parameters' shapes.
        count: Products, at least 6.
        seed: Of the random signs.
        stage: What progress calls it.
        progress: Told of every product.

    Returns:
        The trace with its bound.

    Raises:
        UsageError: Too few products for a bound.
    """
    if count < LEAST_PRODUCTS:
        raise UsageError(f"a trace with its bound needs {LEAST_PRODUCTS} products - {count}",
                         hint=f"give at least {LEAST_PRODUCTS}")
    third, done = count // 3, 0

    def image(v: Params) -> Params:
        nonlocal done
        progress(stage, done, count)
        done += 1
        return products(v)

    basis = Basis(like, third)
    for i in range(third):
        rest = basis.remove(image(signs(like, seed + i)))
        length = dot(rest, rest) ** 0.5
        if length > 0:
            basis.append({name: tensor / length for name, tensor in rest.items()})
    exact = sum(_quadratic(image, basis.combine(row)) for row in torch.eye(basis.size, dtype=torch.float64))
    samples = [_quadratic(image, basis.remove(signs(like, seed + third + i))) for i in range(count - 2 * third)]
    progress(stage, count, count)
    spread = torch.tensor(samples, dtype=torch.float64)
    bound = float(stats.t.ppf(0.975, len(samples) - 1) * spread.std() / len(samples) ** 0.5)
    return Trace(float(exact) + float(spread.mean()), bound, done)


def _quadratic(image: Products, v: Params) -> float:
    return dot(v, image(v))


def signs(like: Params, seed: int) -> Params:
    """Return a vector of random signs of the shapes of `like`, the same for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (2 * torch.randint(0, 2, tensor.shape, generator=generator) - 1).to(tensor)
            for name, tensor in like.items()}
