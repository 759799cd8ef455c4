"""Influence by the library against retraining: a last layer is trained to its minimum, with and without each row.

The last layer's adapter has a fixed A, so that its loss is convex in B: softmax regression on features A h. Its
minimum is found by Newton's method, written here; gradients, products, query and derivatives are the library's.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from saferestore.core.checkpoint.session import LiveModel, write_params
from saferestore.core.curvature.diagonal import diagonal_fisher
from saferestore.core.data.batches import Batch, make_batches
from saferestore.core.influence.queries import QUERIES, QueryInputs
from saferestore.core.influence.rows import choose_derivative, row_sums
from saferestore.core.losses import cross_entropy, gradient
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..cases import FAMILIES, VOCAB, ragged_rows

RANK, RIDGE = 4, 0.05


@dataclasses.dataclass(frozen=True)
class Convex:
    """The last layer's training problem: tokens with features, fixed logits, labels and the row of each."""

    features: Tensor
    fixed: Tensor
    labels: Tensor
    rows: Tensor

    def minimiser(self, weights: Tensor, start: Tensor | None = None) -> Tensor:
        """B [V, RANK] at the minimum of sum over tokens of weights[row] loss / all tokens + RIDGE / 2 |B|^2."""
        weight = weights[self.rows] / len(self.rows)
        b = torch.zeros(VOCAB, RANK, dtype=torch.float64) if start is None else start.clone()
        for _ in range(40):
            p = torch.softmax(self.fixed + self.features @ b.T, 1)
            residual = (p - torch.nn.functional.one_hot(self.labels, VOCAB)) * weight[:, None]
            g = residual.T @ self.features + RIDGE * b
            if float(g.norm()) < 1e-14:
                break
            token = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
            h = torch.einsum("tij,tkl->ikjl", token * weight[:, None, None],
                             self.features[:, :, None] * self.features[:, None, :])
            h = h.reshape(b.numel(), -1) + RIDGE * torch.eye(b.numel(), dtype=torch.float64)
            b = b - torch.linalg.solve(h, g.reshape(-1)).view_as(b)
        return b

    def loss(self, b: Tensor) -> float:
        """Mean cross-entropy a token."""
        return float(torch.nn.functional.cross_entropy(self.fixed + self.features @ b.T, self.labels))


@cache
def _live() -> LiveModel:
    torch.manual_seed(0)
    model = FAMILIES["llama"].make()
    wrapped = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["lm_head"])).double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_("lora_B" in name)
        if parameter.dim() > 1:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    [b] = [p for p in wrapped.parameters() if p.requires_grad]
    leaves = {"lm_head.lora_B.weight": b}
    return LiveModel(wrapped, cast(PreTrainedTokenizerBase, None), leaves, torch.device("cpu"))


def _problem(count: int, seed: int) -> tuple[Convex, list[Batch]]:
    """A problem of `count` rows, and their batches."""
    live, rows = _live(), ragged_rows(count, seed=seed)
    a = next(p for name, p in live.model.named_parameters() if "lora_A" in name)
    frozen = live.model.get_base_model()
    features, fixed, labels, owners = [], [], [], []
    with torch.no_grad():
        for row in rows:
            hidden = frozen.model(torch.tensor([[*row.prompt, *row.answer]])).last_hidden_state[0]
            at = hidden[len(row.prompt) - 1:-1]
            features.append(at @ a.T)
            fixed.append(at @ frozen.lm_head.base_layer.weight.T)
            labels += row.answer
            owners += [row.index] * len(row.answer)
    problem = Convex(torch.cat(features), torch.cat(fixed), torch.tensor(labels), torch.tensor(owners))
    return problem, make_batches(rows, batch_size=8, pad_id=0)


def _predicted(count: int, problem: Convex, batches: list[Batch], held: list[Batch]) -> Tensor:
    """I(z)/N of every row by the library, at the parameters as they stand."""
    live = _live()
    training, (_, g) = cross_entropy("training", batches), gradient(live, cross_entropy("S", held))
    scale = diagonal_fisher(live, [training], seed=0).mean_diagonal
    query = QUERIES["cg"](QueryInputs(live, g, training, RIDGE / scale, max_products=500, tolerance=1e-11))
    assert query.damping == pytest.approx(RIDGE)
    derivative = choose_derivative(live, batches[0], query.u)
    return -row_sums(derivative(live, batches, query.u), torch.arange(count))[1] / len(problem.labels)


def _changes(count: int, change: float) -> tuple[Tensor, Tensor]:
    """(I(z)/N, S at the minimum less S at that with the weight of a row changed by `change`) of every row."""
    (problem, batches), (held, held_batches) = _problem(count, 1), _problem(30, 2)
    ones = torch.ones(count, dtype=torch.float64)
    best = problem.minimiser(ones)
    write_params(_live(), {"lm_head.lora_B.weight": best})
    moved = [held.loss(problem.minimiser(ones + change * (torch.arange(count) == row), best)) for row in range(count)]
    true = held.loss(best) - torch.tensor(moved, dtype=torch.float64)
    return _predicted(count, problem, batches, held_batches), true


def test_influence_ranks_rows_as_training_the_last_layer_again_without_each_does():
    predicted, true = _changes(40, -1.0)
    assert spearmanr(predicted, true).statistic > 0.9
    assert float((predicted.sign() == true.sign()).double().mean()) > 0.9


def test_the_leave_one_out_error_falls_as_one_over_n_squared():
    pairs = [_changes(count, -1.0) for count in (40, 80, 160)]
    errors = [float((predicted - true).abs().mean()) for predicted, true in pairs]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.6 < slope < 2.4 for slope in slopes), slopes


def test_influence_is_the_derivative_of_the_trained_models_safety_by_a_rows_weight():
    predicted, less = _changes(20, -1e-4)
    _, more = _changes(20, 1e-4)
    wanted = (less - more) / 2e-4
    assert float((predicted - wanted).norm() / wanted.norm()) < 1e-6
