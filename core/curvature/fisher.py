"""The Fisher matrix in sample space: F = R'R from one batched backward pass, inverted exactly by Woodbury.

Row i of R is the sum over the answer tokens of row i of grad log p(sampled label), divided by the square root of all
answer tokens. Labels are drawn from the model itself, so cross terms between tokens vanish in the mean and R'R is an
unbiased estimate of the Fisher matrix per token (Martens 2020, section 5; its inverse is not unbiased).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..checkpoint.determinism import cumulative_sum
from ..checkpoint.session import LiveModel
from ..data.batches import Batch
from ..data.scratch import scratch_tensor
from ..errors import MismatchError
from ..losses import AnswerLogits, Loss, answer_logits, row_count
from ..params import Params
from .operator import Solution

MANY_WORDS = 1 << 15
"""Of a vocabulary larger than this a label is drawn by one number."""

RowScores = dict[str, Tensor]
"""Adapter parameter name -> [rows of the batch, *shape of the parameter]."""


def sampled_score(out: AnswerLogits, *, generator: torch.Generator, weight: float = 1.0,
                  temperature: float = 1.0) -> Tensor:
    """Return `weight` times the sum over tokens of log p(label drawn from p); its gradient is the score.

    With a temperature T, p has its logits divided by T and the sum is multiplied by T: the mean of squared scores is
    then the Gauss-Newton matrix of `kl_divergence` at that temperature.
    """
    log_p = torch.log_softmax(out.logits / temperature, dim=-1)
    labels = drawn_labels(log_p.detach().exp(), generator)
    return log_p.gather(1, labels).sum() * (weight * temperature)


def drawn_labels(p: Tensor, generator: torch.Generator) -> Tensor:
    """Return a label [tokens, 1] from each row of probabilities [tokens, words], on every device the same.

    Of many words, one number a token is drawn and found in the cumulative sums: `torch.multinomial` draws one a word.

    Args:
        p: Probabilities; a word of probability 0 is never drawn.
        generator: On the CPU.
    """
    if p.shape[1] <= MANY_WORDS:
        return torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    ends = cumulative_sum(p, -1)
    uniform = torch.rand(len(p), 1, generator=generator).to(p.device, p.dtype)
    total = ends[:, -1:].contiguous()
    last = torch.searchsorted(ends, total)  # rounding must not reach a word of no probability
    return torch.searchsorted(ends, uniform * total, right=True).minimum(last)


def per_row_gradients(live: LiveModel, batch: Batch, scalar: Callable[[AnswerLogits], Tensor]) -> RowScores:
    """Gradients of each row's share of a scalar by every adapter parameter, from one backward pass.

    Args:
        live: The model; parameters are taken as they stand.
        batch: B rows.
        scalar: A sum over the batch's tokens to be differentiated.

    Returns:
        Parameter name -> [B, out, in].
    """
    found: RowScores = {}
    use_row_gradients(live, batch, scalar, found.__setitem__)
    return {name: found[name] if name in found else leaf.new_zeros((len(batch.rows), *leaf.shape))
            for name, leaf in live.leaves.items()}


def use_row_gradients(live: LiveModel, batch: Batch, scalar: Callable[[AnswerLogits], Tensor],
                      use: Callable[[str, Tensor], None]) -> None:
    """Hand every adapter parameter's per-row gradients to `use` as the backward pass reaches them.

    The gradient of a linear map's weight is the outer product of its output gradient with its input, summed over
    tokens; keeping the rows apart in that sum replaces the weight gradients of an ordinary backward pass, so the
    pass costs about one gradient for all rows together. It needs every parameter of `live.leaves` to be the weight
    of an `nn.Linear`, as the two factors of a LoRA adapter are.

    Args:
        live: The model; parameters are taken as they stand.
        batch: B rows.
        scalar: A sum over the batch's tokens to be differentiated.
        use: Called once with (parameter name, gradients [B, out, in]) of each map that the scalar depends on.
    """
    parts: RowScores = {}

    def add(name: str, inputs: Tensor, grad: Tensor, left: int) -> None:
        part = torch.bmm(grad.transpose(1, 2), inputs.to(grad.dtype))
        parts[name] = parts[name] + part if name in parts else part
        if not left:
            use(name, parts.pop(name))

    use_token_gradients(live, batch, scalar, add)
    for name in list(parts):  # of a map that ran once more than what the scalar depends on
        use(name, parts.pop(name))


def use_token_gradients(live: LiveModel, batch: Batch, scalar: Callable[[AnswerLogits], Tensor],
                        use: Callable[[str, Tensor, Tensor, int], None]) -> None:
    """Hand what each adapter parameter's gradient is made of to `use`, token by token, in one backward pass.

    A call's output gradient is freed when `use` returns: those of all calls together are larger than the rest of the
    pass. What is differentiated by is a zero added to every output, so no gradient of a weight is computed.

    Args:
        live: The model; parameters are taken as they stand.
        batch: B rows of T tokens.
        scalar: A sum over the batch's tokens to be differentiated.
        use: Called with (parameter name, input [B, T, in], gradient of the output [B, T, out], calls of the same map
            still to come) of every call of a linear map that the scalar depends on; a map may run several times in
            one forward, or never. The vocabulary projection sees fewer tokens.

    Raises:
        MismatchError: A map whose inputs do not tell which row they are of, as of a router's experts.
    """
    owners = {id(module.weight): module for module in live.model.modules() if isinstance(module, nn.Linear)}
    zeros: list[Tensor] = []
    left: dict[str, int] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def called(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            def reached(grad: Tensor) -> None:
                left[name] -= 1
                use(name, by_row(name, args[0].detach(), batch), by_row(name, grad, batch), left[name])

            left[name] = left.get(name, 0) + 1
            zeros.append(output.new_zeros((), requires_grad=True))
            shifted = output + zeros[-1]
            shifted.register_hook(reached)
            return shifted
        return called

    handles = [owners[id(leaf)].register_forward_hook(keep(name)) for name, leaf in live.leaves.items()]
    try:
        value = scalar(answer_logits(live.model, batch))
    finally:
        for handle in handles:
            handle.remove()
    torch.autograd.grad(value, zeros, allow_unused=True)


def by_row(name: str, tokens: Tensor, batch: Batch) -> Tensor:
    """Return what a map sees of a batch of B rows as [B, T, n].

    Some see the tokens of all rows in a line, [B T, n], others by heads, [B, heads, T, n].

    Args:
        name: Parameter of the map.
        tokens: Its input, or the gradient of its output.
        batch: The rows.

    Raises:
        MismatchError: It is of no such shape.
    """
    rows, length = batch.input_ids.shape
    if tokens.dim() == 2 and len(tokens) == rows * length:
        return tokens.view(rows, length, -1)
    if tokens.dim() < 3 or len(tokens) != rows:
        raise MismatchError(f"`{name}` sees inputs of shape {list(tokens.shape)}, which are not of {rows} rows",
                            hint="leave such modules, as a router's experts, out of the adapter")
    return tokens.flatten(1, -2)


def scored(losses: Sequence[Loss], seed: int) -> Iterator[tuple[Tensor, Batch, Callable[[AnswerLogits], Tensor]]]:
    """Yield (row numbers, batch, score to differentiate) of every batch, the rows of all losses numbered on.

    The scores of a loss are weighted by the root of its token weight, so that the sum of r_i r_i' over the rows
    estimates the Gauss-Newton matrix of the sum of the losses. Every walk with a seed draws the same labels.

    Args:
        losses: Cross-entropies or divergences.
        seed: Of the sampled labels.
    """
    generator, first = torch.Generator().manual_seed(seed), 0
    for loss in losses:
        score = partial(sampled_score, generator=generator, weight=loss.token_weight ** 0.5,
                        temperature=loss.temperature)
        for batch in loss.batches:
            yield batch.rows + first, batch, score
        first += row_count(loss.batches)


def score_rows(live: LiveModel, losses: Sequence[Loss], *, seed: int) -> Iterator[tuple[Tensor, RowScores]]:
    """Yield (row numbers [B], r_i of these rows) of every batch of `scored`, at the model's present parameters."""
    for numbers, batch, score in scored(losses, seed):
        yield numbers, per_row_gradients(live, batch, score)


