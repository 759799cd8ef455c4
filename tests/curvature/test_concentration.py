"""Where the ends of a spectrum lie, against dense eigenvectors."""

from __future__ import annotations

import pytest
import torch
from saferestore.core.curvature.concentration import module_of, module_shares
from saferestore.core.curvature.hessian import Hessian
from saferestore.core.curvature.spectrum import ends, lanczos
from saferestore.core.losses import cross_entropy
from saferestore.core.params import gaussian

from .. import dense
from ..cases import live_model, ragged_batches
from . import given


def test_the_shares_are_those_of_the_dense_eigenvectors() -> None:
    live, batches = live_model(), ragged_batches()
    exact = dense.hessian(lambda theta: dense.cross_entropy(live, theta, batches), dense.flat(live.leaves))
    values, vectors = torch.linalg.eigh(exact)
    ends_of = [*range(5), *range(len(values) - 5, len(values))]
    energy = (vectors[:, ends_of].square() * values[ends_of].abs()).sum(1)
    wanted: dict[str, float] = {}
    first = 0
    for name, leaf in live.leaves.items():
        module = name.rpartition(".lora_")[0]
        wanted[module] = wanted.get(module, 0.0) + float(energy[first:first + leaf.numel()].sum() / energy.sum())
        first += leaf.numel()
    start = gaussian({name: leaf.detach() for name, leaf in live.leaves.items()}, 1)
    found = module_shares(ends(lanczos(Hessian(live, [cross_entropy("ce", batches)], way="kept").matvec, start, 60), 5))
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-9) and sum(found.values()) == pytest.approx(1)


def test_the_zero_matrix_lies_nowhere() -> None:
    like = given.shapes(8)
    nothing = given.products(torch.zeros(8, 8, dtype=torch.float64))
    found = module_shares(ends(lanczos(nothing, gaussian(like, 1), 4), 2))
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(("leaf", "module"), [("a.q.lora_A.weight", "a.q"), ("a.q.lora_B.weight", "a.q"),
                                              ("a.q.coordinates", "a.q"), ("a.q.weight", "a.q.weight")])
def test_a_factor_s_module_is_its_name_without_the_factor(leaf: str, module: str) -> None:
    assert module_of(leaf) == module
