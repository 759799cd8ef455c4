"""What is measured of one model: that no direction is measured twice, and that nothing is moved for good."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from saferestore.core.geometry.directions import module_shapes
from saferestore.core.geometry.landscape import Landscape, Plan, measure
from saferestore.core.geometry.slices import Rows
from saferestore.core.losses import row_losses

from ..cases import live_model, ragged_batches

BATCHES = ragged_batches(6)


def _measured(seed: int) -> Landscape:
    model = live_model().model
    rows = Rows(BATCHES, {"harmful": range(3), "task": range(3, 6)})
    before = row_losses(model, BATCHES)[0]
    plan = Plan(rows, (), module_shapes(model), seed, points=3, directions=3, rank=1, draws=2)
    found = measure(model, plan, "base", again=True)
    assert torch.equal(row_losses(model, BATCHES)[0], before)
    torch.testing.assert_close(torch.from_numpy(found.centre.sums), before)
    return found


@pytest.fixture(scope="module")
def found() -> Landscape:
    return _measured(0)


def test_every_direction_of_the_fan_and_the_plane_is_another_one(found: Landscape) -> None:
    changes = found.fan.sums - found.centre.sums
    for one, other in itertools.combinations(changes, 2):
        assert not np.allclose(one, other, rtol=0.01)
    plane = found.plane.sums
    np.testing.assert_allclose(plane[1, 1], found.centre.sums)
    assert not np.allclose(plane[2, 1], plane[1, 2], rtol=0.01)


def test_both_steps_along_a_direction_lie_on_either_side(found: Landscape) -> None:
    assert found.fan.axes[1] == (-0.2, 0.2)
    for low, high in found.fan.sums:
        assert not np.allclose(low, high, rtol=0.01)


def test_other_labels_are_drawn_the_second_time_and_the_same_by_one_seed(found: Landscape) -> None:
    assert found.again is not None
    again, name = _measured(0), next(iter(found.scores.blocks))
    assert torch.equal(found.scores.blocks[name], again.scores.blocks[name])
    assert not torch.allclose(found.scores.blocks[name], found.again.blocks[name])
    np.testing.assert_array_equal(found.fan.sums, again.fan.sums)
    assert not np.allclose(found.fan.sums, _measured(1).fan.sums)


def test_a_model_that_is_the_base_is_as_like_it_as_the_base_is_itself(found: Landscape) -> None:
    assert found.again is not None
    model = live_model().model
    plan = Plan(Rows(BATCHES, {"harmful": range(3), "task": range(3, 6)}), (), module_shapes(model), 0, points=3,
                directions=3, rank=1, draws=2)
    other = measure(model, plan, "tuned")
    assert other.again is None
    for name, block in found.again.blocks.items():
        assert torch.equal(other.scores.blocks[name], block)
        assert not torch.allclose(other.scores.blocks[name], found.scores.blocks[name])
