"""Optimisers against torch's own, or their formulas written out."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.checkpoint.session import read_params
from saferestore.core.curvature.diagonal import diagonal_fisher
from saferestore.core.curvature.kfac import ekfac
from saferestore.core.losses import cross_entropy
from saferestore.core.params import Params, axpy, dot, norm
from saferestore.core.restoration.methods.optimisers import (
    OPTIMISERS,
    Setting,
    adamw,
    clipped,
    gauss_newton,
    normalised,
    sophia,
)

from ... import dense
from ...cases import vector_like
from .given import inputs


def setting(updates: int = 20) -> Setting:
    given = inputs()
    return Setting(given, read_params(given.problem.live), updates)


def gradients(start: Params, count: int) -> list[Params]:
    return [vector_like(start, seed=seed) for seed in range(count)]


@pytest.mark.parametrize(("updates", "rising"), [(20, 2), (11, 2), (5, 1), (40, 4)])
def test_adamw_is_torchs_with_a_rate_that_rises_over_a_tenth_of_the_updates(updates: int, rising: int) -> None:
    given = setting(updates)
    step, here = adamw(given), given.start
    theirs = {name: t.clone().requires_grad_() for name, t in given.start.items()}
    torchs = torch.optim.AdamW(theirs.values(), lr=1.0, weight_decay=0.0)
    for number, g in enumerate(gradients(given.start, 5)):
        here = axpy(1.0, step(g, 0.1), here)
        torchs.param_groups[0]["lr"] = 0.1 * min(1.0, (number + 1) / rising)
        for name, t in theirs.items():
            t.grad = g[name]
        torchs.step()
    torch.testing.assert_close(dense.flat(here), dense.flat(theirs))


def test_plain_and_normalised_steps_go_against_the_gradient() -> None:
    given, (g,) = setting(), gradients(setting().start, 1)
    torch.testing.assert_close(dense.flat(OPTIMISERS["sgd"](given)(g, 0.2)), -0.2 * dense.flat(g))
    moved = normalised(given)(g, 0.05)
    assert norm(moved) == pytest.approx(0.05 * norm(given.start), rel=1e-12)
    assert dot(moved, g) == pytest.approx(-norm(moved) * norm(g), rel=1e-12)
    assert norm(normalised(given)({name: 0 * t for name, t in g.items()}, 0.05)) == 0


def test_sophia_clips_momentum_over_curvature_at_one() -> None:
    found = clipped(torch.tensor([1.0, -8.0, 0.1, -0.1]), torch.tensor([2.0, 1.0, 0.0, 4.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 1.0, -0.05]))


def test_sophia_renews_its_curvature_every_so_many_updates_and_averages_it() -> None:
    given = setting()
    live, step = given.inputs.problem.live, sophia(given, every=2, gamma=0.3)
    losses = (cross_entropy("harmful", given.inputs.data.harmful), given.inputs.problem.drift)
    h = [dense.flat(diagonal_fisher(live, losses, seed=seed).f) for seed in (0, 2)]
    mean, curvature = torch.zeros_like(h[0]), h[0]
    for number, g in enumerate(gradients(given.start, 3)):
        mean = 0.965 * mean + 0.035 * dense.flat(g)
        curvature = 0.99 * h[0] + 0.01 * h[1] if number == 2 else curvature
        ratio = [float(m) / max(0.3 * float(c), 1e-12) for m, c in zip(mean, curvature, strict=True)]
        wanted = torch.tensor([-0.1 * max(-1.0, min(1.0, r)) for r in ratio], dtype=torch.float64)
        torch.testing.assert_close(dense.flat(step(g, 0.1)), wanted)
    assert given.inputs.cost.gradient_passes == 2


def test_sophia_renews_its_curvature_at_every_tenth_update_by_itself() -> None:
    given = setting()
    step, passes = sophia(given), []
    for g in gradients(given.start, 11):
        step(g, 0.1)
        passes.append(given.inputs.cost.gradient_passes)
    assert passes == [1] * 10 + [2]


def test_a_gauss_newton_step_is_predicted_to_drift_by_its_rate_along_the_damped_solve() -> None:
    given, (g,) = setting(), gradients(setting().start, 1)
    operator = ekfac(given.inputs.problem.live, (given.inputs.problem.drift,), seed=0)
    moved = gauss_newton(given)(g, 0.002)
    assert 0.5 * dot(moved, operator.matvec(moved)) == pytest.approx(0.002, rel=1e-9)
    wanted = operator.solve(g, operator.mean_diagonal).x
    assert dot(moved, wanted) == pytest.approx(-norm(moved) * norm(wanted), rel=1e-9)
    assert (given.inputs.cost.gradient_passes, given.inputs.cost.score_passes) == (2, 2)