@dataclass(frozen=True)
class LowRankFisher:
    """F = R'R with its Gram matrix decomposed once, so that a solve for any damping costs two passes over R.

    Attributes:
        rows: Parameter name -> [n, numel], the blocks of R.
        shapes: Parameter name -> a tensor of the parameter's shape, type and device.
        values: [n], eigenvalues of R R', ascending, float64.
        vectors: [n, n], its eigenvectors in columns, float64.
        mean_diagonal: trace(F) / d.
    """

    rows: dict[str, Tensor]
    shapes: Params
    values: Tensor
    vectors: Tensor
    mean_diagonal: float

    def _apply(self, v: Params) -> Tensor:
        """R v, [n], float64."""
        parts = [(part.double() @ piece.to(part.device, torch.float64)).cpu() for name, block in self.rows.items()
                 for part, piece in zip(_pieces(block), _pieces(v[name].reshape(1, -1)), strict=True)
                 for piece in piece]
        return torch.stack(parts).sum(0)

    def _transpose(self, name: str, w: Tensor) -> Tensor:
        """The block of R' w of a parameter, float64."""
        parts = [part.T.double() @ w.to(part.device) for part in _pieces(self.rows[name])]
        return torch.cat(parts).view(self.shapes[name].shape)

    def matvec(self, v: Params) -> Params:
        """Return R'R v."""
        inner = self._apply(v)
        return {name: self._transpose(name, inner).to(like) for name, like in self.shapes.items()}

    def solve(self, v: Params, damping: float) -> Solution:
        """Return (R'R + damping I)^-1 v = (v - R'(RR' + damping I)^-1 R v) / damping (Woodbury).

        Where R is wide both terms are nearly equal: sums and the difference are taken in float64, a block at a time.
        """
        inner = self.vectors @ ((self.vectors.T @ self._apply(v)) / (self.values + damping))
        x, image = {}, {}
        for name, like in self.shapes.items():
            back = self._transpose(name, inner)
            x[name] = ((v[name].to(back) - back) / damping).to(like)
            image[name] = back.to(like)  # (RR' + damping I)^-1 R v = R x, so R' of it is already F x
        return Solution(x, image, None, 0, "exact")


