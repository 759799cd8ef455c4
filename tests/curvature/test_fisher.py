"""The low-rank Fisher matrix: its rows against one backward a row, its solves against LU, its mean against F."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel
from saferestore.core.curvature import fisher as fisher_module
from saferestore.core.curvature.fisher import (
    MANY_WORDS,
    LowRankFisher,
    by_row,
    drawn_labels,
    fisher,
    low_rank_fisher,
    per_row_gradients,
    sampled_score,
    score_rows,
    use_row_gradients,
)
from saferestore.core.data.batches import Batch
from saferestore.core.errors import MismatchError
from saferestore.core.losses import AnswerLogits, cross_entropy, kl_divergence, log_probabilities
from saferestore.core.params import Params
from scipy.stats import chisquare
from torch import Tensor, nn

from .. import dense
from ..cases import FAMILIES, ODD, live_model, ragged_batches, rows_of, vector_like

DAMPINGS = (1e-4, 1e-2, 1.0, 1e3)


def _matrix(operator: LowRankFisher) -> Tensor:
    """R [n, d]."""
    return torch.cat(list(operator.rows.values()), dim=1).double()


def _one_backward_a_row(live: LiveModel, batches: Sequence[Batch], labels: Sequence[Sequence[int]]) -> Tensor:
    """[n, d]: gradient of each row's sum of log p(label), `labels` in the order of a batch's answer tokens."""
    theta = dense.flat(live.leaves).requires_grad_()
    found = torch.zeros(rows_of(batches), len(theta), dtype=torch.float64)
    for batch, drawn in zip(batches, labels, strict=True):
        log_p = torch.log_softmax(dense.logits_of(live, theta, batch), dim=1)
        places = [place for place, _, _ in dense.answer_positions(batch)]
        for place, row in enumerate(batch.rows.tolist()):
            value = sum(log_p[n, drawn[n]] for n, at in enumerate(places) if at == place)
            found[row] = torch.autograd.grad(value, theta, retain_graph=True)[0]
    return found


def _drawn(live: LiveModel, batches: Sequence[Batch], seed: int) -> list[list[int]]:
    """The labels that `seed` gives: one draw a token, batch after batch, row after row."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.multinomial(p, 1, generator=generator).squeeze(1).tolist()
            for p in dense.probabilities(live, batches)]


def _given_labels(out: AnswerLogits) -> Tensor:
    return torch.log_softmax(out.logits, 1).gather(1, out.labels[:, None]).sum()


@pytest.mark.parametrize("family", [*FAMILIES, *ODD])
def test_per_row_gradients_equal_one_backward_a_row(family: str):
    live, batches = live_model(family, every_module=True), ragged_batches(7, batch_size=4)
    wanted = _one_backward_a_row(live, batches, [dense.labels_of(batch) for batch in batches])
    for batch in batches:
        scores = per_row_gradients(live, batch, _given_labels)
        found = torch.cat([scores[name].flatten(1) for name in live.leaves], dim=1)
        assert dense.relative_error(found, wanted[batch.rows]) < 1e-10


def test_tokens_that_cannot_be_told_apart_by_rows_are_refused():
    batch = ragged_batches(4)[0]
    rows, length = batch.input_ids.shape
    tokens = torch.arange(2.0 * rows * length).view(rows, length, 2)
    assert torch.equal(by_row("a", tokens.flatten(0, 1), batch), tokens) and by_row("a", tokens, batch) is tokens
    for routed in (tokens.flatten(0, 1)[1:], tokens.transpose(0, 1), tokens.flatten()):
        with pytest.raises(MismatchError, match="`experts.0` sees inputs of shape") as refused:
            by_row("experts.0", routed, batch)
        assert "out of the adapter" in str(refused.value.hint)


def test_per_row_gradients_have_the_shape_of_the_parameter_and_leave_no_hook_behind():
    live, batch = live_model(), ragged_batches(4)[0]
    scores = per_row_gradients(live, batch, _given_labels)
    assert {n: t.shape[1:] for n, t in scores.items()} == {n: p.shape for n, p in live.leaves.items()}
    assert not any(module._forward_hooks for module in live.model.modules())
    assert not any(block.requires_grad for block in scores.values())


def test_gradients_are_handed_over_one_after_another_and_not_kept():
    live, batch = live_model(every_module=True), ragged_batches(4)[0]
    seen: list[weakref.ref[Tensor]] = []
    most = 0

    def use(_: str, block: Tensor) -> None:
        nonlocal most
        seen.append(weakref.ref(block))
        most = max(most, sum(each() is not None for each in seen))

    use_row_gradients(live, batch, _given_labels, use)
    assert len(seen) == len(live.leaves) and most <= 2


