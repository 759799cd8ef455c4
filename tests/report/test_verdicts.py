"""Exit codes are decided by two tables."""

from __future__ import annotations

import pytest
from saferestore.core.report.verdicts import EXIT_CODES, PRECEDENCE, VERDICTS, WRITTEN, strongest


@pytest.mark.parametrize(("verdict", "code"), [("restored", 0), ("partial", 4), ("unchanged", 3), ("refused", 1)])
def test_each_verdict_has_its_exit_code(verdict: str, code: int) -> None:
    assert VERDICTS[verdict] == code


@pytest.mark.parametrize(("codes", "expected"), [
    ((), 0), ((0,), 0), ((0, 4), 4), ((4, 3), 3), ((3, 5), 5), ((5, 2), 2), ((2, 1), 1), ((1, 130), 130),
    ((130, 1, 2, 5, 3, 4, 0), 130), ((0, 4, 3, 5, 2, 1), 1), ((4, 0, 4), 4), ((7,), 1), ((7, 130), 130)])
def test_the_strongest_code_wins_in_any_order(codes: tuple[int, ...], expected: int) -> None:
    assert strongest(codes) == strongest(reversed(codes)) == expected


def test_every_code_is_explained_and_ranked() -> None:
    assert set(EXIT_CODES) == set(PRECEDENCE) == {*VERDICTS.values(), 2, 5, 130}


def test_nothing_is_written_where_a_run_failed() -> None:
    assert sorted(WRITTEN) == sorted(VERDICTS[v] for v in ("restored", "partial", "unchanged"))