def low_rank_fisher(rows: dict[str, Tensor], shapes: Params) -> LowRankFisher:
    """Decompose R R' (n x n) and return the operator R'R.

    Args:
        rows: Parameter name -> [n, numel].
        shapes: Parameter name -> a tensor of the parameter's shape.

    Returns:
        The operator; it holds `rows`, not a copy.
    """
    gram = sum(_gram(block) for block in rows.values())
    assert isinstance(gram, Tensor)
    values, vectors = torch.linalg.eigh(gram)
    count = sum(t.numel() for t in shapes.values())
    return LowRankFisher(rows, shapes, values.clamp(min=0), vectors, float(gram.trace()) / count)


def _pieces(block: Tensor) -> Sequence[Tensor]:
    """Columns of a block in pieces of which a float64 copy is small."""
    return block.split(65536, dim=1)


def _gram(block: Tensor) -> Tensor:
    """R_m R_m' in float64."""
    return sum((part.double() @ part.double().T for part in _pieces(block)),
               torch.zeros(len(block), len(block), dtype=torch.float64, device=block.device)).cpu()


def fisher(live: LiveModel, losses: Sequence[Loss], *, seed: int, on_disk: bool = False) -> LowRankFisher:
    """Estimate the Fisher matrix of a sum of losses by one backward pass over their rows.

    Args:
        live: The model at its present parameters.
        losses: Whose Gauss-Newton matrix is estimated, usually the drift alone.
        seed: Of the sampled labels.
        on_disk: Keep R (n x d, the parameters' type) in a file instead of memory.

    Returns:
        R'R with R of the present parameters; it does not follow them when they move.
    """
    shapes = {name: leaf.detach() for name, leaf in live.leaves.items()}
    count = sum(row_count(loss.batches) for loss in losses)
    rows = {name: _storage(count, leaf, on_disk=on_disk) for name, leaf in shapes.items()}
    for numbers, scores in score_rows(live, losses, seed=seed):
        for name, block in scores.items():
            rows[name][numbers.to(rows[name].device)] = block.flatten(1).to(rows[name])
    return low_rank_fisher(rows, shapes)


def _storage(count: int, leaf: Tensor, *, on_disk: bool) -> Tensor:
    if on_disk:
        return scratch_tensor((count, leaf.numel()), leaf.dtype, on_disk=True).zero_()
    return torch.zeros(count, leaf.numel(), dtype=leaf.dtype, device=leaf.device)
