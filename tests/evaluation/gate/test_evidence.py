"""What rules rest on: estimates, bounds that take every error for the worse, and how many samples are missing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from saferestore.core.evaluation.gate.evidence import paired_evidence, rate_evidence, row_evidence, score_size
from saferestore.core.evaluation.gate.paired import paired_difference
from saferestore.core.evaluation.intervals import wilson
from scipy.special import ndtri


def wilson_upper(rate: float, n: int) -> float:
    """Wilson's upper end by his formula, for a rate that need not be a count of n."""
    z = float(ndtri(0.975))
    middle, half = rate + z * z / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (middle + half) / (1 + z * z / n)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_fewest_samples_are_found_as_by_trying_every_number(limit: float, share: float) -> None:
    rate = share * limit
    tried = next(n for n in range(1, 200_000) if wilson_upper(rate, n) <= limit)
    assert score_size(rate, limit) == tried


@pytest.mark.parametrize(("rate", "limit"), [(0.05, 0.05), (0.2, 0.1), (0.0, 0.0)])
def test_no_number_of_samples_brings_a_bound_below_the_rate_itself(rate: float, limit: float) -> None:
    assert score_size(rate, limit) is None


@pytest.mark.parametrize("errors", [0, 1, 7])
@pytest.mark.parametrize("upper", [True, False])
def test_every_error_counts_against_the_system(errors: int, upper: bool) -> None:
    found = rate_evidence(30, 100, errors, 0.5, upper=upper)
    worst = wilson(30 + errors, 100 + errors).ci_high if upper else wilson(30, 100 + errors).ci_low
    assert (found.value, found.bound, found.n, found.errors) == (0.3, worst, 100, errors)


def test_a_lower_limit_needs_as_many_samples_as_an_upper_one_of_the_complement() -> None:
    assert (rate_evidence(95, 100, 0, 0.9, upper=False).needed == rate_evidence(5, 100, 0, 0.1, upper=True).needed
            == score_size(0.05, 0.1))


def test_answers_that_could_not_be_judged_give_no_value() -> None:
    found = rate_evidence(0, 0, 9, 0.5, upper=True)
    assert (found.value, found.bound, found.n, found.errors) == (None, None, 0, 9)
    assert found.reason == "none of 9 answers could be judged"


def mean_row(value: float | None, low: float | None, high: float | None, n: int, **more: Any) -> dict[str, Any]:
    return {"metric": "perplexity", "value": value, "ci_low": low, "ci_high": high, "n": n, **more}


def test_the_bound_of_a_mean_is_the_end_of_its_own_interval() -> None:
    found = row_evidence(mean_row(10.0, 9.0, 11.0, 50), 10.5, upper=True)
    assert (found.value, found.bound) == (10.0, 11.0)
    assert found.needed == 200  # half the width takes four times the rows
    assert row_evidence(mean_row(10.0, 9.0, 11.0, 50), 9.5, upper=False).bound == 9.0


@pytest.mark.parametrize("row", [mean_row(10.0, None, None, 1), mean_row(10.0, 9.0, 11.0, 50, errors=2)])
def test_a_mean_without_interval_or_with_missing_samples_has_no_bound(row: dict[str, Any]) -> None:
    found = row_evidence(row, 12.0, upper=True)
    assert (found.value, found.bound, found.needed) == (10.0, None, None)


def test_a_mean_beyond_its_limit_or_without_width_asks_for_no_samples() -> None:
    assert row_evidence(mean_row(13.0, 12.5, 14.0, 50), 12.0, upper=True).needed is None
    assert row_evidence(mean_row(10.0, 10.0, 10.0, 50), 12.0, upper=True).bound == 10.0


def test_what_was_not_measured_keeps_its_reason() -> None:
    found = row_evidence(mean_row(None, None, None, 0, reason="no task rows"), 12.0, upper=True)
    assert (found.value, found.reason) == (None, "no task rows")


def hits(text: str) -> dict[str, int | None]:
    return {str(i): {"1": 1, "0": 0, "?": None}[c] for i, c in enumerate(text)}


def test_paired_evidence_is_the_interval_of_the_shared_prompts() -> None:
    worse, better = hits("1110000000"), hits("0010000001")
    found = paired_evidence(worse, better, 0.5)
    assert found.value == pytest.approx(0.1)
    assert found.bound == paired_difference(2, 1, 10)[1]
    assert (found.n, found.errors) == (10, 0)


def test_a_pair_with_an_unknown_outcome_counts_against_the_system() -> None:
    found = paired_evidence(hits("1?000"), hits("100?0"), 0.5)
    assert (found.value, found.n, found.errors) == (0.0, 3, 2)
    assert found.bound == paired_difference(1, 0, 5)[1]  # unknown was 1 in the first, 0 in the second


def test_prompts_of_one_system_alone_are_not_compared() -> None:
    found = paired_evidence({"a": 1, "b": 0}, {"b": 0, "c": 1}, 0.5)
    assert (found.value, found.n) == (0.0, 1)
    assert paired_evidence({"a": 1}, {"c": 1}, 0.5).reason == "no prompt is common to both"
    assert paired_evidence({"a": None}, {"a": 1}, 0.5).reason == "none of 1 pairs could be judged"


def test_groups_ask_for_as_many_more_samples_as_their_design_effect() -> None:
    plain = rate_evidence(10, 200, 0, 0.1, upper=True)
    grouped = rate_evidence(10, 200, 0, 0.1, upper=True, design_effect=4.0)
    assert plain.needed is not None and grouped.needed == pytest.approx(4 * plain.needed, abs=4)
    assert grouped.bound == pytest.approx(wilson_upper(0.05, 50))
    assert row_evidence({"metric": "harmful_rate", "value": 0.05, "n": 200, "errors": 0, "design_effect": 4.0}, 0.1,
                        upper=True) == grouped


def test_pairs_of_one_group_count_as_fewer_pairs() -> None:
    """Ten groups of four prompts; the systems differ on all prompts of three groups."""
    first = {f"p{i}": int(i < 12) for i in range(40)}
    second, groups = dict.fromkeys(first, 0), {f"p{i}": i // 4 for i in range(40)}
    effect = (12 * 39 / 9 + 4 * 4) / (12 + 4)
    found = paired_evidence(first, second, 0.9, groups)
    assert found.value == 0.3 and found.n == 40
    assert found.bound == pytest.approx(paired_difference(12 / effect, 0, 40 / effect)[1])
    assert found.bound > (paired_evidence(first, second, 0.9).bound or 1) + 0.1
    alone, grouped = paired_evidence(first, second, 0.35), paired_evidence(first, second, 0.35, groups)
    assert grouped.needed is not None and alone.needed is not None and alone.needed > 100
    assert grouped.needed == pytest.approx(effect * alone.needed, abs=effect)
