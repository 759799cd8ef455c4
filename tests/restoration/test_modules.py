"""Changes by module against the weight matrices written out."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.params import Params
from saferestore.core.restoration.attribution import Attribution
from saferestore.core.restoration.modules import changes, distances, factors, module_of, shares, squared_norm

from ..cases import live_model, moved


def _weights(params: Params) -> dict[str, torch.Tensor]:
    """Module -> B A."""
    return {name.removesuffix(".lora_A.weight"): params[name.replace("lora_A", "lora_B")] @ a
            for name, a in params.items() if "lora_A" in name}


@pytest.fixture
def start() -> Params:
    return {name: leaf.detach().clone() for name, leaf in live_model(every_module=True).leaves.items()}


@pytest.fixture
def end() -> Params:
    return moved(live_model(every_module=True), by=0.2, seed=3)


def test_factors_are_paired_by_module(start: Params):
    products = {module: b @ a for module, (a, b) in factors(start).items()}
    assert all(torch.equal(products[m], w) for m, w in _weights(start).items()) and len(products) == 14
    assert module_of("model.layers.0.self_attn.q_proj.lora_B.weight") == "model.layers.0.self_attn.q_proj"


def test_the_norm_of_a_sum_of_products_is_that_of_the_matrix():
    g = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(r, 7, generator=g, dtype=torch.float64), torch.randn(5, r, generator=g, dtype=torch.float64))
             for r in (2, 3)]
    assert squared_norm(pairs) == pytest.approx(float(sum(b @ a for a, b in pairs).square().sum()), rel=1e-12)


def test_changes_are_the_squared_norms_of_the_weight_changes(start: Params, end: Params):
    before, after = _weights(start), _weights(end)
    assert changes(start, end) == pytest.approx({m: float((after[m] - w).square().sum()) for m, w in before.items()})
    assert changes(start, start) == pytest.approx(dict.fromkeys(before, 0.0), abs=1e-10)


def test_scaling_b_up_and_a_down_changes_no_weight(start: Params):
    same = {name: t * 2 if "lora_B" in name else t / 2 for name, t in start.items()}
    assert max(changes(start, same).values()) < 1e-10


def test_shares_add_up_and_the_module_that_moved_most_comes_first(start: Params, end: Params):
    leaves = list(start)
    given = Attribution(dict.fromkeys(leaves, 1.0), dict.fromkeys(leaves, 0.5))
    rows = shares(given, start, end)
    assert sum(row.update_share for row in rows) == pytest.approx(1)
    assert [row.update_share for row in rows] == sorted((row.update_share for row in rows), reverse=True)
    assert {(row.safety_gain, row.task_cost) for row in rows} == {(2.0, 1.0)}  # A and B of each module


def test_shares_of_a_run_that_moved_nothing_are_zero(start: Params):
    rows = shares(Attribution({}, {}), start, start)
    assert {(row.safety_gain, row.task_cost) for row in rows} == {(0.0, 0.0)}
    assert all(row.update_share in (0.0, pytest.approx(row.update_share)) for row in rows)


def test_distances_are_those_of_the_weights(start: Params, end: Params):
    before, after = _weights(start), _weights(end)
    whole = sum(float(w.square().sum()) for w in before.values())
    found = distances(start, end)
    update = sum(float((after[m] - w).square().sum()) for m, w in before.items())
    assert found.relative_update == pytest.approx((update / whole) ** 0.5)
    left = sum(float(w.square().sum()) for w in after.values())
    assert found.to_base_fraction == pytest.approx((left / whole) ** 0.5)


def test_half_the_adapter_is_half_way_to_the_base(start: Params):
    half = {name: t / 2 if "lora_B" in name else t for name, t in start.items()}
    assert distances(start, half).relative_update == pytest.approx(0.5)
    assert distances(start, half).to_base_fraction == pytest.approx(0.5)


def test_an_adapter_that_adds_nothing_has_no_distances(start: Params, end: Params):
    nothing = {name: t * 0 if "lora_B" in name else t for name, t in start.items()}
    found = distances(nothing, end)
    assert (found.relative_update, found.to_base_fraction) == (None, None)
