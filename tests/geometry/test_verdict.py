"""What is said of a comparison, by each way it can come out."""

from __future__ import annotations

import numpy as np
import pytest
from saferestore.core.geometry.similarity import Alike
from saferestore.core.geometry.verdict import HEADLINE, WORDS, Finding, difference, find, overall, sentences


def alike(value: float, spread: float = 0.02, seed: int = 0) -> Alike:
    noise = np.random.default_rng(seed).normal(scale=spread, size=400)
    low, high = np.percentile(value + noise, [2.5, 97.5])
    return Alike(value, float(low), float(high), 40, 0, value + noise)


UNKNOWN = Alike(None, None, None, 40)


@pytest.mark.parametrize(("pair", "control", "outcome"), [
    (alike(0.9), alike(0.1, seed=1), "preserved"),
    (alike(0.2), alike(0.0, seed=1), "not_preserved"),
    (alike(0.9), alike(0.9, seed=1), "not_distinguishable"),
    (alike(0.9), alike(0.99, seed=1), "not_distinguishable"),
    (alike(0.45, 0.1), alike(0.0, seed=1), "not_preserved"),
    (alike(0.55, 0.1), alike(0.0, seed=1), "preserved"),
    (UNKNOWN, alike(0.1), "not_distinguishable"),
    (alike(0.9), UNKNOWN, "not_distinguishable")])
def test_a_measure_is_judged_against_its_control(pair: Alike, control: Alike, outcome: str) -> None:
    assert find("surface_pearson", pair, control).outcome == outcome


def test_what_is_the_same_depends_on_how_alike_a_model_is_to_itself() -> None:
    overlap = alike(0.2)
    assert find("eigenspace_overlap", overlap, alike(0.0, seed=1), itself=0.3).outcome == "preserved"
    assert find("eigenspace_overlap", overlap, alike(0.0, seed=1), itself=1.0).outcome == "not_preserved"


def test_shared_resamples_make_a_difference_sharper() -> None:
    pair, control = alike(0.6, 0.2), alike(0.5, 0.2)  # the same noise
    found = difference(pair, control)
    assert found.value == pytest.approx(0.1)
    assert found.ci_low == pytest.approx(0.1) and found.ci_high == pytest.approx(0.1)


@pytest.mark.parametrize(("outcomes", "whole"), [
    (("preserved", "preserved"), "preserved"),
    (("preserved", "not_distinguishable"), "not_distinguishable"),
    (("not_preserved", "not_distinguishable", "preserved"), "not_preserved")])
def test_the_weakest_finding_decides(outcomes: tuple[str, ...], whole: str) -> None:
    assert overall([Finding("surface_pearson", outcome, 0.5, UNKNOWN) for outcome in outcomes]) == whole


def test_the_verdict_is_told_in_plain_words_with_both_numbers() -> None:
    pair, control, task = ({name: alike(value, seed=i) for name in HEADLINE}
                           for i, value in enumerate((0.9, 0.1, 0.3)))
    task["change_pearson"] = UNKNOWN
    told = sentences([find(name, pair[name], control[name]) for name in HEADLINE], pair, control, task, "shuffled")
    assert told[0] == f"the geometry of the harmful loss is {WORDS['preserved']}"
    assert "0.90 (" in told[1] and "0.10 (" in told[1] and "shuffled" in told[1]
    assert told[-1] == "harmful rows are more alike than task rows by 3 of 4 measures, less by 0, undecided by 1"


def test_rows_that_are_less_alike_than_task_rows_are_counted_apart() -> None:
    pair, task = ({name: alike(value, seed=i) for name in HEADLINE} for i, value in enumerate((0.3, 0.9)))
    task["change_pearson"], task["surface_pearson"] = alike(0.1, seed=2), alike(0.3, seed=3)
    told = sentences([find(HEADLINE[0], pair[HEADLINE[0]], task[HEADLINE[0]])], pair, pair, task, "shuffled")
    assert told[-1] == "harmful rows are more alike than task rows by 1 of 4 measures, less by 2, undecided by 1"


def test_what_the_base_has_with_itself_is_told_where_it_is_below_one() -> None:
    value, space = alike(0.2, seed=1), "eigenspace_overlap"
    told = sentences([find(space, value, value, 0.4)], dict.fromkeys(HEADLINE, value), {space: value},
                     dict.fromkeys(HEADLINE, value), "shuffled")
    assert "with a shuffled one, 0.40 of the base with itself: not distinguishable from the control" in told[1]
