"""The gate as JUnit XML: a testsuite a set, a testcase a rule and system.

What is inconclusive is a failure of its own type: a reader that knows only passed and failed must not take it for
passed. A rule of severity `warning` passes and says what it found. There are no times, so the bytes are the same
whenever they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from junitparser import Failure, JUnitXml, TestCase, TestSuite

from . import rows

NAME = "saferestore eval"


def junit_xml(results: Mapping[str, Any]) -> str:
    """Return the document for the results of a run.

    Args:
        results: Valid results; without a gate the document has no testsuite.

    Returns:
        XML in which nothing of unknown origin can be more than text.
    """
    document = JUnitXml(NAME)
    suites: dict[str, list[TestCase]] = {}
    for outcome in results["gate"]["rules"]:
        suites.setdefault(outcome["set"], []).append(_case(outcome))
    for name, cases in suites.items():
        suite = TestSuite(clean(name))
        suite.add_testcases(cases)
        document.add_testsuite(suite)
    return "<?xml version='1.0' encoding='utf-8'?>\n" + document.tostring().decode("utf-8") + "\n"


def clean(text: str) -> str:
    """Return text that XML 1.0 can hold and a terminal does not obey, in one line."""
    return " ".join(rows.plain(text).split())


def _case(outcome: Mapping[str, Any]) -> TestCase:
    parts = (outcome["rule"], f"[{outcome['system']}]", outcome["judge"],
             "" if outcome["attack"] == "none" else outcome["attack"])
    case = TestCase(clean(" ".join(filter(None, parts))), classname=clean(f"{outcome['set']}.{outcome['metric']}"))
    text = clean(outcome["text"])
    if outcome["verdict"] == "pass" or outcome["severity"] == "warning":
        case.system_out = text
    else:
        failure = Failure(text, outcome["verdict"])
        failure.text = text
        case.result = [failure]
    return case