class _Twice(nn.Module):
    """A layer run twice in one forward, as weights shared between layers are."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.inner(torch.tanh(self.inner(x)))


def test_a_use_that_the_scalar_does_not_depend_on_adds_nothing():
    live, batch = live_model(), ragged_batches(4)[0]
    wanted = per_row_gradients(live, batch, _given_labels)
    layer = live.model.get_base_model().model.layers[0].self_attn
    layer.v_proj = _Beside(layer.v_proj)
    found = per_row_gradients(live, batch, _given_labels)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class _Beside(nn.Module):
    """A layer that runs a second time for nothing."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.inner(2 * x)
        return self.inner(x)


def test_a_module_used_twice_in_one_forward_has_the_sum_of_both_uses():
    live, batches = live_model(), ragged_batches(4)
    layer = live.model.get_base_model().model.layers[0].self_attn
    layer.v_proj = nn.Sequential(layer.v_proj, nn.Linear(8, 16, bias=False, dtype=torch.float64))
    layer.v_proj = nn.Sequential(_Twice(layer.v_proj), nn.Linear(16, 8, bias=False, dtype=torch.float64))
    wanted = _one_backward_a_row(live, batches, [dense.labels_of(batches[0])])
    scores = per_row_gradients(live, batches[0], _given_labels)
    found = torch.cat([scores[name].flatten(1) for name in live.leaves], dim=1)
    assert dense.relative_error(found, wanted[batches[0].rows]) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_scores_of_sampled_labels_over_the_root_of_all_tokens(family: str):
    live, batches = live_model(family), ragged_batches(7, batch_size=3)
    found = _matrix(fisher(live, [cross_entropy("ce", batches)], seed=5))
    tokens = sum(batch.answer_tokens for batch in batches)
    wanted = _one_backward_a_row(live, batches, _drawn(live, batches, 5)) / tokens**0.5
    assert dense.relative_error(found, wanted) < 1e-10


def test_rows_at_a_temperature_are_scores_of_labels_drawn_from_the_softened_distribution():
    live, batches = live_model(), ragged_batches(7, batch_size=3)
    soft = kl_divergence("D", batches, log_probabilities(live.model, batches).__getitem__, temperature=2.5)
    generator, wanted = torch.Generator().manual_seed(5), torch.zeros(7, sum(t.numel() for t in live.leaves.values()))
    for batch in batches:
        logits, derivative = dense.jacobian(live, batch)
        p = torch.exp(logits / 2.5)
        p = p / p.sum(dim=1, keepdim=True)
        labels = torch.multinomial(p, 1, generator=generator).squeeze(1)
        for (place, *_), j, soft_p, label in zip(dense.answer_positions(batch), derivative, p, labels, strict=True):
            wanted[int(batch.rows[place])] += (j[label] - soft_p @ j).to(wanted)  # grad of 2.5 log p
    tokens = sum(batch.answer_tokens for batch in batches)
    assert dense.relative_error(_matrix(fisher(live, [soft], seed=5)).float(), wanted / tokens**0.5) < 1e-5


def test_row_numbers_do_not_depend_on_the_order_of_batches():
    live, batches = live_model(), ragged_batches(7, batch_size=3)
    turned = batches[::-1]
    found = _matrix(fisher(live, [cross_entropy("ce", turned)], seed=5))
    tokens = sum(batch.answer_tokens for batch in batches)
    assert dense.relative_error(found, _one_backward_a_row(live, turned, _drawn(live, turned, 5)) / tokens**0.5) < 1e-10


def test_rows_of_several_losses_follow_one_another_each_by_the_root_of_its_weight():
    live, first, second = live_model(), ragged_batches(3, seed=1), ragged_batches(4, seed=2)
    a, b = cross_entropy("a", first), cross_entropy("b", second)
    alone = _matrix(fisher(live, [a], seed=5))
    together = _matrix(fisher(live, [replace(a, token_weight=4 * a.token_weight), b], seed=5))
    assert together.shape[0] == 7
    torch.testing.assert_close(together[:3], 2 * alone)
    assert bool((together[3:].norm(dim=1) > 0).all())


def test_a_seed_gives_the_same_rows_and_another_seed_others():
    live, loss = live_model(), cross_entropy("ce", ragged_batches())
    assert torch.equal(_matrix(fisher(live, [loss], seed=1)), _matrix(fisher(live, [loss], seed=1)))
    assert not torch.equal(_matrix(fisher(live, [loss], seed=1)), _matrix(fisher(live, [loss], seed=2)))


