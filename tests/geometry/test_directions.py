"""Directions against whole weights that are moved by hand."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer
from saferestore.core.geometry.directions import Shape, along, causal_lm, draw_direction, module_shapes, movable_modules
from saferestore.core.losses import row_losses
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..cases import FAMILIES, live_model, ragged_batches

SHARED = ("q_proj", "v_proj")


def weight_of(module: nn.Module) -> tuple[nn.Parameter, bool]:
    """The frozen weight, and whether it is stored as [in, out]."""
    inner = module.get_base_layer() if isinstance(module, LoraLayer) else module
    return inner.weight, isinstance(inner, Conv1D)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_a_direction_is_as_long_as_the_row_of_the_weight(family: str) -> None:
    model = live_model(family).model
    direction = draw_direction(module_shapes(model), seed=3, rank=4)
    assert set(direction.factors) == set(movable_modules(model))
    for name, (v, u) in direction.factors.items():
        weight, transposed = weight_of(movable_modules(model)[name])
        rows = (weight.T if transposed else weight).detach()
        assert torch.allclose((u @ v).double().norm(dim=1), rows.norm(dim=1), rtol=1e-5)


def test_a_module_of_few_inputs_has_a_direction_of_their_rank() -> None:
    v, u = draw_direction({"dt_proj": Shape(torch.tensor([1.0, 2.0, 3.0]).double(), 2)}, seed=3).factors["dt_proj"]
    assert v.shape == (2, 2) and torch.allclose((u @ v).norm(dim=1), torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_path_gives_the_losses_of_weights_moved_by_hand(family: str) -> None:
    live, batches, steps = live_model(family), ragged_batches(), (0.3, -0.2)
    drawn = [draw_direction(module_shapes(live.model), seed=seed, rank=2) for seed in (1, 2)]
    with along(live.model, drawn) as move:
        move(steps)
        found, _ = row_losses(live.model, batches)
    with torch.no_grad():
        for name, module in movable_modules(live.model).items():
            weight, transposed = weight_of(module)
            moved = sum((step * each.factors[name][1].double() @ each.factors[name][0].double()
                         for step, each in zip(steps, drawn, strict=True)), torch.zeros(()))
            assert isinstance(moved, Tensor)
            weight += moved.T if transposed else moved
    wanted, _ = row_losses(live.model, batches)
    assert torch.allclose(found, wanted, rtol=1e-10)


def test_at_zero_and_after_leaving_the_model_is_itself_bit_for_bit() -> None:
    live, batches = live_model(), ragged_batches()
    before, _ = row_losses(live.model, batches)
    with along(live.model, [draw_direction(module_shapes(live.model), seed=1)]) as move:
        move([0.5])
        away, _ = row_losses(live.model, batches)
        move([0.0])
        home, _ = row_losses(live.model, batches)
    after, _ = row_losses(live.model, batches)
    assert torch.equal(home, before) and torch.equal(after, before) and not torch.equal(away, before)


def test_a_module_has_the_same_part_whatever_the_other_modules_are() -> None:
    shapes = module_shapes(live_model().model)
    some = {name: shape for name, shape in shapes.items() if name.endswith(SHARED)}
    whole, part = draw_direction(shapes, seed=5), draw_direction(some, seed=5)
    assert part.factors and all(torch.equal(part.factors[n][i], whole.factors[n][i]) for n in some for i in (0, 1))
    assert not torch.equal(draw_direction(some, seed=6).factors[next(iter(some))][0],
                           part.factors[next(iter(some))][0])


def test_names_and_norms_under_an_adapter_are_those_of_the_base() -> None:
    live = live_model()
    adapted = module_shapes(live.model)
    plain = causal_lm(live.model.merge_and_unload())  # type: ignore[operator]
    assert list(adapted) == list(movable_modules(plain))
    untouched = [name for name in adapted if not name.endswith(SHARED)]
    assert untouched and all(torch.equal(adapted[n].norms, module_shapes(plain)[n].norms) for n in untouched)


def test_the_output_head_does_not_move() -> None:
    assert not any("lm_head" in name for name in movable_modules(live_model().model))


def test_a_direction_of_another_model_is_refused() -> None:
    direction = draw_direction(module_shapes(live_model("gpt2").model), seed=1)
    with pytest.raises(KeyError), along(live_model().model, [direction]):
        pass
