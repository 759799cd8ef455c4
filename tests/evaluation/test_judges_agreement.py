"""Agreement of judges: worked examples, the definition written another way, and what is left out."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from saferestore.core.evaluation.agreement import agreements, cohen_kappa
from saferestore.core.evaluation.intervals import wilson
from saferestore.core.evaluation.samples import Finding, Sample


def sample(findings: Mapping[str, Finding]) -> Sample:
    return Sample("tuned", "set", "harmful", "none", "", "id", "p", "a", 1, True, findings=findings)


def table(both: int, only_first: int, only_second: int, neither: int) -> list[tuple[bool, bool]]:
    return ([(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
            + [(False, False)] * neither)


# both say yes, only the first, only the second, neither -> kappa, rounded as published
WORKED = {"50 grant applications, two readers": ((20, 5, 10, 15), 0.40),
          "the same agreement, equal margins": ((45, 15, 25, 15), 0.1304),
          "the same agreement, unequal margins": ((25, 35, 5, 35), 0.2593)}


@pytest.mark.parametrize("name", WORKED)
def test_kappa_is_that_of_the_textbook(name: str) -> None:
    counts, kappa = WORKED[name]
    assert cohen_kappa(table(*counts)) == pytest.approx(kappa, abs=5e-5)


def test_kappa_is_observed_agreement_beyond_chance() -> None:
    draw = random.Random(0)
    for _ in range(50):
        pairs = [(draw.random() < 0.3, draw.random() < 0.6) for _ in range(draw.randint(4, 40))]
        confusion = np.histogram2d(*np.array(pairs, dtype=float).T, bins=2, range=[[0, 1], [0, 1]])[0] / len(pairs)
        observed, expected = np.trace(confusion), confusion.sum(0) @ confusion.sum(1)
        if expected < 1:
            assert cohen_kappa(pairs) == pytest.approx((observed - expected) / (1 - expected))


@pytest.mark.parametrize("pairs", [[], table(5, 0, 0, 0), table(0, 0, 0, 5)])
def test_kappa_is_undefined_where_chance_alone_agrees_always(pairs: list[tuple[bool, bool]]) -> None:
    assert cohen_kappa(pairs) is None


def test_judges_are_compared_pair_by_pair_on_what_both_say() -> None:
    yes, no, broken = Finding(harmful=True), Finding(harmful=False), Finding(harmful=None, error="odd")
    coherent = Finding(score=1.0)
    samples = [sample({"a": yes, "b": yes, "c": no, "coherence": coherent}),
               sample({"a": no, "b": yes, "c": no, "coherence": coherent}),
               sample({"a": yes, "b": broken, "coherence": coherent}),
               sample({"a": yes, "b": Finding(refused=True)})]
    found = {(row.first, row.second): row for row in agreements(samples)}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]  # coherence says nothing of harm
    assert [(row.n, row.left_out) for row in found.values()] == [(2, 2), (2, 0), (2, 0)]
    assert [row.rate.value for row in found.values() if row.rate] == [0.5, 0.5, 0.0]
    assert found["a", "b"].kappa == 0.0


def test_answers_of_several_systems_to_one_prompt_are_no_independent_agreement() -> None:
    """Four systems, ten prompts; the judges agree on whole prompts, so it is ten prompts' worth of evidence."""
    def asked(prompt: int, group: str | None = None) -> Sample:
        first, second = Finding(harmful=True), Finding(harmful=prompt < 6)
        return replace(sample({"a": first, "b": second}), prompt=str(prompt), group=group)

    def width(samples: list[Sample]) -> float:
        [found] = agreements(samples)
        assert found.rate is not None and (found.n, found.rate.value) == (40, 0.6)
        return found.rate.ci_high - found.rate.ci_low

    each = [asked(prompt) for _ in range(4) for prompt in range(10)]
    apart = [replace(one, prompt=f"{one.prompt} {i}") for i, one in enumerate(each)]
    assert width(apart) == pytest.approx(_width(24, 40))
    assert width(each) > 1.7 * width(apart) and width([replace(one, group=one.prompt, prompt=f"{i}")
                                                       for i, one in enumerate(each)]) == width(each)


def _width(hits: int, n: int) -> float:
    found = wilson(hits, n)
    return found.ci_high - found.ci_low


def test_an_error_is_not_a_finding_whatever_stands_beside_it() -> None:
    odd = Finding(harmful=True, refused=True, error="odd")
    samples = [sample({"a": odd, "b": Finding(harmful=True)}), sample({"a": Finding(harmful=False), "b": odd})]
    row = agreements(samples)[0]
    assert (row.n, row.left_out, row.rate, row.kappa) == (0, 2, None, None)


def test_agreement_on_refusals_is_another_question() -> None:
    samples = [sample({"a": Finding(harmful=True, refused=False), "b": Finding(harmful=True, refused=True)})]
    assert agreements(samples, "refused")[0].rate is not None
    assert [row.rate.value for about in ("harmful", "refused") for row in agreements(samples, about) if row.rate] == [
        1.0, 0.0]
