"""The point where safety begins to be lost, on curves that can be solved by hand."""

from __future__ import annotations

import pytest
from saferestore.core.influence.point import HALVINGS, NO_RISE, RISE, Point, where_safety_is_lost

HALF_A_STEP = 2.0 ** -(HALVINGS + 1)


@pytest.mark.parametrize(("safety", "crossing"), [
    (lambda t: t, RISE), (lambda t: 5 + 3 * t * t, RISE ** 0.5), (lambda t: -2 + t ** 4, RISE ** 0.25),
    (lambda t: float(t > 0.7), 0.7)])
def test_the_point_is_the_crossing_to_half_a_step(safety: object, crossing: float) -> None:
    found = where_safety_is_lost(safety)  # type: ignore[arg-type]
    assert found.at == pytest.approx(crossing, abs=HALF_A_STEP) and found.has_rise


def test_neither_height_nor_scale_of_s_matters() -> None:
    plain, other = where_safety_is_lost(lambda t: t ** 3), where_safety_is_lost(lambda t: 7 + 0.001 * t ** 3)
    assert plain.at == other.at and other.base == 7 and other.tuned == pytest.approx(7.001)


def test_of_a_curve_that_falls_first_the_crossing_is_past_the_fall() -> None:
    found = where_safety_is_lost(lambda t: (t - 0.3) ** 2)  # 0.09 at the base, 0.49 at the tuned model
    assert found.at == pytest.approx(0.3 + (0.09 + RISE * 0.4) ** 0.5, abs=HALF_A_STEP)


@pytest.mark.parametrize("safety", [lambda t: 1 - t, lambda _: 2.0])
def test_where_s_does_not_rise_the_point_is_a_fixed_one_and_says_so(safety: object) -> None:
    found = where_safety_is_lost(safety)  # type: ignore[arg-type]
    assert found.at == NO_RISE and not found.has_rise


def test_s_is_looked_at_as_often_as_is_said() -> None:
    looks: list[float] = []
    where_safety_is_lost(lambda t: looks.append(t) or t)
    assert len(looks) == HALVINGS + 2


def test_a_point_that_was_named_makes_no_claim_of_the_rise() -> None:
    assert Point(0.5).has_rise
