"""Numbers of modules as a table of layers by kinds."""

from __future__ import annotations

import pytest
from saferestore.core.report.heat import SHADES, heat_strip


def test_layers_come_in_their_order_and_missing_modules_are_none() -> None:
    found = heat_strip({"model.layers.10.mlp.up_proj": 1.0, "model.layers.2.mlp.up_proj.weight": 2.0,
                        "model.layers.2.self_attn.q_proj": 3.0, "lm_head": 4.0})
    assert found.columns == ("up_proj", "q_proj", "lm_head")
    assert found.layers == (("2", (2.0, 3.0, None)), ("10", (1.0, None, None)), ("none", (None, None, 4.0)))


def test_kinds_of_one_last_part_keep_what_tells_them_apart() -> None:
    found = heat_strip({"transformer.h.0.attn.c_proj": 1.0, "transformer.h.0.mlp.c_proj": 2.0})
    assert found.columns == ("attn.c_proj", "mlp.c_proj") and found.layers == (("0", (1.0, 2.0)),)


@pytest.mark.parametrize(("value", "shade"), [(0.0, 0), (None, 0), (0.5, (SHADES - 1) // 2), (1.0, SHADES - 1)])
def test_shades_are_linear_from_nothing_to_the_largest(value: float | None, shade: int) -> None:
    assert heat_strip({"a.0.b": 1.0, "a.1.b": 0.2}).shade(value) == shade


def test_a_strip_of_zeros_is_white() -> None:
    assert heat_strip({"a.0.b": 0.0}).shade(0.0) == 0 and heat_strip({}).largest == 0
