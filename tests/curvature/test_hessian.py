"""Hessian products against the whole matrix of second derivatives, and the choice between the ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel, read_params, write_params
from saferestore.core.curvature import hessian as module
from saferestore.core.curvature.hessian import EXACT, WAYS, Hessian, choose_way, graph_bytes
from saferestore.core.losses import Loss, cross_entropy, gradient, kl_divergence, log_probabilities
from saferestore.core.params import Params, axpy, norm, zeros
from torch import Tensor, nn

from .. import dense
from ..cases import FAMILIES, live_model, live_model_frozen_in, moved, ragged_batches, vector_like


def short_steps(node: object) -> set[str]:
    """Names of the library's own functions in the graph behind a node."""
    found, todo, seen = set(), [node], set()
    while todo:
        if (at := todo.pop()) is not None and at not in seen:
            seen.add(at)
            found |= {type(at).__name__} if type(at).__name__.startswith("_") else set()
            todo += [following for following, _ in at.next_functions]  # type: ignore[attr-defined]
    return found


def reference(live: LiveModel) -> Tensor:
    return dense.hessian(lambda theta: dense.cross_entropy(live, theta, ragged_batches()), dense.flat(live.leaves))


@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_products_equal_the_dense_matrix_times_the_vector(family: str, way: str) -> None:
    live = live_model(family)
    operator, exact = Hessian(live, [cross_entropy("ce", ragged_batches())], way=way), reference(live)
    for seed in range(2):
        v = vector_like(live.leaves, seed=seed)
        found = operator.matvec(v)
        assert list(found) == list(live.leaves)
        assert dense.relative_error(dense.flat(found), exact @ dense.flat(v)) < 1e-8
    assert operator.products == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_product_through_adapters_on_every_module_is_exact(family: str) -> None:
    live = live_model(family, every_module=True)
    operator, v = Hessian(live, [cross_entropy("ce", ragged_batches())]), vector_like(live.leaves, seed=3)
    wanted = reference(live) @ dense.flat(v)
    for _ in range(2):  # what is kept from one product to the next must still serve it
        assert dense.relative_error(dense.flat(operator.matvec(v)), wanted) < 1e-8
    names = short_steps(operator.gradients()[0]()[0].grad_fn)
    assert {"_LinearBackBackward", "_SoftmaxBackBackward", "_CrossEntropyBackBackward"} <= names
    assert ("_GatedBackBackward" in names) == (family != "gpt2")


