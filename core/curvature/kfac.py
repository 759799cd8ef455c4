"""The Fisher matrix as a Kronecker product a parameter in its eigenbasis, with corrected eigenvalues (EK-FAC).

A parameter W [out, in] of a linear map y = W x has the gradient g x' at a token. K-FAC takes E[g g'] (x) E[x x'] for
its block of F (Martens and Grosse 2015); EK-FAC keeps the eigenbasis of that product and replaces its eigenvalues by
the mean squared scores in that basis, the best diagonal there (George et al. 2018). Blocks of different parameters are
taken as independent, which loses the coupling of A with B and across layers. Source of its use for influence: Grosse
et al. 2023. The factors are made once and serve every later step and damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..checkpoint.session import LiveModel
from ..losses import Loss
from ..params import Params, each, size
from .fisher import sampled_score, score_rows, token_gradients
from .operator import Solution

Factors = dict[str, tuple[Tensor, Tensor]]
"""Parameter name -> a symmetric matrix over its outputs [out, out] and one over its inputs [in, in], float64."""


@dataclass(frozen=True)
class EigenKronecker:
    """F with a block a parameter, diagonal in a Kronecker basis.

    Attributes:
        bases: Orthogonal matrices of outputs and inputs, columns are basis vectors, in the parameter's type.
        values: Eigenvalues [out, in], not negative.
        mean_diagonal: trace(F) / d.
    """

    bases: Factors
    values: Params
    mean_diagonal: float

    def _into(self, v: Params) -> Params:
        return {name: out.T @ v[name] @ inner for name, (out, inner) in self.bases.items()}

    def _back(self, v: Params) -> Params:
        return {name: out @ v[name] @ inner.T for name, (out, inner) in self.bases.items()}

    def matvec(self, v: Params) -> Params:
        """Return F v."""
        return self._back(each(torch.mul, self.values, self._into(v)))

    def solve(self, v: Params, damping: float) -> Solution:
        """Return (F + damping I)^-1 v."""
        x = self._back(each(lambda values, part: part / (values + damping), self.values, self._into(v)))
        return Solution(x, self.matvec(x), None, 0, "exact")


def kronecker_factors(live: LiveModel, losses: Sequence[Loss], *, seed: int) -> Factors:
    """Return sums over tokens of g g' and x x' for every parameter; g is the gradient of a sampled label's score.

    Tokens that no answer depends on (padding, and prompts where nothing looks back) have g = 0 and are left out of
    both sums.

    Args:
        live: The model at its present parameters.
        losses: The losses whose Gauss-Newton matrix is F.
        seed: Of the sampled labels, the same as in `score_rows`.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {name: tuple(torch.zeros(n, n, dtype=torch.float64, device=leaf.device) for n in leaf.shape)
            for name, leaf in live.leaves.items()}
    for loss in losses:
        score = partial(sampled_score, generator=generator, weight=loss.token_weight ** 0.5,
                        temperature=loss.temperature)
        for batch in loss.batches:
            for name, inputs, grad in token_gradients(live, batch, score):
                g, x = grad.flatten(0, 1).double(), inputs.flatten(0, 1).double()
                used = (g != 0).any(dim=1)
                sums[name][0].addmm_(g[used].T, g[used])
                sums[name][1].addmm_(x[used].T, x[used])
    return {name: (out, inner) for name, (out, inner) in sums.items()}


def ekfac(live: LiveModel, losses: Sequence[Loss], *, seed: int) -> EigenKronecker:
    """Estimate the Fisher matrix of a sum of losses by two backward passes over their rows.

    Args:
        live: The model at its present parameters.
        losses: Whose Gauss-Newton matrix is estimated.
        seed: Of the sampled labels.

    Returns:
        The operator; it does not follow the parameters when they move.
    """
    bases = {name: tuple(torch.linalg.eigh(factor).eigenvectors.to(live.leaves[name]) for factor in pair)
             for name, pair in kronecker_factors(live, losses, seed=seed).items()}
    values = {name: torch.zeros_like(leaf.detach()) for name, leaf in live.leaves.items()}
    for _, scores in score_rows(live, losses, seed=seed):
        for name, block in scores.items():
            out, inner = bases[name]
            values[name] += (out.T @ block.to(out) @ inner).square().sum(0)
    trace = sum(float(t.double().sum()) for t in values.values())
    return EigenKronecker({n: (out, inner) for n, (out, inner) in bases.items()}, values, trace / size(values))
