"""The Fisher matrix as a Kronecker product a parameter in its eigenbasis, with corrected eigenvalues (EK-FAC).

A parameter W [out, in] of a linear map y = W x has the gradient g x' at a token. K-FAC takes E[g g'] (x) E[x x'] for
its block of F (Martens and Grosse 2015); EK-FAC keeps the eigenbasis of that product and replaces its eigenvalues by
the mean squared scores in that basis, the best diagonal there (George et al. 2018). Blocks of different parameters are
taken as independent, which loses the coupling of A with B and across layers. Source of its use for influence: Grosse
et al. 2023. The factors are made once and serve every later step and damping.

A factor over the thousands of inputs or outputs of a large map neither fits nor needs to: of a side longer than `WHOLE`
only the leading eigenvectors are kept, from a Nystrom sketch (Tropp et al. 2017), and all directions outside them share
one eigenvalue for each direction of the other side: the mean of their squared scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoint.session import LiveModel
from ..losses import Loss
from ..params import Params
from .fisher import scored, use_row_gradients, use_token_gradients
from .operator import Solution

Factors = dict[str, tuple[Tensor, Tensor]]
"""Parameter name -> a symmetric matrix over its outputs [out, out] and one over its inputs [in, in]."""


WHOLE = 512
"""The longest side that keeps all of its eigenvectors."""

LEADING = 256
"""Eigenvectors that a longer side keeps."""

OVERSAMPLED = 32
"""Columns that its sketch has beyond these."""


@dataclass(frozen=True)
class EigenKronecker:
    """F with a block a parameter, diagonal in a Kronecker basis.

    Attributes:
        bases: Bases of outputs and inputs, columns are orthonormal vectors, in the parameter's type; square but for the
            longer side of a large map.
        values: Eigenvalues [basis vectors of outputs, of inputs], not negative.
        mean_diagonal: trace(F) / d.
        rest: Parameters whose longer side is not square: the eigenvalue of all that is outside its basis, one a basis
            vector of the other side.
    """

    bases: Factors
    values: Params
    mean_diagonal: float
    rest: Params = field(default_factory=dict)

    def _mapped(self, v: Params, f: Callable[[Tensor], Tensor]) -> Params:
        """Return Q f(values) Q'v."""
        return {name: self._block(name, part, f) for name, part in v.items()}

    def _block(self, name: str, v: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        out, inner = self.bases[name]
        seen = out.T @ v @ inner
        found = out @ (f(self.values[name]) * seen) @ inner.T
        if name not in self.rest:
            return found
        unseen, eigenvalues = v - out @ seen @ inner.T, f(self.rest[name])
        if out.shape[0] == out.shape[1]:
            return found + out @ (eigenvalues[:, None] * (out.T @ unseen))
        return found + ((unseen @ inner) * eigenvalues) @ inner.T

    def matvec(self, v: Params) -> Params:
        """Return F v."""
        return self._mapped(v, lambda values: values)

    def solve(self, v: Params, damping: float) -> Solution:
        """Return (F + damping I)^-1 v."""
        x = self._mapped(v, lambda values: 1 / (values + damping))
        return Solution(x, self.matvec(x), None, 0, "exact")


def columns(shape: Sequence[int], *, whole: int = WHOLE, leading: int = LEADING) -> tuple[int, int]:
    """Return how many columns the factors of a parameter [out, in] have: all, or a sketch's for its longer side."""
    long = max(range(2), key=lambda side: shape[side])
    sketched = shape[long] > max(whole, leading + OVERSAMPLED)
    out, inner = (leading + OVERSAMPLED if sketched and side == long else shape[side] for side in range(2))
    return out, inner


def factor_bytes(shapes: Iterable[Sequence[int]]) -> int:
    """Return what the factors of float32 parameters of these shapes take while they are summed."""
    return sum(4 * side * count for shape in shapes for side, count in zip(shape, columns(shape), strict=True))


def _directions(size: int, count: int) -> Tensor:
    """The Gaussian directions [size, count] of a sketch, the same on every device, float64."""
    return torch.randn(size, count, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def kronecker_factors(live: LiveModel, losses: Sequence[Loss], *, seed: int, whole: int = WHOLE,
                      leading: int = LEADING) -> Factors:
    """Return sums over tokens of g g' and x x' for every parameter; g is the gradient of a sampled label's score.

    Tokens that no answer depends on (padding, and prompts where nothing looks back) have g = 0 and are left out of
    both sums. Of a long side its product with Gaussian directions is returned, [n, leading + `OVERSAMPLED`]. All are
    of the parameters' type.

    Args:
        live: The model at its present parameters.
        losses: The losses whose Gauss-Newton matrix is F.
        seed: Of the sampled labels, the same as in `score_rows`.
        whole: Longest side that is summed as a whole.
        leading: Eigenvectors that a longer side is to keep.
    """
    counts = {name: columns(leaf.shape, whole=whole, leading=leading) for name, leaf in live.leaves.items()}
    sums = {name: tuple(leaf.new_zeros(n, count) for n, count in zip(leaf.shape, counts[name], strict=True))
            for name, leaf in live.leaves.items()}
    sketched = {t.shape: t for pair in sums.values() for t in pair if t.shape[0] != t.shape[1]}
    directions = {shape: _directions(*shape).to(like) for shape, like in sketched.items()}

    def add(name: str, inputs: Tensor, grad: Tensor, _: int) -> None:
        g, x = grad.flatten(0, 1), inputs.flatten(0, 1)
        used = (g != 0).any(dim=1)
        for total, rows in zip(sums[name], (g[used].to(sums[name][0]), x[used].to(sums[name][1])), strict=True):
            seen = directions.get(total.shape)
            total.addmm_(rows.T, rows if seen is None else rows @ seen.to(rows.device))

    for _, batch, score in scored(losses, seed):
        use_token_gradients(live, batch, score, add)
    return {name: (out, inner) for name, (out, inner) in sums.items()}


def basis(factor: Tensor, leading: int = LEADING) -> Tensor:
    """Return orthonormal eigenvectors in columns, float64: all of a square factor, the leading ones of a sketched one.

    A sketch Y = C O stands for C about Y (O'Y)^+ Y' (Tropp et al. 2017, without its shift). With Y = Q R the leading
    eigenvectors are those of R (O'Y)^+ R', turned by Q; where Y is of low rank, Q holds other directions, too.

    Args:
        factor: C [n, n], or Y [n, m]; its type says how far its numbers are sound.
        leading: Vectors that are kept of a sketch.
    """
    (size, count), wide = factor.shape, factor.double()
    if size == count:
        return torch.linalg.eigh(wide).eigenvectors.contiguous()
    seen = _directions(size, count).to(factor).double().T @ wide
    values, vectors = torch.linalg.eigh((seen + seen.T) / 2)
    sound = values > 10 * torch.finfo(factor.dtype).eps * values.max().clamp(min=0)  # what is less is rounding
    q, r = torch.linalg.qr(wide)
    root = r @ (vectors[:, sound] / values[sound].sqrt())
    return (q @ torch.linalg.svd(root).U[:, :leading]).contiguous()


def ekfac(live: LiveModel, losses: Sequence[Loss], *, seed: int, whole: int = WHOLE,
          leading: int = LEADING) -> EigenKronecker:
    """Estimate the Fisher matrix of a sum of losses by two backward passes over their rows.

    Args:
        live: The model at its present parameters.
        losses: Whose Gauss-Newton matrix is estimated.
        seed: Of the sampled labels.
        whole: Longest side that keeps all of its eigenvectors.
        leading: Eigenvectors that a longer side keeps.

    Returns:
        The operator; it does not follow the parameters when they move.
    """
    factors = kronecker_factors(live, losses, seed=seed, whole=whole, leading=leading)
    bases: Factors = {}
    for name in list(factors):  # a factor is freed as soon as it has its basis
        out, inner = (basis(factor, leading).to(live.leaves[name]) for factor in factors.pop(name))
        bases[name] = (out, inner)
    values = {name: leaf.new_zeros(out.shape[1], inner.shape[1]) for (name, leaf), (out, inner) in
              ((item, bases[item[0]]) for item in live.leaves.items())}
    rest = {name: leaf.new_zeros(min(leaf.shape)) for name, leaf in live.leaves.items()
            if values[name].shape != leaf.shape}

    def add(name: str, scores: Tensor) -> None:
        out, inner = bases[name]
        squares = (out.T @ scores.to(out) @ inner).square()
        values[name] += squares.sum(0)
        if name in rest:
            rest[name] += _outside(scores.to(out), out, inner, squares)

    for _, batch, score in scored(losses, seed):
        use_row_gradients(live, batch, score, add)
    rest = {name: total.clamp(min=0) / (max(live.leaves[name].shape) - leading)
            for name, total in rest.items()}
    trace = sum(float(t.double().sum()) for t in values.values())
    trace += sum(float(t.double().sum()) * (max(live.leaves[name].shape) - leading) for name, t in rest.items())
    return EigenKronecker(bases, values, trace / sum(leaf.numel() for leaf in live.leaves.values()), rest)


def _outside(scores: Tensor, out: Tensor, inner: Tensor, squares: Tensor) -> Tensor:
    """Return the squared scores [rows, out, in] outside the shorter basis, by basis vectors of the other side."""
    if out.shape[0] == out.shape[1]:
        return (out.T @ scores).square().sum((0, 2)) - squares.sum((0, 2))
    return (scores @ inner).square().sum((0, 1)) - squares.sum((0, 1))
