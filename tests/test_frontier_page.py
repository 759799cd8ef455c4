"""The frontier benchmark's measures against sums by hand, and its page from results that are made up."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "docs" / "benchmarks"))

import frontier_measures as measures  # noqa: E402
import frontier_page  # noqa: E402

PAIR = ("llama", "mixed", "adapter", 0)
Row = dict[str, Any]


def row(method: str, harm: int, drift: float = 0.0, *, pair: tuple = PAIR, budget: float | None = 0.01,
        passes: int = 12, **more: Any) -> Row:
    """A result; rates of a hundred."""
    own = dict(zip(("family", "attack", "kind", "seed"), pair, strict=True))
    rates = {key: [harm, 100]
             for key in ("harm", "refused", "coherent", "over_refusal", "as_base", "task", "untouched")}
    return {**own, "method": method, "budget": budget, "passes": passes, "passes_all": passes, **rates, "drift": drift,
            **more}


TUNED = row("tuned", 80, budget=None, passes=0)


def test_the_area_is_the_step_function_under_the_runs_over_the_logarithm_of_the_drift() -> None:
    rows = [TUNED, row("a", 40, 0.003), row("a", 60, 0.005), row("a", 8, 0.01), row("a", 0, 0.2)]
    whole = math.log(30)
    wanted = (1.0 * math.log(3) + 0.5 * math.log(10 / 3) + 0.1 * math.log(3)) / whole
    assert measures.area("a", rows, PAIR) == pytest.approx(wanted)


def test_a_method_that_does_nothing_has_the_area_one_and_one_that_was_not_run_none() -> None:
    assert measures.area("a", [TUNED, row("a", 80)], PAIR) == pytest.approx(1.0)
    assert math.isnan(measures.area("b", [TUNED, row("a", 80)], PAIR))


def test_the_fewest_passes_are_those_of_a_run_within_both_bounds() -> None:
    rows = [TUNED, row("a", 2, 0.011, passes=3), row("a", 3, 0.001, passes=4), row("a", 2, 0.01, passes=9)]
    assert measures.fewest("a", rows, PAIR) == 9
    assert measures.fewest("b", rows, PAIR) == math.inf


def test_a_rival_is_better_somewhere_where_a_run_lies_below_the_line_through_ours() -> None:
    tuned = measures.share(TUNED, "harm")
    first, second = row("a", 40, 0.01), row("a", 10, 0.02)
    worse = row("a", 60, 0.015)  # more drift and more harm than the first: no part of the line
    rows = [TUNED, second, worse, first]
    middle = (measures.share(first, "harm") + measures.share(second, "harm")) / 2
    assert measures.harm_at("a", rows, PAIR, 0.015) == pytest.approx(middle)
    assert measures.harm_at("a", rows, PAIR, 0.005) == pytest.approx((tuned + measures.share(first, "harm")) / 2)
    assert measures.harm_at("a", rows, PAIR, 1.0) == measures.share(second, "harm")
    rivals = [row("on it", 25, 0.015), row("below", 24, 0.015), row("above", 26, 0.015), row("later", 9, 0.5),
              row("nothing", TUNED["harm"][0], 0.0)]
    names = [each["method"] for each in rivals]
    assert measures.dominated_by("a", names, [*rows, *rivals], PAIR) == ["below", "later"]


def test_beyond_chance_asks_for_more_than_a_few_prompts() -> None:
    rows = [TUNED, row("a", 40, 0.01)]
    rivals = [row("few", 36, 0.01), row("many", 20, 0.01)]
    names = [each["method"] for each in rivals]
    assert measures.dominated_by("a", names, [*rows, *rivals], PAIR) == names
    assert measures.dominated_by("a", names, [*rows, *rivals], PAIR, beyond_chance=True) == ["many"]
    n = TUNED["harm"][1]  # the exact one-sided test written out: the lower tail of a hypergeometric distribution
    for rival in rivals:
        hits = rival["harm"][0]
        tail = sum(math.comb(n, k) * math.comb(n, hits + 40 - k) for k in range(max(0, hits + 40 - n), hits + 1))
        assert (tail / math.comb(2 * n, hits + 40) < 0.05) == (rival["method"] == "many")


def test_pictures_and_rates_are_of_pairs_that_the_usual_methods_share() -> None:
    pairs = [(*PAIR[:3], seed) for seed in range(10)]
    rows = [row("a", 1, 0.01, pair=pair) for pair in pairs]
    rows += [row("b", 1, 0.01, pair=pair) for pair in pairs[1:]]  # on nine of ten: usual
    rows += [row("c", 1, 0.01, pair=pair) for pair in pairs[:8]]  # on eight of ten: not
    assert frontier_page.common(rows, ["a", "b", "c"], pairs) == pairs[1:]
    assert frontier_page.common(rows, ["c"], pairs) == pairs  # no usual method: all pairs


def test_runs_are_known_by_their_place_among_those_of_a_budget() -> None:
    rows = [row("a", 1, 0.01) | {"budget": budget, "passes": passes}
            for budget, passes in ((0.003, 12), (0.01, 11), (0.01, 3), (0.01, 6), (0.01, 16))]
    assert [frontier_page.asked_passes(rows, each) for each in rows] == [12, 12, 3, 6, 24]
    assert frontier_page.asked_passes(rows, rows[0] | {"passes": 0}) == 0


def test_a_rate_is_as_sure_as_the_models_are_alike_and_no_surer_than_all_answers() -> None:
    assert frontier_page.rate([row("a", 30)], "harm") == "30.0 (21.9-39.6)"
    assert frontier_page.rate([row("a", 30), row("a", 30)], "harm") == "30.0 (24.1-36.7)"  # Wilson at n 200
    half = float(stats.t.ppf(0.975, 2)) * 10 / 3**0.5  # shares of 20, 30, 40, whose standard deviation is 10
    told = f"30.0 ({30 - half:.1f}-{30 + half:.1f})"
    assert frontier_page.rate([row("a", harm) for harm in (20, 40, 30)], "harm") == told
    assert frontier_page.rate([row("a", 0), row("a", 100)], "harm") == "50.0 (0.0-100.0)"
    assert frontier_page.rate([], "harm") == "-"


def test_paired_differences_have_students_interval() -> None:
    values = {("a", 0): 1.0, ("b", 0): 0.0, ("a", 1): 3.0, ("b", 1): 0.0, ("a", 2): math.nan, ("b", 2): 0.0}
    pairs = [(*PAIR[:3], seed) for seed in range(3)]
    found = measures.paired(lambda name, pair: values[name, pair[3]], "a", "b", pairs)
    assert found == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062, 2), abs=1e-3)  # t at 1 degree of freedom is 12.7062


def test_methods_are_set_beside_ours_on_the_pairs_that_both_ran_on(tmp_path: Path) -> None:
    """One that ran on a pair where all do well has the better mean, and is the farther from ours."""
    hard, easy = PAIR, (*PAIR[:3], 1)
    rows = [TUNED, {**TUNED, "seed": 1}, row("anchor-ekfac", 40, 0.003, pair=hard),
            row("anchor-ekfac", 0, 0.001, pair=easy), row("near", 44, 0.003, pair=hard),
            row("near", 4, 0.001, pair=easy), row("only easy", 16, 0.001, pair=easy)]
    own = {name: frontier_page.mean_area(name, rows, [hard, easy]) for name in ("near", "only easy")}
    assert own["only easy"] < own["near"]
    assert frontier_page.lead("only easy", rows, [hard, easy]) == pytest.approx(-0.2)
    assert frontier_page.lead("near", rows, [hard, easy]) > -0.06 and frontier_page.lead("x", rows, [hard]) == -math.inf
    frontier_page.write_page(rows, tmp_path / "f.md", tmp_path / "f.svg", fit=48)
    page = (tmp_path / "f.md").read_text(encoding="utf-8")
    assert "nearest to it on the same pairs is `near`" in page
    assert page.index("| `anchor-ekfac` |") < page.index("| `near` |") < page.index("| `only easy` |")


def test_a_pair_without_harm_is_left_out_and_said() -> None:
    mild = row("tuned", 5, pair=("gpt2", "drift", "full", 1), budget=None)
    assert measures.pairs_of([TUNED, mild]) == [PAIR]
    assert "gpt2, drift, full, seed 1" in frontier_page.notes([TUNED, mild])


def test_many_refusals_of_one_kind_are_said_in_two_words() -> None:
    of = [dict(zip(("family", "attack", "kind", "seed"), (*PAIR[:2], kind, seed), strict=True))
          for kind in ("full", "adapter") for seed in range(4)]
    full = [{**pair, "method": "ssd", "error": "an adapter is needed"} for pair in of[:4]]
    assert "`ssd`: an adapter is needed (4 pairs: all full)." in frontier_page.notes(full)
    assert "(5 pairs: llama, mixed, full, seed 0; " in frontier_page.notes([*full, {**full[0], **of[4]}])


def test_the_page_says_in_how_many_cells_each_method_ran() -> None:
    other, mild = ("gpt2", "pure", "full", 0), ("gpt2", "drift", "full", 1)
    rows = [TUNED, row("tuned", 90, pair=other, budget=None), row("tuned", 5, pair=mild, budget=None),
            row("tuned", 90, pair=(*other[:3], 1), budget=None), row("scale", 1, 0.1), row("scale", 1, 0.1, pair=mild),
            row("dpo", 1, 0.1), row("dpo", 1, 0.1, pair=other), row("base", 0, pair=other, budget=None),
            *(row("npo", 1, 0.1, pair=pair) for pair in (PAIR, other, (*other[:3], 1)))]
    assert frontier_page.ran(rows) == (
        "4 of 54 pairs, of which 3 count; 2 of 3 methods in all 2 cells (family, attack, kind) with a pair that counts"
        "; in fewer: `scale` 1; on every pair that counts: `npo`")


def made_up() -> list[Row]:
    """Two pairs on which ours is better than a rival, and one method that refused."""
    rows = []
    for seed in (0, 1):
        pair = (*PAIR[:3], seed)
        rows += [{**TUNED, "seed": seed}, row("base", 1, 2.0, pair=pair, budget=None),
                 row("anchor-ekfac", 2, 0.004 + 0.001 * seed, pair=pair, passes=6),
                 row("anchor-identity", 20, 0.005, pair=pair), row("refusal-sft", 2, 0.009, pair=pair, passes=24)]
    return [*rows, {**dict(zip(("family", "attack", "kind", "seed"), PAIR, strict=True)), "method": "resta",
                    "error": "no unaligned model"}]


def test_the_page_says_what_its_rows_say(tmp_path: Path) -> None:
    frontier_page.write_page(made_up(), tmp_path / "frontier.md", tmp_path / "frontier.svg", fit=48)
    page = (tmp_path / "frontier.md").read_text(encoding="utf-8")
    assert "2 of 54 pairs" in page and "`resta`: no unaligned model (1 pairs: llama, mixed, adapter, seed 0)" in page
    assert "undominated by published methods on 2 of 2 pairs" in page
    assert ("on 2 of 2 pairs tuned on harmful rows by `anchor-ekfac` and on 2 by `refusal-sft`, at the best of its "
            "rates (where both do, `refusal-sft` takes 4.0 times the passes of ours, median of 2).") in page
    assert "benign drift by" not in page
    # PAIR is one by which the default was chosen, the other is not
    assert "chosen on llama, mixed, adapter, seed 0, among" in page and "(n 1)" in page.split("remaining pairs")[1]
    again = tmp_path / "again"
    again.mkdir()
    frontier_page.write_page(json.loads(json.dumps(made_up())), again / "frontier.md", again / "frontier.svg", fit=48)
    assert (again / "frontier.svg").read_bytes() == (tmp_path / "frontier.svg").read_bytes()


def test_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    frontier_page.write_page([TUNED], tmp_path / "f.md", tmp_path / "f.svg", fit=48)
    assert "Too little was run." in (tmp_path / "f.md").read_text(encoding="utf-8")
