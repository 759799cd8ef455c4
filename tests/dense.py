"""Dense references written another way than the library: flat vectors, whole Jacobians, explicit loops, LU solves.

Nothing here calls the library's losses, curvature or restoration; a batch and a `LiveModel` are only read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from saferestore.core.checkpoint.session import LiveModel
from saferestore.core.data.batches import Batch
from torch import Tensor
from torch.func import functional_call


def flat(vector: Mapping[str, Tensor]) -> Tensor:
    """One vector [d] of a mapping, in its order."""
    return torch.cat([t.detach().reshape(-1) for t in vector.values()])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mapping again."""
    parts = torch.split(vector, [t.numel() for t in like.values()])
    return {name: part.view(t.shape) for (name, t), part in zip(like.items(), parts, strict=True)}


def answer_positions(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """(place in the batch, position whose logits predict it, label) of each answer token, row by row."""
    for place, labels in enumerate(batch.labels.tolist()):
        for position, label in enumerate(labels):
            if label != -100:
                yield place, position - 1, label


def logits_of(live: LiveModel, theta: Tensor, batch: Batch) -> Tensor:
    """Logits [N, V] at the answer tokens of a batch as a function of the flat adapter parameters."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    full_name = {id(parameter): name for name, parameter in live.model.named_parameters()}
    parts = unflat(theta, live.leaves)
    replaced = {full_name[id(leaf)]: parts[name] for name, leaf in live.leaves.items()}
    everything = functional_call(live.model, replaced, (), inputs).logits
    return torch.stack([everything[place, position] for place, position, _ in answer_positions(batch)])


def labels_of(batch: Batch) -> list[int]:
    """The answer tokens themselves."""
    return [label for _, _, label in answer_positions(batch)]


def jacobian(live: LiveModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [N, V] and their whole derivative [N, V, d] at the present parameters."""
    theta = flat(live.leaves)
    derivative = torch.autograd.functional.jacobian(lambda t: logits_of(live, t, batch), theta, vectorize=True)
    assert isinstance(derivative, Tensor)
    return logits_of(live, theta, batch).detach(), derivative


def gauss_newton(live: LiveModel, batches: Sequence[Batch], temperature: float = 1.0) -> Tensor:
    """Mean over answer tokens of J'(diag p - p p')J, [d, d], token by token; p of logits over a temperature."""
    total, tokens = torch.zeros(0), 0
    for batch in batches:
        logits, derivative = jacobian(live, batch)
        for z, j in zip(logits / temperature, derivative, strict=True):
            p = torch.exp(z - torch.logsumexp(z, 0))
            term = j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
            total, tokens = (total + term if tokens else term), tokens + 1
    return total / tokens


def enumerated_scores(live: LiveModel, batches: Sequence[Batch]) -> Tensor:
    """Rows sqrt(p_k / tokens) grad log p_k of every answer token and every label k: [tokens V, d]."""
    rows = []
    for batch in batches:
        logits, derivative = jacobian(live, batch)
        for z, j in zip(logits, derivative, strict=True):
            p = torch.exp(z - torch.logsumexp(z, 0))
            grads = j - (p @ j)  # grad log p_k = grad z_k - sum_m p_m grad z_m
            rows.append(grads * p.sqrt()[:, None])
    return torch.cat(rows) / math.sqrt(len(rows))


def cross_entropy(live: LiveModel, theta: Tensor, batches: Sequence[Batch]) -> Tensor:
    """Mean over all answer tokens of log sum exp z - z_label."""
    terms = []
    for batch in batches:
        for z, label in zip(logits_of(live, theta, batch), labels_of(batch), strict=True):
            terms.append(torch.log(torch.exp(z).sum()) - z[label])
    return torch.stack(terms).mean()


def divergence(live: LiveModel, theta: Tensor, batches: Sequence[Batch], reference: Sequence[Tensor],
               temperature: float = 1.0) -> Tensor:
    """Mean over all answer tokens of sum_k q_k (log q_k - log p_k), q the reference's probabilities [N, V] a batch.

    At a temperature T q and p are taken to the power 1/T and brought back to a sum of 1, and the mean is times T^2.
    """
    terms = []
    for batch, fixed in zip(batches, reference, strict=True):
        for z, q in zip(logits_of(live, theta, batch), fixed, strict=True):
            p = torch.exp(z) ** (1 / temperature) / (torch.exp(z) ** (1 / temperature)).sum()
            soft = q ** (1 / temperature) / (q ** (1 / temperature)).sum()
            terms.append((soft * torch.log(soft / p)).sum() * temperature**2)
    return torch.stack(terms).mean()


def probabilities(live: LiveModel, batches: Sequence[Batch]) -> list[Tensor]:
    """p [N, V] a batch at the present parameters."""
    found = [torch.exp(logits_of(live, flat(live.leaves), batch)).detach() for batch in batches]
    return [p / p.sum(dim=1, keepdim=True) for p in found]


def gradient(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Gradient [d] of a scalar of the flat parameters."""
    theta = theta.detach().requires_grad_()
    return torch.autograd.grad(function(theta), theta)[0]


def hessian(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Hessian [d, d] of a scalar of the flat parameters."""
    found = torch.autograd.functional.hessian(function, theta.detach(), vectorize=True)
    assert isinstance(found, Tensor)
    return found


def damped_solve(matrix: Tensor, damping: float, v: Tensor) -> Tensor:
    """(matrix + damping I)^-1 v by LU."""
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), v)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted))
