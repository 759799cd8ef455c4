"""A baseline measured in another way is refused, and the first difference is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.gate.baseline import check_baseline, measured_in
from saferestore.core.evaluation.gate.known import Known
from saferestore.core.evaluation.gate.rules import Rule

KNOWN = Known(("restored",), {"mine": "harmful", "alike": "benign"}, ("refusal-wording", "harmbench"),
              has_baseline=True)
RULE = Rule("harmful_rate", judge="refusal-wording", max_increase=0.1)
RESULTS: dict[str, Any] = {
    "inputs": {"systems": {"restored": {"chat_template_sha256": "a" * 64}},
               "judges": {"refusal-wording": {"kind": "wording"}, "harmbench": {"kind": "rubric", "model": "m"}},
               "sets": [{"name": "mine", "role": "harmful", "sha256": "b" * 64},
                        {"name": "alike", "role": "benign", "sha256": "c" * 64}]},
    "settings": {"max_new_tokens": 64, "chat_template": "auto", "system_prompt": None, "batch_size": 8},
    "seed": 0, "metrics": [{"metric": "harmful_rate"}], "verdicts": [{"hits": {}}]}


def changed(path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(RESULTS)
    *parents, last = path.split("/")
    place: Any = made
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    return made


def test_a_baseline_made_in_the_same_way_is_taken() -> None:
    check_baseline(RESULTS, copy.deepcopy(RESULTS), [RULE], KNOWN, "old.json")
    check_baseline(RESULTS, changed("settings/batch_size", 4), [RULE], KNOWN, "old.json")


@pytest.mark.parametrize(("path", "value", "what"), [
    ("settings/max_new_tokens", 32, "max_new_tokens was 64, now 32"),
    ("settings/system_prompt", "Be kind.", "system_prompt was absent, now Be kind."),
    ("settings/limit", 20, "limit was absent, now 20"), ("seed", 1, "seed was 0, now 1"),
    ("inputs/systems/restored/chat_template_sha256", "d" * 64, "chat template of restored was aaa"),
    ("inputs/judges/refusal-wording", {"kind": "other"}, "judge refusal-wording was {'kind': 'wording'}, now"),
    ("inputs/sets/0/sha256", "e" * 64, "set mine was bbb")])
def test_the_first_difference_is_named(path: str, value: Any, what: str) -> None:
    with pytest.raises(UsageError, match=r"baseline made in another way - old\.json") as caught:
        check_baseline(RESULTS, changed(path, value), [RULE], KNOWN, "old.json")
    assert what in caught.value.what and "--write-baseline" in caught.value.hint
    assert caught.value.exit_code == 2


def test_what_no_rule_compares_may_differ() -> None:
    for path, value in (("inputs/judges/harmbench", {}), ("inputs/sets/1/sha256", "e" * 64)):
        check_baseline(RESULTS, changed(path, value), [RULE], KNOWN, "old.json")
    check_baseline({}, RESULTS, [Rule("harmful_rate", max_upper=0.1)], KNOWN, "old.json")


def test_without_a_judge_or_set_in_the_rule_all_are_compared() -> None:
    rule = Rule("harmful_rate", max_increase=0.1)
    with pytest.raises(UsageError, match="judge harmbench"):
        check_baseline(RESULTS, changed("inputs/judges/harmbench", {}), [rule], KNOWN, "old.json")
    check_baseline(RESULTS, changed("inputs/sets/1/sha256", "e" * 64), [rule], KNOWN, "old.json")


def test_a_set_or_judge_that_the_baseline_lacks_is_a_difference() -> None:
    with pytest.raises(UsageError, match="set mine was absent"):
        check_baseline(changed("inputs/sets", []), RESULTS, [RULE], KNOWN, "old.json")
    with pytest.raises(UsageError, match="judge refusal-wording was absent"):
        check_baseline(changed("inputs/judges", {}), RESULTS, [RULE], KNOWN, "old.json")


def test_a_judging_model_of_one_name_is_another_where_its_files_are() -> None:
    """A plan has not read the model's weights, so it cannot tell."""
    rule = Rule("harmful_rate", judge="harmbench", max_increase=0.1)
    old, new = (changed("inputs/judges/harmbench", {"kind": "rubric", "model": "m", "files_sha256": digest * 64})
                for digest in "12")
    check_baseline(old, copy.deepcopy(old), [rule], KNOWN, "old.json")
    check_baseline(old, RESULTS, [rule], KNOWN, "old.json")
    with pytest.raises(UsageError, match="model of judge harmbench was 111"):
        check_baseline(old, new, [rule], KNOWN, "old.json")
    with pytest.raises(UsageError, match="model of judge harmbench was absent"):
        check_baseline(RESULTS, new, [rule], KNOWN, "old.json")


def test_an_attack_made_of_another_file_is_a_difference() -> None:
    old, new = ({**RESULTS, "inputs": {**RESULTS["inputs"], "attacks": {"suffix:a.txt": {"sha256": digest}}}}
                for digest in ("1" * 64, "2" * 64))
    for rule in (Rule("attack_success_rate", max_increase=0.1), Rule("coherence_rate", attack="suffix:a.txt",
                                                                     max_decrease=0.1)):
        with pytest.raises(UsageError, match=r"attack suffix:a\.txt was"):
            check_baseline(old, new, [rule], KNOWN, "old.json")
    check_baseline(old, new, [RULE], KNOWN, "old.json")


def test_other_numbers_of_shots_show_other_rows_before_a_prompt() -> None:
    new = changed("settings/shots", "0,4,8")
    with pytest.raises(UsageError, match="shots was 0,4, now 0,4,8"):
        check_baseline(changed("settings/shots", "0,4"), new, [Rule("task_accuracy@4", max_decrease=0.1)], KNOWN,
                       "old.json")
    check_baseline(changed("settings/shots", "0,4"), new, [RULE, Rule("task_accuracy", max_decrease=0.1)], KNOWN,
                   "old.json")


def test_a_system_that_the_baseline_lacks_is_refused_by_name() -> None:
    old = changed("inputs/systems", {"restore": {}})
    with pytest.raises(UsageError, match="system restored is not in the baseline") as caught:
        check_baseline(old, RESULTS, [RULE], KNOWN, "old.json")
    assert caught.value.hint == "did you mean restore?"


def test_what_was_measured_is_read_from_the_results() -> None:
    found = measured_in(RESULTS)
    assert (found.rows, found.verdicts) == (tuple(RESULTS["metrics"]), tuple(RESULTS["verdicts"]))
