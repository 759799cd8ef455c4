"""Figures read as they are: never nothing or all by rounding, never an unexplained gap."""

from __future__ import annotations

import pytest
from report_cases import rate, relearned, report, without_task
from saferestore.core.report import rows


@pytest.mark.parametrize(("fraction", "text"), [
    (0, "0"), (1, "100"), (0.5, "50"), (1 / 3, "33.3"), (0.0001, "<0.1"), (0.99999, ">99.9"), (0.0004, "<0.1"),
    (0.0006, "0.1"), (0.125, "12.5")])
def test_a_percentage_is_never_rounded_to_none_or_all(fraction: float, text: str) -> None:
    assert rows.percent(fraction) == text


def test_a_rate_shows_its_interval() -> None:
    assert rows.rate_text({**rate(1, 200), "ci_low": 0.0009, "ci_high": 0.0277}) == "0.5% (0.1-2.8)"
    assert rows.rate_text(None) == "-"


def test_a_cell_is_a_rate_a_number_or_a_dash() -> None:
    found = {"a_rate": rate(1, 2), "b_nats_per_token": 0.123456, "c_rate": None}
    assert [rows.cell_text(found, key) for key in (*found, "d_rate")] == ["50% (47-53)", "0.123", "-", "-"]


def test_every_gap_is_explained_once() -> None:
    assert rows.reasons(report()) == []
    assert rows.reasons(without_task()) == [("task accuracy", "no task rows were given")]


def test_the_sample_size_is_shown_where_it_is_one() -> None:
    made = report()
    assert rows.sample_size(made, "harmful_rate") == "128"
    assert rows.sample_size(made, "task_loss_nats_per_token") == ""
    made["after"]["harmful_rate"]["n"] = 127
    assert rows.sample_size(made, "harmful_rate") == "127/128"


def test_drift_shows_its_interval_where_there_is_one() -> None:
    drift = {"task_kl_nats_per_token": 0.00412, "ci_low_nats_per_token": 0.003, "ci_high_nats_per_token": 0.005}
    assert rows.drift_text(drift) == "0.00412 (0.003-0.005)"
    assert rows.drift_text({**drift, "ci_low_nats_per_token": None}) == "0.00412"
    assert rows.drift_text({"task_kl_nats_per_token": None}) == "-"


@pytest.mark.parametrize(("reason", "text"), [
    ("max_steps", "the largest number of steps is reached"), ("something new.", "something new")])
def test_what_ended_the_steps_is_said_in_words(reason: str, text: str) -> None:
    assert rows.stopped_text({"stopped_because": reason}) == text


@pytest.mark.parametrize(("base", "restored", "text"), [
    (18, 6, "after 6 updates (base: after 18 updates)"), (None, 4, "after 4 updates (base: not within 24 updates)"),
    (18, None, "not within 24 updates (base: after 18 updates)")])
def test_relearning_is_a_sentence_beside_the_bases_own(base: int | None, restored: int | None, text: str) -> None:
    made = report(relearning=relearned(base, restored))
    assert rows.relearning_text(made) == f"trained on 4 harmful rows, harm is back {text}"


def test_one_row_is_one_row_and_none_are_no_sentence() -> None:
    one = [{**row, "rows": 1} for row in relearned(2, 2)]
    assert (rows.relearning_text(report(relearning=one)) or "").startswith("trained on 1 harmful row, ")
    assert rows.relearning_text(report(relearning=[])) is None and rows.relearning_text(report()) is None


def test_a_comparison_is_a_sentence_with_its_p_value() -> None:
    [text] = rows.comparison_texts(report())
    assert text == ("harmful after vs base: of 128 prompts only the first is harmful on 1, only the second on 0 "
                    "(exact McNemar p = 1)")
    without = {key: value for key, value in report().items() if key != "comparisons"}
    assert rows.comparison_texts(without) == []


def test_a_comparison_says_what_differs_and_the_groups_that_its_p_value_is_of() -> None:
    harm = {"n": 128, "only_first": 0, "only_second": 126, "groups_first": 0, "groups_second": 52,
            "p_value": 2 * 0.5**52}
    broken = {**harm, "only_first": 3, "only_second": 0, "groups_first": 3, "groups_second": 0, "p_value": 0.25}
    found = report(comparisons={"harm_after_vs_tuned": harm, "incoherent_after_vs_base": broken})
    assert rows.comparison_texts(found) == [
        "harm after vs tuned: of 128 prompts only the first is harmful on 0, only the second on 126, "
        "by subject 0 and 52 (exact McNemar p = 4.44e-16)",
        "incoherent after vs base: of 128 prompts only the first is incoherent on 3, "
        "only the second on 0 (exact McNemar p = 0.25)"]


def test_modules_are_listed_by_what_they_moved() -> None:
    found = rows.top_modules(report(), 3)
    assert [module["update_share"] for module in found] == [0.3, 0.25, 0.2]


def test_judges_are_those_of_the_prompts_not_of_the_task() -> None:
    assert rows.judges(report()) == ["wording"]


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\r", "\x00", "\u202e", "\u200b", "\x9b"])
def test_characters_that_a_terminal_obeys_are_replaced(character: str) -> None:
    assert rows.plain(f"a{character}b\nü漢") == "a\ufffdb\nü漢"
