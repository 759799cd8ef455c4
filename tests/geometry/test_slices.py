"""Slices against single evaluations, and what they do where a loss is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from saferestore.core.data.batches import make_batches
from saferestore.core.errors import MismatchError
from saferestore.core.geometry.directions import along, draw_direction, module_shapes
from saferestore.core.geometry.slices import Rows, axis, check_deterministic, take_slice
from saferestore.core.losses import cross_entropy
from torch import nn

from ..cases import live_model, ragged_rows


def rows(batch_size: int = 4) -> Rows:
    """Six rows: four harmful, two task."""
    return Rows(make_batches(ragged_rows(6), batch_size=batch_size, pad_id=0),
                {"harmful": range(4), "task": range(4, 6)})


def test_each_point_of_a_plane_is_the_loss_of_its_rows_alone() -> None:
    live = live_model()
    drawn = [draw_direction(module_shapes(live.model), seed=seed) for seed in (1, 2)]
    axes = (axis(3, 0.4), axis(5, 0.2))
    found = take_slice(live.model, drawn, axes, rows())
    alone = make_batches(ragged_rows(6)[:4], batch_size=8, pad_id=0)
    assert found.surface("harmful").shape == (3, 5) and found.row_losses("task").shape == (3, 5, 2)
    with along(live.model, drawn) as move:
        for i, j in np.ndindex(3, 5):
            move([axes[0][i], axes[1][j]])
            wanted = cross_entropy("harmful", alone).value(live.model)
            assert found.surface("harmful")[i, j] == pytest.approx(wanted, rel=1e-10)


def test_the_batch_size_changes_nothing() -> None:
    live = live_model()
    drawn = [draw_direction(module_shapes(live.model), seed=1)]
    one, all_of_them = (take_slice(live.model, drawn, (axis(3, 0.4),), rows(size)) for size in (1, 6))
    assert np.allclose(one.sums, all_of_them.sums, rtol=1e-10)


def test_a_loss_that_is_not_finite_is_a_counted_gap() -> None:
    live = live_model(dtype=torch.float32)
    found = take_slice(live.model, [draw_direction(module_shapes(live.model), seed=1)], ((-1e30, 0.0, 1e30),), rows())
    assert found.gaps("harmful") == found.gaps("task") == 2
    assert np.isnan(found.surface("harmful")).tolist() == [True, False, True]


@pytest.mark.parametrize("points", [1, 3, 21])
def test_an_axis_has_its_own_weights_in_the_middle(points: int) -> None:
    steps = axis(points, 0.5)
    assert len(steps) == points and steps[points // 2] == 0 and steps[0] == -steps[-1]


def test_progress_is_told_of_every_point() -> None:
    live, seen = live_model(), []
    take_slice(live.model, [draw_direction(module_shapes(live.model), seed=1)], (axis(3, 0.4),), rows(),
               progress=lambda *told: seen.append(told))
    assert seen == [("slice", done, 3) for done in range(4)]


def test_a_model_with_active_dropout_is_refused() -> None:
    model = live_model().model
    model.add_module("noise", nn.Dropout(0.1).train())
    with pytest.raises(MismatchError, match="dropout is active - noise"):
        check_deterministic(model, rows())


def test_a_model_that_gives_two_losses_is_refused() -> None:
    model = live_model().model
    check_deterministic(model, rows())
    layer = model.get_base_model().get_submodule("model.layers.0")
    layer.register_forward_hook(lambda _, __, output: output + torch.randn_like(output))
    with pytest.raises(MismatchError, match="not deterministic"):
        check_deterministic(model, rows())
