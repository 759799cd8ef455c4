"""Modules' own steps against dense blocks; layers and kinds by name."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from saferestore.core.curvature.fisher import LowRankFisher, fisher
from saferestore.core.influence.modules import inside_share, kind_of, layer_of, own_steps, sums_by
from saferestore.core.losses import cross_entropy
from saferestore.core.params import Params

from .. import dense
from ..cases import live_model, ragged_batches, vector_like

DAMPING, DRIFT, TOP = 0.05, 0.01, 3


@cache
def _case() -> tuple[LowRankFisher, Params, dict[str, list[str]]]:
    live = live_model(every_module=True)
    operator = fisher(live, [cross_entropy("ce", ragged_batches(6))], seed=0)
    modules: dict[str, list[str]] = {}
    for name in live.leaves:
        modules.setdefault(name.rpartition(".lora_")[0], []).append(name)
    return operator, vector_like(live.leaves, seed=1), modules


def _dense(operator: LowRankFisher, names: list[str]) -> torch.Tensor:
    rows = torch.cat([operator.rows[name] for name in names], 1)
    return rows.T @ rows


def test_gain_and_cost_of_a_module_are_those_of_its_dense_block_at_the_common_length():
    operator, g, modules = _case()
    found, steps = own_steps(operator, g, DAMPING, DRIFT, modules=modules, top=TOP)
    whole = _dense(operator, list(g))
    x = dense.damped_solve(whole, DAMPING, dense.flat(g))
    alpha = (2 * DRIFT / (x @ whole @ x)) ** 0.5
    for each in found:
        names = modules[each.module]
        block, part = _dense(operator, names), dense.flat({n: g[n] for n in names})
        own = dense.damped_solve(block, DAMPING, part)
        assert each.safety_gain == pytest.approx(float(alpha * part @ own), rel=1e-9)
        assert each.task_cost == pytest.approx(float(0.5 * alpha**2 * own @ block @ own), rel=1e-9)
        assert dense.relative_error(dense.flat({n: steps[n] for n in names}), -alpha * own) < 1e-9
        vectors = torch.linalg.eigh(block).eigenvectors[:, -TOP:]
        wanted = float((vectors.T @ part).square().sum() / part.square().sum())
        assert each.inside_share == pytest.approx(wanted, rel=1e-9)
        assert each.inside_share_random == TOP / len(part)
        assert each.gradient_share == pytest.approx(float(part.square().sum() / dense.flat(g).square().sum()))
    assert [each.safety_gain for each in found] == sorted((each.safety_gain for each in found), reverse=True)


def test_the_share_inside_the_leading_eigenvectors_of_all_modules_is_that_of_the_dense_matrix():
    operator, g, _ = _case()
    vectors = torch.linalg.eigh(_dense(operator, list(g))).eigenvectors[:, -TOP:]
    wanted = float((vectors.T @ dense.flat(g)).square().sum() / dense.flat(g).square().sum())
    assert inside_share(operator, g, TOP) == pytest.approx(wanted, rel=1e-9)


def test_a_layer_and_a_kind_are_read_from_the_name():
    names = {"model.layers.11.self_attn.q_proj": (11, "attention"), "model.layers.0.mlp.up_proj": (0, "mlp"),
             "transformer.h.3.attn.c_attn": (3, "attention"), "lm_head": (None, "other"),
             "model.layers.2.block_sparse_moe.experts.5.w1": (2, "mlp")}
    assert {name: (layer_of(name), kind_of(name)) for name in names} == names


def test_sums_by_layer_and_by_kind_hold_every_module_once():
    operator, g, modules = _case()
    found, _ = own_steps(operator, g, DAMPING, DRIFT, modules=modules)
    whole = sum(each.safety_gain for each in found)
    for key in (lambda m: m.layer, lambda m: m.kind):
        sums = sums_by(found, key)
        assert sum(gain for gain, _ in sums.values()) == pytest.approx(whole)
    assert list(sums_by(found, lambda m: m.layer)) == ["0", "1"]
    assert set(sums_by(found, lambda m: m.kind)) == {"attention", "mlp"}
