"""Vector algebra on mappings of tensors, against flat vectors."""

from __future__ import annotations

import pytest
import torch
from saferestore.core import params

from .dense import flat


def _vector(seed: int, dtype: torch.dtype = torch.float64) -> params.Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype)
            for name, shape in (("a", (3, 2)), ("b", (4,)), ("c", (1, 1, 5)))}


def test_sums_and_multiples_are_those_of_the_flat_vectors():
    x, y = _vector(0), _vector(1)
    torch.testing.assert_close(flat(params.axpy(-2.5, x, y)), flat(y) - 2.5 * flat(x))
    torch.testing.assert_close(flat(params.scale(0.5, x)), flat(x) / 2)
    torch.testing.assert_close(flat(params.each(torch.maximum, x, y)), torch.maximum(flat(x), flat(y)))


def test_products_norms_and_sizes_are_those_of_the_flat_vectors():
    x, y = _vector(0), _vector(1)
    assert params.dot(x, y) == pytest.approx(float(flat(x) @ flat(y)), rel=1e-14)
    assert params.norm(x) == pytest.approx(float(torch.linalg.norm(flat(x))), rel=1e-14)
    assert params.size(x) == 15
    assert params.norm(params.zeros(x)) == 0


def test_no_operation_changes_its_input():
    x, y = _vector(0), _vector(1)
    before = flat(x).clone(), flat(y).clone()
    params.axpy(2.0, x, y)
    params.scale(2.0, x)
    params.dot(x, y)
    assert torch.equal(flat(x), before[0]) and torch.equal(flat(y), before[1])


def test_results_have_the_names_shapes_and_types_of_the_first_vector():
    x = _vector(0, torch.float32)
    for made in (params.axpy(1.0, x, x), params.scale(2.0, x), params.zeros(x), params.gaussian(x, 0)):
        assert {n: (t.shape, t.dtype) for n, t in made.items()} == {n: (t.shape, t.dtype) for n, t in x.items()}


def test_a_missing_name_is_a_key_error():
    x, y = _vector(0), _vector(1)
    del y["b"]
    with pytest.raises(KeyError, match="b"):
        params.axpy(1.0, x, y)


def test_a_dot_product_of_many_float32_numbers_is_summed_in_float64():
    x = {"a": torch.full((2**20,), 1.0 + 2**-20)}  # the squares need 40 bits
    exact = 2**20 * (1.0 + 2**-20) ** 2
    assert params.dot(x, x) == pytest.approx(exact, rel=1e-7)
    ones = {"a": torch.cat([torch.tensor([2.0**25]), torch.ones(1000)])}
    assert params.dot(ones, {"a": torch.ones(1001)}) == 2**25 + 1000  # 2^25 + 1 is no float32


def test_a_gaussian_is_the_same_for_a_seed_and_another_for_another():
    x = _vector(0)
    assert torch.equal(flat(params.gaussian(x, 3)), flat(params.gaussian(x, 3)))
    assert not torch.equal(flat(params.gaussian(x, 3)), flat(params.gaussian(x, 4)))


def test_a_gaussian_has_mean_zero_and_variance_one():
    z = flat(params.gaussian({"a": torch.empty(20000, dtype=torch.float64)}, 0))
    assert abs(float(z.mean())) < 4 / 20000**0.5
    assert float(z.var()) == pytest.approx(1, abs=4 * (2 / 20000) ** 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_is_found(bad: float):
    x = _vector(0)
    assert params.is_finite(x)
    x["c"][0, 0, 4] = bad
    assert not params.is_finite(x)
