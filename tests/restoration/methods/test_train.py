"""The loop: what a pass sees, what it counts, where a path ends, which point of it is taken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from saferestore.core.checkpoint.session import read_params, write_params
from saferestore.core.errors import NumericalError
from saferestore.core.losses import AnswerLogits, Loss, cross_entropy, gradient
from saferestore.core.params import axpy
from saferestore.core.restoration.methods.inputs import Inputs
from saferestore.core.restoration.methods.train import (
    Path,
    Recipe,
    Terms,
    Waypoint,
    partial_gradient,
    shuffled_parts,
    trained,
    within_budget,
)
from torch import Tensor

from ... import dense
from .given import RETAIN, answered, inputs


def learn(given: Inputs) -> Terms:
    return (1.0, cross_entropy("safe", given.data.safe)), (0.5, cross_entropy("replay", RETAIN))


def test_a_pass_sees_every_batch_of_every_term_once_in_an_order_by_seed() -> None:
    terms = learn(inputs())
    parts = shuffled_parts(terms, 2, torch.Generator().manual_seed(4))
    for index, (_, loss) in enumerate(terms):
        assert sorted(number for part in parts for number in part[index]) == list(range(len(loss.batches)))
        assert all(part[index] for part in parts)
    assert parts == shuffled_parts(terms, 2, torch.Generator().manual_seed(4))
    assert any(parts != shuffled_parts(terms, 2, torch.Generator().manual_seed(seed)) for seed in range(5))


def test_the_gradient_of_all_batches_is_that_of_the_weighted_sum() -> None:
    given = inputs()
    live, terms = given.problem.live, learn(given)
    found = partial_gradient(live, terms, [range(len(loss.batches)) for _, loss in terms])
    wanted = axpy(0.5, gradient(live, terms[1][1])[1], gradient(live, terms[0][1])[1])
    torch.testing.assert_close(dense.flat(found), dense.flat(wanted))


def test_single_batches_average_to_the_whole_gradient() -> None:
    given = inputs()
    live, term = given.problem.live, learn(given)[:1]
    count = len(term[0][1].batches)
    parts = [dense.flat(partial_gradient(live, term, [[number]])) for number in range(count)]
    torch.testing.assert_close(sum(parts) / count, dense.flat(gradient(live, term[0][1])[1]))


def test_whole_passes_by_plain_steps_are_gradient_descent_written_out() -> None:
    given = inputs(max_passes=2)
    live = given.problem.live
    theta = dense.flat(live.leaves)
    for _ in range(2):
        theta = theta - 0.1 * dense.gradient(lambda t: dense.cross_entropy(live, t, answered(11))
                                             + 0.5 * dense.cross_entropy(live, t, RETAIN), theta)
    path = trained(given, Recipe(learn, "sgd", whole=True), 0.1)
    torch.testing.assert_close(dense.flat(path.points[-1].params), theta)
    assert (path.passes, given.cost.gradient_passes, given.cost.forward_passes, len(path.points)) == (2, 2, 3, 3)


def test_passes_of_an_optimisers_curvature_count_toward_the_budget() -> None:
    given = inputs(max_passes=5)
    path = trained(given, Recipe(learn, "gauss-newton", whole=True), 1e-4)
    assert path.passes == given.cost.gradient_passes == 5
    assert len(path.points) == 1 + 3


def test_waypoints_carry_the_own_loss_and_the_drift_at_their_parameters() -> None:
    given = inputs()
    live = given.problem.live
    start = dense.probabilities(live, RETAIN)
    path = trained(given, Recipe(learn, "adamw"), 0.01)
    for point in path.points:
        theta = dense.flat(point.params)
        assert point.own == pytest.approx(float(dense.cross_entropy(live, theta, answered(11))), rel=1e-9)
        assert point.drift == pytest.approx(float(dense.divergence(live, theta, RETAIN, start)), abs=1e-10)


def test_the_same_seed_gives_the_same_path_and_another_seed_another() -> None:
    ends = [trained(inputs(seed=seed), Recipe(learn, "adamw"), 0.01).points[-1].params for seed in (1, 1, 2)]
    assert torch.equal(dense.flat(ends[0]), dense.flat(ends[1]))
    assert not torch.equal(dense.flat(ends[0]), dense.flat(ends[2]))


def broken(given: Inputs) -> Terms:
    def contribution(_: int, out: AnswerLogits) -> Tensor:
        return out.logits.sum() * math.nan

    return ((1.0, Loss("broken", given.data.safe, contribution, 0.0)),)


def test_a_gradient_that_is_not_finite_is_an_error_and_ends_a_path() -> None:
    given = inputs()
    with pytest.raises(NumericalError, match="not finite"):
        partial_gradient(given.problem.live, broken(given), [[0]])
    path = trained(given, Recipe(broken, "sgd"), 0.1)
    assert len(path.points) == 1 and path.passes == 1


def test_a_path_that_leaves_finite_numbers_ends_there_and_an_earlier_point_is_taken() -> None:
    given = inputs(max_passes=6)
    path = trained(given, Recipe(learn, "sgd"), 1e300)
    assert len(path.points) < 7
    point = within_budget(given, path)
    assert math.isfinite(point.own) and point.drift <= given.max_drift


def made(given: Inputs, *points: tuple[float, float, float]) -> Path:
    """A path along one direction from (length, own loss, drift)."""
    start = read_params(given.problem.live)
    slope = gradient(given.problem.live, given.problem.safety[0])[1]
    return Path(((1.0, given.problem.safety[0]),), tuple(
        Waypoint(axpy(-length, slope, start), own, drift) for length, own, drift in points), 0)


def test_the_point_that_did_most_within_the_budget_is_taken() -> None:
    given = inputs(max_drift=0.1)
    path = made(given, (0, 9.0, 0.0), (1, 5.0, 0.2), (2, 3.0, 0.05), (3, 4.0, 0.01))
    assert within_budget(given, path) is path.points[2]


def test_an_end_over_the_budget_is_pulled_back_to_it() -> None:
    given = inputs(max_drift=1e-4)
    live = given.problem.live
    own, start = given.problem.safety[0].value(live.model), read_params(live)
    path = made(given, (0.0, own, 0.0), (0.5, 0.0, 1.0))
    write_params(live, path.points[1].params)
    path = replace(path, points=(path.points[0], replace(path.points[1], drift=given.problem.drift.value(live.model))))
    assert path.points[1].drift > 1e-4
    point = within_budget(given, path)
    assert 0.9e-4 < point.drift <= 1e-4 and point.own < own
    moved, way = (axpy(-1.0, start, p.params) for p in (point, path.points[1]))
    cosine = dense.flat(moved) @ dense.flat(way) / dense.flat(moved).norm() / dense.flat(way).norm()
    assert float(cosine) == pytest.approx(1, abs=1e-9)


def test_where_nothing_did_more_the_start_is_taken() -> None:
    given = inputs(max_drift=0.1)
    path = made(given, (0, 1.0, 0.0), (1, 5.0, 0.05))
    assert within_budget(given, path) is path.points[0]
