"""Null controls: the search for a strength, and the random direction."""

from __future__ import annotations

import math

import pytest
import torch
from saferestore.core.params import norm
from saferestore.core.restoration.controls import along, random_direction, strength_at_drift

from .. import dense
from ..cases import live_model, vector_like


@pytest.mark.parametrize("crossing", [0.001, 0.1, 0.37, 0.999])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_the_strength_found_spends_at_most_the_drift_and_nearly_all_of_it_in_few_measurements(crossing, power):
    measured: list[float] = []

    def drift(strength: float) -> float:
        measured.append((strength / crossing) ** power)
        return measured[-1]

    found = strength_at_drift(drift, 1.0, largest=1.0)
    assert 0.98 <= (found / crossing) ** power <= 1
    assert len(measured) <= 6


@pytest.mark.parametrize("far", [math.inf, math.nan, 1e30])
def test_a_drift_that_explodes_far_away_does_not_hide_the_crossing(far: float):
    found = strength_at_drift(lambda s: far if s > 0.9 else s * s, 0.25, largest=1.0)
    assert 0.98 * 0.25 <= found * found <= 0.25


def test_every_strength_returned_was_measured_to_fit():
    measured: dict[float, float] = {}

    def bumpy(s: float) -> float:
        measured[s] = s + 0.2 * torch.sin(torch.tensor(40.0 * s)).item()
        return measured[s]

    found = strength_at_drift(bumpy, 0.5, largest=1.0)
    assert measured[found] <= 0.5


def test_the_largest_strength_is_taken_where_it_fits():
    assert strength_at_drift(lambda s: s, 2.0, largest=1.5) == 1.5


def test_nothing_fits_only_at_strength_zero():
    assert strength_at_drift(lambda s: 1.0 if s else 0.0, 0.5, largest=1.0) == 0.0


def test_the_random_direction_has_the_norm_of_the_adapter_and_follows_the_seed():
    params = {name: leaf.detach() for name, leaf in live_model().leaves.items()}
    z = random_direction(params, 3)
    assert norm(z) == pytest.approx(norm(params), rel=1e-12)
    assert torch.equal(dense.flat(z), dense.flat(random_direction(params, 3)))
    cosine = dense.flat(z) @ dense.flat(random_direction(params, 4)) / norm(params) ** 2
    assert abs(float(cosine)) < 0.3


def test_along_moves_by_the_strength_and_starts_at_the_parameters():
    params = {name: leaf.detach() for name, leaf in live_model().leaves.items()}
    direction = vector_like(params, seed=1)
    path = along(params, direction)
    assert torch.equal(dense.flat(path(0.0)), dense.flat(params))
    torch.testing.assert_close(dense.flat(path(-0.5)), dense.flat(params) - 0.5 * dense.flat(direction))
