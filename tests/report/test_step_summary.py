"""The step summary fits, starts with the verdict, and can be made to say nothing by a name."""

from __future__ import annotations

import re

import pytest
from results_cases import RULES, made
from saferestore.core.evaluation.gate.rules import Rule
from saferestore.core.report.step_summary import LARGEST, annotation_lines, summary

HOSTILE = "x|y<img src=x onerror=1>\n### new\r\n::error::no\x1b[2J`![a](b)"


def test_the_verdict_comes_first() -> None:
    assert summary(made()).splitlines()[0] == "### saferestore eval: gate failed"
    assert summary(made(outcomes=[])).splitlines()[:3] == ["### saferestore eval: no gate", "", "No rules were given."]
    assert "Rules: 3 fail, 3 inconclusive, 1 pass." in summary(made())
    assert "(advisory: the exit code is 0)" in summary(made(mode="advisory"))


def test_what_failed_stands_above_what_passed() -> None:
    verdicts = re.findall(r"^\| (fail|inconclusive|pass)\b", summary(made()), re.MULTILINE)
    assert verdicts == sorted(verdicts, key=["fail", "inconclusive", "pass"].index)
    assert len(verdicts) == 7


def test_every_table_has_cells_for_each_of_its_columns() -> None:
    blocks = [block.splitlines() for block in summary(made()).split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1


def test_the_agreement_of_judges_is_a_table() -> None:
    row = {"first": "a", "second": "b|c", "about": "harmful", "n": 7, "left_out": 2, "kappa": None, "agreement": 0.5,
           "ci_low": 0.2, "ci_high": 0.8}
    assert r"| a | b\|c | harmful | 7 | 2 | 0.5 | - |" in summary(made(agreement=[row]))


@pytest.mark.parametrize(("judges", "said"), [
    (("refusal-wording", "harmbench=/m"), "Rates by refusal-wording come from the wording of answers: a smoke test."),
    (("refusal-substrings-gcg",), "Rates by refusal-substrings-gcg come from the wording of answers: a smoke test."),
    (("harmbench=/m",), "p by the exact McNemar test.")])
def test_judges_by_wording_are_called_a_smoke_test_and_no_others(judges: tuple[str, ...], said: str) -> None:
    found = made()
    found["inputs"]["judges"] = dict.fromkeys(judges, {"kind": "answer"})
    assert summary(found).endswith(f"{said}\n")


def test_what_the_model_said_is_not_in_it() -> None:
    assert "own words" not in summary(made()) and "prompt 1" not in summary(made())


@pytest.mark.parametrize("where", ["rule", "set", "warning"])
def test_a_hostile_name_is_shown_as_it_is(where: str) -> None:
    made_of = {"rule": {"rules": (Rule("harmful_rate", HOSTILE, max_upper=0.05), *RULES[1:])},
               "set": {"set_name": HOSTILE}, "warning": {"warnings": (("W_X", HOSTILE),)}}[where]
    text = summary(made(**made_of))
    assert text.count("\n### ") == 0 and "<img" not in text and "\x1b" not in text
    assert not re.search(r"^::", text, re.MULTILINE) and "![a](" not in text
    assert r"x\|y&lt;img" in text


def test_it_fits_whatever_comes() -> None:
    huge = Rule("harmful_rate", "y" * 2_000_000, max_upper=0.05)
    assert len(summary(made(rules=(huge, *RULES[1:]))).encode()) < 20_000
    rules = tuple(Rule("harmful_rate", f"{i} " + "é|<&" * 300, max_upper=0.05) for i in range(3000))
    text = summary(made(rules=rules, n=3))
    assert LARGEST - 3000 < len(text.encode("utf-8")) < LARGEST
    assert re.search(r"\d+ more lines did not fit; all numbers are in results.json\.\n$", text)


def test_annotations_name_what_did_not_pass() -> None:
    lines = annotation_lines(made())
    assert lines[0].startswith("::error title=fail%3A harm [tuned]::fail: harmful_rate of tuned on mine")
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::warning", "::error", "::error",
                                                      "::warning"]
    assert not [line for line in lines if "[base]" in line and line.startswith("::error")]


def test_a_gate_that_advises_gives_no_errors() -> None:
    assert {line.split(" ")[0] for line in annotation_lines(made(mode="advisory"))} == {"::warning"}


def test_no_name_can_start_a_workflow_command_of_its_own() -> None:
    rules = (Rule("harmful_rate", "100%, a:b\r\n::error::gone\x1b", max_upper=0.05),)
    for line in annotation_lines(made(rules=rules, set_name="s\n::stop-commands::x")):
        assert "\n" not in line and "\r" not in line and "\x1b" not in line
        assert re.fullmatch(r"::(error|warning) title=[^:,]*::.*", line)
        assert "100%25%2C a%3Ab%0A%0A%3A%3Aerror" in line