def test_a_difference_of_gradients_comes_close() -> None:
    live = live_model()
    v = vector_like(live.leaves, seed=1)
    for scale in (1e-3, 1.0, 1e3):
        along = {name: tensor * scale for name, tensor in v.items()}
        found = Hessian(live, [cross_entropy("ce", ragged_batches())], way="difference").matvec(along)
        assert dense.relative_error(dense.flat(found), reference(live) @ dense.flat(along)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_difference_is_taken_where_neither_rounding_nor_the_third_derivative_is_much(dtype: torch.dtype) -> None:
    """Of steps from 1e-7 to 1e-1, four to a power of ten, none does much better."""
    live, losses = live_model(dtype=dtype), [cross_entropy("ce", ragged_batches())]
    wanted = reference(live_model())
    for seed in range(3):
        v = vector_like(live.leaves, seed=seed)
        exact = wanted @ dense.flat(v).double()
        point = read_params(live)

        def error(step: float, v: Params = v, exact: Tensor = exact, point: Params = point) -> float:
            ends = []
            for sign in (1, -1):
                write_params(live, axpy(sign * step / norm(v), v, point))
                ends.append(dense.flat(gradient(live, losses[0])[1]).double())
            write_params(live, point)
            return dense.relative_error((ends[0] - ends[1]) / (2 * step / norm(v)), exact)

        best = min(error(10 ** (power / 4)) for power in range(-28, -3))
        found = dense.flat(Hessian(live, losses, way="difference").matvec(v)).double()
        assert dense.relative_error(found, exact) < 8 * best


def test_a_difference_leaves_the_model_where_it_was() -> None:
    live = live_model()
    before = read_params(live)
    operator = Hessian(live, [cross_entropy("ce", ragged_batches())], way="difference")
    operator.matvec(vector_like(live.leaves, seed=1))
    assert all(torch.equal(before[name], leaf) for name, leaf in live.leaves.items())
    assert norm(operator.matvec(zeros(before))) == 0


@pytest.mark.parametrize("way", WAYS)
def test_the_matrix_stays_that_of_its_point_while_the_model_moves(way: str) -> None:
    live = live_model()
    exact, v = reference(live), vector_like(live.leaves, seed=1)
    operator = Hessian(live, [cross_entropy("ce", ragged_batches())], way=way)
    write_params(live, moved(live, by=0.5, seed=7))
    assert dense.relative_error(dense.flat(operator.matvec(v)), exact @ dense.flat(v)) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_of_losses_has_the_sum_of_their_matrices(way: str) -> None:
    live, batches = live_model(), ragged_batches()
    fixed = log_probabilities(live_model(seed=9).model, batches)
    losses = [cross_entropy("a", batches), kl_divergence("b", batches, fixed.__getitem__)]
    v = vector_like(live.leaves, seed=1)
    parts = [Hessian(live, [loss], way="rebuilt").matvec(v) for loss in losses]
    both = Hessian(live, losses, way=way).matvec(v)
    assert norm(axpy(-1.0, axpy(1.0, *parts), both)) < 1e-6 * norm(both)


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_that_no_row_reaches_has_zero_curvature(way: str) -> None:
    live = live_model()
    idle = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    live.model.add_module("idle", idle)
    live.leaves["idle.lora_A.weight"] = idle.weight
    found = Hessian(live, [cross_entropy("ce", ragged_batches())], way=way).matvec(vector_like(live.leaves, seed=1))
    assert float(found["idle.lora_A.weight"].detach().abs().max()) == 0
    assert norm(found) > 0


def test_kept_graphs_are_chosen_where_they_fit() -> None:
    live = live_model()
    choice = choose_way(live, [cross_entropy("ce", ragged_batches())], vector_like(live.leaves, seed=1))
    assert choice.way == "kept" and choice.distance is not None and choice.distance < 1e-6


def test_on_bfloat16_weights_every_way_is_near_float32_and_kept_graphs_are_chosen() -> None:
    live, losses = live_model(dtype=torch.float32, every_module=True), [cross_entropy("ce", ragged_batches())]
    v = vector_like(live.leaves, seed=1)
    exact = Hessian(live, losses).matvec(v)
    rough = live_model_frozen_in(torch.bfloat16)
    for way in WAYS:
        allowed = 0.3 if way == "difference" else 0.12
        assert dense.relative_error(dense.flat(Hessian(rough, losses, way=way).matvec(v)), dense.flat(exact)) < allowed
    choice = choose_way(rough, losses, v)
    assert choice.way == "kept" and choice.distance is not None and choice.distance < 0.3


def test_in_bfloat16_a_product_of_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rough, losses = live_model_frozen_in(torch.bfloat16), [cross_entropy("ce", ragged_batches())]
    for way in ("rebuilt", "forward"):
        _broken(way, monkeypatch, lambda _: zeros)
    assert choose_way(rough, losses, vector_like(rough.leaves, seed=1)).way == "difference"


def _no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_small", lambda size, device: False)


def test_where_graphs_do_not_fit_gradients_are_differenced(monkeypatch: pytest.MonkeyPatch) -> None:
    live, losses = live_model(), [cross_entropy("ce", ragged_batches())]
    v = vector_like(live.leaves, seed=1)
    assert choose_way(live, losses, v, low_memory=True).way == "difference"
    _no_room(monkeypatch)
    assert choose_way(live, losses, v).way == "difference"


def test_graphs_have_to_fit_on_every_device_that_they_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    live, losses, gpu = live_model(), [cross_entropy("ce", ragged_batches(6, batch_size=2))], torch.device("cuda", 1)
    monkeypatch.setattr(module, "graph_bytes", lambda *_: Counter({torch.device("cpu"): 1, gpu: 1000}))
    for room, way in ((3000, "kept"), (2999, "difference")):
        monkeypatch.setattr(module, "is_small", lambda size, device, room=room: device != gpu or size <= room)
        assert choose_way(live, losses, vector_like(live.leaves, seed=1)).way == way


def _broken(way: str, monkeypatch: pytest.MonkeyPatch, product: Callable[[Hessian], object]) -> None:
    monkeypatch.setitem(module.WAYS, way, product)  # type: ignore[arg-type]


def _raises(_: Hessian) -> object:
    raise RuntimeError("derivative for flash attention backward is not implemented")


def test_without_a_second_derivative_in_reverse_mode_another_way_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    live, losses = live_model(), [cross_entropy("ce", ragged_batches())]
    _broken("rebuilt", monkeypatch, _raises)
    assert choose_way(live, losses, vector_like(live.leaves, seed=1)).way == "forward"
    _broken("forward", monkeypatch, _raises)
    assert choose_way(live, losses, vector_like(live.leaves, seed=1)).way == "difference"


def test_a_product_of_other_weights_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    live, losses = live_model(), [cross_entropy("ce", ragged_batches())]
    for way in ("rebuilt", "forward"):
        _broken(way, monkeypatch, lambda _: lambda v: v)
    choice = choose_way(live, losses, vector_like(live.leaves, seed=1))
    assert choice.way == "difference" and choice.distance is None


def test_the_memory_of_a_graph_grows_with_its_rows() -> None:
    live = live_model()
    small, large = (graph_bytes(live, _loss(count)) for count in (2, 16))
    [device] = large
    assert device.type == "cpu" and 0 < 2 * small[device] < large[device]


def _loss(count: int) -> Loss:
    return cross_entropy("ce", ragged_batches(count, batch_size=count))
