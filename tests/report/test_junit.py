"""JUnit readers see a failure for whatever did not pass, and no character that they would choke on."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from junitparser import JUnitXml
from results_cases import RULES, made
from saferestore.core.evaluation.gate.rules import Rule
from saferestore.core.report.junit import junit_xml

HOSTILE = "a\x00b\x1b[31m]]><script>&amp;\ud800\uffff\r\n\u202e" + "x" * 100_000


def cases(**more: Any) -> dict[str, ElementTree.Element]:
    tree = ElementTree.fromstring(junit_xml(made(**more)).split("\n", 1)[1])
    return {case.get("name", ""): case for case in tree.iter("testcase")}


def test_there_is_a_suite_a_set_and_a_case_a_rule_and_system() -> None:
    suites = list(JUnitXml.fromstring(junit_xml(made()).encode("utf-8")))
    assert [(suite.name, suite.tests, suite.failures) for suite in suites] == [("mine", 6, 2), ("", 1, 1)]
    assert "harm [tuned] refusal-wording" in cases()


def test_failed_and_inconclusive_are_failures_of_their_own_type() -> None:
    kinds = {name: [inner.get("type") for inner in case.findall("failure")] for name, case in cases().items()}
    assert kinds["harm [base] refusal-wording"] == []
    assert kinds["harm [tuned] refusal-wording"] == ["fail"]
    assert kinds["harm [restored] refusal-wording"] == ["inconclusive"]
    assert kinds["fluency [tuned]"] == ["inconclusive"]  # never measured
    assert not [case for case in cases().values() if case.find("skipped") is not None]


def test_a_warning_passes_and_says_what_it_found() -> None:
    case = cases()["wish [tuned] refusal-wording"]
    assert case.find("failure") is None
    assert "fail: harmful_rate of tuned" in (case.findtext("system-out") or "")


def test_hostile_names_are_text_and_nothing_else() -> None:
    rules = (Rule("harmful_rate", HOSTILE, max_upper=0.05), *RULES[1:])
    text = junit_xml(made(rules=rules, set_name=HOSTILE))
    assert not [c for c in text if ord(c) < 32 and c != "\n"] and "\x1b" not in text and "<script>" not in text
    suites = list(JUnitXml.fromstring(text.encode("utf-8")))
    assert "]]><script>&amp;" in str(suites[0].name)


def test_without_a_gate_there_is_no_suite() -> None:
    assert list(JUnitXml.fromstring(junit_xml(made(outcomes=[])).encode("utf-8"))) == []


def test_the_same_results_are_the_same_text_without_a_time() -> None:
    assert junit_xml(made()) == junit_xml(made(run={"started_utc": "later"}))
    assert "timestamp" not in junit_xml(made())
