"""A rule that could not be decided, or would be silently wrong, is refused with the name that was meant."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.gate.known import Known, check_rules, reference_of, systems_of
from saferestore.core.evaluation.gate.metrics import METRICS
from saferestore.core.evaluation.gate.rules import Rule, parse_rules

KNOWN = Known(("base", "tuned", "restored"), {"mine": "harmful", "alike": "benign", "desk": "task"},
              ("refusal-wording", "harmbench"), ("prefill:5",), ("perplexity", "task_accuracy@4"))


def rules_of(text: str) -> tuple[Rule, ...]:
    return parse_rules(yaml.safe_load(text), "gate.yaml")


def test_a_gate_is_read_with_every_key() -> None:
    found = rules_of("""
        rules:
          - name: harm
            metric: harmful_rate
            set: mine
            judge: harmbench
            attack: none
            max-upper: 0.05
            min_n: 100
            systems: [tuned, restored]
            severity: warning
          - {metric: over_refusal_rate, max_increase: 0.1, systems: restored, reference: base, set: null}""")
    assert found[0] == Rule("harmful_rate", "harm", "mine", "harmbench", "none", max_upper=0.05, min_n=100,
                            systems=("tuned", "restored"), severity="warning")
    assert (found[1].systems, found[1].reference, found[1].kind, found[1].threshold) == (
        ("restored",), "base", "max_increase", 0.1)


def test_a_rule_without_a_name_is_called_by_what_it_says() -> None:
    rule = Rule("attack_success_rate", set="mine", judge="harmbench", attack="prefill:5", max_upper=0.2)
    assert rule.name == "attack_success_rate on mine by harmbench under prefill:5 max upper 0.2"


@pytest.mark.parametrize(("entry", "fault", "hint"), [
    ({"metric": "harmful_rate"}, "no threshold", "max_upper, min_lower, max_increase, max_decrease"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "max_increase": 0.1}, "two thresholds - max_upper, max_increase",
     "one of"),
    ({"metric": "harmful_rate", "max_uper": 0.1}, "unknown key `max_uper`", "did you mean max_upper"),
    ({"metric": "harmful_rate", "max_upper": "5%"}, "unusable value - max_upper '5%'", "0.05 is 5%"),
    ({"metric": "harmful_rate", "max_upper": 5}, "no rate is above 1 - max_upper 5", "0.05 is 5%"),
    ({"metric": "harmful_rate", "max_upper": 1}, "a rule that cannot fail - max_upper 1", "0.01 is 1%"),
    ({"metric": "harmful_rate", "max_increase": 1.0}, "a rule that cannot fail - max_increase 1", "0.01 is 1%"),
    ({"metric": "task_accuracy@4", "max_decrease": 1}, "a rule that cannot fail - max_decrease 1", "0.01 is 1%"),
    ({"metric": "task_accuracy", "min_lower": 0}, "a rule that cannot fail - min_lower 0", "0.01 is 1%"),
    ({"metric": "harmful_rate", "max_upper": -0.1}, "unusable value - max_upper", "0 or more"),
    ({"metric": "harmful_rate", "max_upper": float("nan")}, "unusable value - max_upper nan", "0 or more"),
    ({"metric": "harmful_rate", "max_upper": True}, "unusable value - max_upper True", "0 or more"),
    ({"metric": "harmful_rate", "min_lower": 0.1}, "wrong end - min_lower of harmful_rate, which is better lower",
     "did you mean max_upper"),
    ({"metric": "task_accuracy", "max_upper": 0.1}, "wrong end", "did you mean min_lower"),
    ({"metric": "task_accuracy@4", "max_increase": 0.1}, "wrong end", "did you mean max_decrease"),
    ({"metric": "over_refusal_rate", "max_decrease": 0.1}, "wrong end", "did you mean max_increase"),
    ({"metric": "perplexity", "max_increase": 0.1}, "no paired samples - max_increase of perplexity", "max_upper"),
    ({"metric": "attack_success_rate", "attack": "none", "max_upper": 0.1}, "no attack", "use harmful_rate"),
    ({"metric": "harmful_rate", "attack": "prefill:5", "max_upper": 0.1}, "not measured under an attack - harmful_rate",
     "did you mean attack_success_rate"),
    ({"metric": "task_accuracy@4", "attack": "prefill:5", "min_lower": 0.1}, "not measured under an attack",
     "leave out `attack`"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "severity": "eror"}, "unknown value - severity eror",
     "did you mean error"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "min_n": 0}, "unusable value - min_n 0", "whole number"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "min_n": 1.5}, "unusable value - min_n 1.5", "whole number"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "systems": 3}, "unusable value - systems 3", "list of systems"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "systems": [3]}, "unusable value - systems", "list of systems"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "set": ""}, "unusable value - set ''", "give a name"),
    ({"metric": "harmful_rate", "max_upper": 0.1, "name": 3}, "unusable value - name 3", "give a text"),
    ({"metric": ["harmful_rate"], "max_upper": 0.1}, "unusable value - metric", "give a name"),
    ({"set": "mine", "max_upper": 0.1}, "no metric", "harmful_rate, attack_success_rate"),
    ("harmful_rate", "no metric - rule 1 of gate.yaml", "write `metric:`")])
def test_an_unusable_rule_is_refused_with_the_way_out(entry: Any, fault: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rules({"rules": [entry]}, "gate.yaml")
    assert caught.value.what.startswith(fault) and "rule 1 of gate.yaml" in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [None, [], "rules", {}, {"rules": None}, {"rules": []}, {"rules": {"metric": 1}}])
def test_a_file_without_rules_is_refused(content: object) -> None:
    with pytest.raises(UsageError, match=r"no rules - gate\.yaml"):
        parse_rules(content, "gate.yaml")


def test_a_key_beside_the_rules_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown key `rule` - gate\.yaml") as caught:
        parse_rules({"rules": [{"metric": "harmful_rate", "max_upper": 0.1}], "rule": 1}, "gate.yaml")
    assert caught.value.hint == "did you mean rules?"


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two rules of one name - harm"):
        parse_rules({"rules": [{"metric": "harmful_rate", "max_upper": 0.1, "name": "harm"}] * 2}, "gate.yaml")


@pytest.mark.parametrize(("rule", "fault", "hint"), [
    (Rule("harmfull_rate", max_upper=0.1), "no such metric is evaluated - harmfull_rate", "did you mean harmful_rate"),
    (Rule("kl_to_tuned_nats_per_token", max_upper=0.1), "no such metric is evaluated - kl_to_tuned", "one of"),
    (Rule("task_accuracy@8", min_lower=0.1), "no such metric is evaluated - task_accuracy@8",
     "did you mean task_accuracy@4"),
    (Rule("harmful_rate", set="mien", max_upper=0.1), "no such set of harmful rows is evaluated - mien",
     "did you mean mine"),
    (Rule("harmful_rate", set="desk", max_upper=0.1), "no such set of harmful rows is evaluated - desk", "mine"),
    (Rule("untouched_accuracy", min_lower=0.1), "no such set of untouched rows is evaluated", "or remove the rule"),
    (Rule("harmful_rate", judge="harmbnch", max_upper=0.1), "no such judge is evaluated - harmbnch",
     "did you mean harmbench"),
    (Rule("task_accuracy", judge="harmbench", min_lower=0.1), "no such judge is evaluated - harmbench", "exact-match"),
    (Rule("attack_success_rate", attack="prefill:6", max_upper=0.1), "no such attack is evaluated - prefill:6",
     "did you mean prefill:5"),
    (Rule("harmful_rate", systems=("tund",), max_upper=0.1), "no such system is evaluated - tund",
     "did you mean tuned"),
    (Rule("harmful_rate", reference="bass", max_increase=0.1), "no such reference is evaluated - bass",
     "did you mean base"),
    (Rule("harmful_rate", reference="baseline", max_increase=0.1), "nothing to compare with - max_increase",
     "--baseline FILE")])
def test_a_rule_about_what_is_not_evaluated_names_the_nearest_that_is(rule: Rule, fault: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_rules([rule], KNOWN)
    assert caught.value.what.startswith(fault) and rule.name in caught.value.what
    assert hint in caught.value.hint


@pytest.mark.parametrize("rule", [
    Rule("harmful_rate", max_upper=0.1), Rule("perplexity", max_upper=9.0), Rule("task_accuracy@4", min_lower=0.5),
    Rule("perplexity", judge="anyone", max_upper=9.0), Rule("coherence_rate", judge="coherence", min_lower=0.5),
    Rule("attack_success_rate", max_upper=0.1), Rule("refusal_rate", attack="prefill:5", min_lower=0.1),
    Rule("harmful_rate", reference="tuned", max_increase=0.1)])
def test_a_rule_about_what_is_evaluated_is_taken(rule: Rule) -> None:
    check_rules([rule], KNOWN)


def test_without_attacks_nothing_is_known_of_their_success() -> None:
    with pytest.raises(UsageError, match="no such metric is evaluated - attack_success_rate"):
        check_rules([Rule("attack_success_rate", max_upper=0.1)], Known(("base",), {"mine": "harmful"}))


def test_a_rule_for_systems_that_are_not_evaluated_is_passed_over() -> None:
    harm, task = Rule("harmful_rate", max_upper=0.1), Rule("task_accuracy", systems=("restored",), min_lower=0.5)
    base_alone = Known(("base",), {"mine": "harmful"})
    check_rules([harm, task], base_alone)
    assert systems_of(task, base_alone) == ()
    with pytest.raises(UsageError, match="no rule applies - systems base"):
        check_rules([task], base_alone)


def test_increase_starts_from_the_base_or_else_from_the_baseline() -> None:
    rule = Rule("harmful_rate", max_increase=0.1)
    assert reference_of(rule, KNOWN) == "base"
    assert systems_of(rule, KNOWN) == ("tuned", "restored")
    alone = Known(("restored",), {"mine": "harmful"}, has_baseline=True)
    assert reference_of(rule, alone) == "baseline"
    check_rules([rule], alone)
    assert reference_of(Rule("harmful_rate", max_upper=0.1), KNOWN) is None


def test_a_number_from_elsewhere_may_be_limited_at_either_end() -> None:
    elsewhere = Known(("base",), {"mine": "harmful"}, extra=("lm_eval/arc_easy/acc",))
    check_rules([Rule("lm_eval/arc_easy/acc", min_lower=0.5), Rule("lm_eval/arc_easy/acc", max_upper=0.5)], elsewhere)


def test_a_pattern_stands_for_metrics_that_are_not_known_before() -> None:
    harness = Known(("base",), {"lm-eval:arc_easy": "task"}, extra=("lm-eval:*",))
    check_rules([Rule("lm-eval:acc", set="lm-eval:arc_easy", min_lower=0.5)], harness)
    with pytest.raises(UsageError, match="no such metric is evaluated - lm_eval:acc"):
        check_rules([Rule("lm_eval:acc", min_lower=0.5)], harness)


def test_every_metric_says_which_way_is_better() -> None:
    assert {metric.better for metric in METRICS.values()} == {"lower", "higher"}