def test_rows_on_disk_equal_rows_in_memory_bit_for_bit():
    live, loss = live_model(), cross_entropy("ce", ragged_batches())
    memory, disk = (fisher(live, [loss], seed=1, on_disk=on_disk) for on_disk in (False, True))
    assert torch.equal(_matrix(memory), _matrix(disk))
    v = vector_like(live.leaves, seed=0)
    assert torch.equal(dense.flat(memory.solve(v, 0.1).x), dense.flat(disk.solve(v, 0.1).x))


def _random_rows(n: int) -> tuple[dict[str, Tensor], Params]:
    """n random rows over three parameters of 4 x 3, 5 x 2 and 6 x 1 (d = 28), of very unequal lengths."""
    generator = torch.Generator().manual_seed(n)
    shapes = {"a": torch.zeros(4, 3, dtype=torch.float64), "b": torch.zeros(5, 2, dtype=torch.float64),
              "c": torch.zeros(6, 1, dtype=torch.float64)}
    lengths = torch.logspace(-2, 1, n, dtype=torch.float64)[:, None]
    rows = {name: lengths * torch.randn(n, t.numel(), generator=generator, dtype=torch.float64)
            for name, t in shapes.items()}
    return rows, shapes


@pytest.mark.parametrize("n", [1, 2, 10, 27, 28, 29, 100])
@pytest.mark.parametrize("damping", DAMPINGS)
def test_a_solve_equals_the_dense_solve_with_the_same_rows_for_every_number_of_rows(n: int, damping: float):
    rows, shapes = _random_rows(n)
    operator, v = low_rank_fisher(rows, shapes), vector_like(shapes, seed=1)
    r = torch.cat(list(rows.values()), dim=1)
    solution = operator.solve(v, damping)
    wanted = dense.damped_solve(r.T @ r, damping, dense.flat(v))
    assert dense.relative_error(dense.flat(solution.x), wanted) < 1e-6
    assert dense.relative_error(dense.flat(solution.image), r.T @ r @ wanted) < 1e-6
    assert dense.relative_error(dense.flat(operator.matvec(v)), r.T @ r @ dense.flat(v)) < 1e-10
    assert operator.mean_diagonal == pytest.approx(float((r**2).sum() / 28), rel=1e-12)


def test_linearly_dependent_rows_are_solved_too():
    rows, shapes = _random_rows(3)
    rows = {name: torch.cat([block, block, 0 * block]) for name, block in rows.items()}
    v, r = vector_like(shapes, seed=1), torch.cat(list(rows.values()), dim=1)
    wanted = dense.damped_solve(r.T @ r, 1e-3, dense.flat(v))
    assert dense.relative_error(dense.flat(low_rank_fisher(rows, shapes).solve(v, 1e-3).x), wanted) < 1e-6


def test_a_float32_matrix_solves_to_float32_accuracy():
    rows, shapes = _random_rows(100)
    v, r = vector_like(shapes, seed=1), torch.cat(list(rows.values()), dim=1)
    wanted = dense.damped_solve(r.T @ r, 1.0, dense.flat(v))
    single = low_rank_fisher({n: t.float() for n, t in rows.items()}, {n: t.float() for n, t in shapes.items()})
    found = single.solve({n: t.float() for n, t in v.items()}, 1.0)
    assert dense.relative_error(dense.flat(found.x).double(), wanted) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_with_all_labels_enumerated_it_is_the_exact_fisher_matrix(family: str, damping: float):
    live, batches = live_model(family), ragged_batches(5)
    exact = dense.gauss_newton(live, batches)
    rows = dense.enumerated_scores(live, batches)
    assert dense.relative_error(rows.T @ rows, exact) < 1e-10
    columns = torch.split(rows, [leaf.numel() for leaf in live.leaves.values()], dim=1)
    operator = low_rank_fisher(dict(zip(live.leaves, columns, strict=True)), dict(live.leaves))
    v = vector_like(live.leaves, seed=1)
    wanted = dense.damped_solve(exact, damping, dense.flat(v))
    assert dense.relative_error(dense.flat(operator.solve(v, damping).x), wanted) < 1e-6


