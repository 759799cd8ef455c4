"""Fit and held-out parts: by hash, whole groups, whole categories, never empty."""

from __future__ import annotations

import random

import pytest
from saferestore.core.data.records import Message, Record
from saferestore.core.data.split import split
from saferestore.core.errors import UsageError


def rows(n: int, *, groups: int | None = None, categories: int | None = None) -> list[Record]:
    return [Record(str(i), (Message("user", f"prompt {i}"),), group=None if groups is None else f"g{i % groups}",
                   category=None if categories is None else f"c{i % categories}") for i in range(n)]


def ids(records: tuple[Record, ...]) -> set[str]:
    return {record.id for record in records}


def test_the_parts_are_disjoint_complete_and_of_the_size_asked() -> None:
    parts = split(rows(100), seed=0, held_out_fraction=0.33)
    assert len(parts.held_out) == 33
    assert ids(parts.fit) | ids(parts.held_out) == ids(tuple(rows(100)))
    assert len(parts.fit) == 67


def test_the_order_of_the_file_does_not_matter_and_the_seed_does() -> None:
    shuffled = random.Random(1).sample(rows(60), 60)
    assert ids(split(shuffled, seed=3).held_out) == ids(split(rows(60), seed=3).held_out)
    assert ids(split(rows(60), seed=4).held_out) != ids(split(rows(60), seed=3).held_out)


def test_each_part_keeps_the_order_of_the_set() -> None:
    numbers = [int(record.id) for record in split(rows(50), seed=0).fit]
    assert numbers == sorted(numbers)


def test_a_new_row_moves_few_others() -> None:
    before, after = split(rows(200), seed=0).held_out, split(rows(201), seed=0).held_out
    assert len(ids(before) ^ ids(after)) <= 2


def test_groups_stay_together() -> None:
    parts = split(rows(100, groups=10), seed=0)
    assert {r.group for r in parts.fit}.isdisjoint({r.group for r in parts.held_out})
    assert parts.by_group
    assert len(parts.held_out) == 40  # the fewest whole groups that hold at least 33 rows


def test_rows_are_split_where_one_group_holds_everything() -> None:
    parts = split(rows(10, groups=1), seed=0)
    assert not parts.by_group
    assert len(parts.held_out) == 4


def test_the_same_prompt_never_lies_on_both_sides() -> None:
    doubled = [Record(f"{i}-{copy}", (Message("user", f"prompt {i}"),)) for i in range(30) for copy in range(2)]
    parts = split(doubled, seed=0, by_group=False)
    assert {r.prompt for r in parts.fit}.isdisjoint({r.prompt for r in parts.held_out})


def test_named_categories_are_held_out_whole() -> None:
    parts = split(rows(100, categories=5), seed=0, hold_out_categories=("c1", "c3"))
    assert parts.categories == ("c1", "c3")
    assert {r.category for r in parts.fit} == {"c0", "c2", "c4"}
    assert sum(r.category in parts.categories for r in parts.held_out) == 40
    assert len(parts.held_out) == 60  # and a third of the other 60


def test_categories_are_chosen_by_seed_and_one_always_stays() -> None:
    chosen = {split(rows(100, categories=10), seed=seed, hold_out_categories=2).categories for seed in range(8)}
    assert all(len(names) == 2 for names in chosen)
    assert len(chosen) > 1
    assert len(split(rows(100, categories=2), seed=0, hold_out_categories=2).categories) == 1
    assert split(rows(100), seed=0, hold_out_categories=2).categories == ()


def test_two_rows_are_the_smallest_set() -> None:
    parts = split(rows(2), seed=0, held_out_fraction=0.9)
    assert (len(parts.fit), len(parts.held_out)) == (1, 1)


@pytest.mark.parametrize("records", [[], rows(1), rows(1) * 5])
def test_a_set_that_cannot_fill_both_parts_is_refused(records: list[Record]) -> None:
    with pytest.raises(UsageError, match="too few rows to split"):
        split(records, seed=0)


def test_an_unknown_category_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown category - c11") as error:
        split(rows(20, categories=2), seed=0, hold_out_categories=("c11",))
    assert error.value.hint == "did you mean c1?"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_outside_the_unit_interval_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(rows(9), seed=0, held_out_fraction=fraction)