def test_the_mean_over_seeds_is_the_exact_fisher_matrix_within_its_sampling_error():
    """For K independent unbiased samples E|mean - F|^2 = E|sample - F|^2 / K; a bias would not shrink with K."""
    live, batches, repeats = live_model(), ragged_batches(3, batch_size=3), 150
    exact, loss = dense.gauss_newton(live, batches), cross_entropy("ce", batches)
    mean, spread = torch.zeros_like(exact), 0.0
    for seed in range(repeats):
        rows = _matrix(fisher(live, [loss], seed=seed))
        sample = rows.T @ rows
        mean += sample / repeats
        spread += float(((sample - exact) ** 2).sum()) / repeats
    assert float(((mean - exact) ** 2).sum()) < 3 * spread / repeats
    assert float(mean.trace()) == pytest.approx(float(exact.trace()), rel=0.1)


@pytest.mark.parametrize("many", [MANY_WORDS, 1], ids=["a number a word", "a number a token"])
def test_labels_are_drawn_with_the_probabilities_of_the_model(monkeypatch: pytest.MonkeyPatch, many: int):
    monkeypatch.setattr(fisher_module, "MANY_WORDS", many)
    live, batches = live_model(), ragged_batches(1)
    p = dense.probabilities(live, batches)[0]
    counts, repeats = torch.zeros_like(p), 2000
    generator = torch.Generator().manual_seed(0)
    logits = p.log().requires_grad_()
    for _ in range(repeats):
        out = AnswerLogits(logits, torch.zeros(len(p), dtype=torch.long), torch.zeros(len(p), dtype=torch.long))
        counts += torch.autograd.grad(sampled_score(out, generator=generator), logits)[0] + p  # one-hot of the label
    error = (counts / repeats - p).abs() / (p * (1 - p) / repeats).sqrt()
    assert float(error.max()) < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_many_words_one_without_probability_is_never_drawn_and_the_first_and_last_are(dtype: torch.dtype):
    p = torch.zeros(3000, MANY_WORDS + 1, dtype=dtype)
    p[:, 5], p[:, 9], p[:, -7] = 0.2, 0.3, 0.5
    found = drawn_labels(p, torch.Generator().manual_seed(0))
    labels, counts = found.unique(return_counts=True)
    assert found.shape == (3000, 1) and labels.tolist() == [5, 9, p.shape[1] - 7]
    assert chisquare(counts, [600, 900, 1500]).pvalue > 0.001
    assert torch.equal(drawn_labels(p, torch.Generator().manual_seed(0)), found)
    assert not torch.equal(drawn_labels(p, torch.Generator().manual_seed(1)), found)
    one = torch.zeros(50, MANY_WORDS + 1, dtype=dtype)
    one[:, 3] = 0.9999
    assert bool((drawn_labels(one, torch.Generator().manual_seed(0)) == 3).all())


def test_score_rows_numbers_the_rows_of_each_batch():
    live, batches = live_model(), ragged_batches(7, batch_size=3)
    loss = cross_entropy("ce", batches)
    numbers = [n for rows, _ in score_rows(live, [loss, loss], seed=0) for n in rows.tolist()]
    assert sorted(numbers) == list(range(14)) and max(numbers[:7]) == 6


def test_a_parameter_that_no_row_reaches_has_zero_rows():
    live = live_model()
    idle = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    live.model.add_module("idle", idle)
    live = replace(live, leaves={**live.leaves, "idle.lora_A.weight": idle.weight})
    operator = fisher(live, [cross_entropy("ce", ragged_batches())], seed=0)
    assert float(operator.rows["idle.lora_A.weight"].abs().max()) == 0


def test_a_wide_float32_matrix_solves_as_exactly_as_its_numbers_allow():
    """Rows of one leading direction: where d is large the solution is a small difference of large vectors."""
    generator, n, d = torch.Generator().manual_seed(0), 8, 200_000
    r = torch.randn(n, 1, generator=generator) * torch.randn(1, d, generator=generator)
    r = r + 0.03 * torch.randn(n, d, generator=generator)
    v = r[0] + 0.1 * torch.randn(d, generator=generator)
    operator = low_rank_fisher({"a": r}, {"a": torch.zeros(d)})
    damping = 0.1 * operator.mean_diagonal
    found = operator.solve({"a": v}, damping)
    wide = r.double()
    inner = torch.linalg.solve(wide @ wide.T + damping * torch.eye(n, dtype=torch.float64), wide @ v.double())
    image = wide.T @ inner
    x = (v.double() - image) / damping
    assert found.x["a"].dtype == torch.float32
    assert float(v @ found.image["a"]) == pytest.approx(float(v.double() @ image), rel=1e-5)
    assert float((wide @ found.x["a"].double()).norm() / (wide @ x).norm()) == pytest.approx(1.0, rel=1e-3)
