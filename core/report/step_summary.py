"""The results as Markdown for a CI step summary, and as the annotation lines that GitHub Actions reads.

No prompt and no answer is in it. Names come from users and files and are shown literally.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import rows
from .card import escaped

LARGEST = 1000 * 1024
"""GitHub refuses a step summary above 1024 KiB."""

CELL = 160  # characters; a name can be a line of a megabyte
TITLES = {"pass": "gate passed", "fail": "gate failed", "inconclusive": "gate inconclusive", "none": "no gate"}
LEVELS = {("fail", "error"): "error", ("inconclusive", "error"): "error", ("fail", "warning"): "warning",
          ("inconclusive", "warning"): "warning"}
"""(verdict, severity) -> level of an annotation; what passed has none."""

RULE_HEADER = ("verdict", "rule", "system", "set", "found", "limit", "n", "not judged", "more samples")
METRIC_HEADER = ("metric", "system", "set", "attack", "judge", "value (95%)", "n", "not judged")
PAIR_HEADER = ("metric", "set", "attack", "judge", "first", "second", "n", "only first", "only second", "p")
JUDGES_HEADER = ("judge", "beside", "about", "n", "not said by both", "agree", "kappa")


def summary(results: Mapping[str, Any]) -> str:
    """Return report.md: the verdict first, then rules, metrics, comparisons and warnings.

    Args:
        results: Valid results of a finished run; its `run` is not shown.

    Returns:
        Markdown that starts at `###`, below 1000 KiB; what does not fit is left out from the end and said so.
    """
    gate = results["gate"]
    advice = " (advisory: the exit code is 0)" if gate["mode"] == "advisory" else ""
    counts = ", ".join(f"{sum(each['verdict'] == name for each in gate['rules'])} {name}"
                       for name in ("fail", "inconclusive", "pass"))
    wording = rows.joined(rows.smoke_tests(results))
    smoke = f" Rates by {wording} come from the wording of answers: a smoke test." if wording else ""
    lines = [f"### saferestore eval: {TITLES[gate['verdict']]}", "",
             f"Rules: {counts}{advice}." if gate["rules"] else "No rules were given.", "",
             *_table(RULE_HEADER, map(_rule_cells, _worst_first(gate["rules"]))),
             *_table(METRIC_HEADER, map(_metric_cells, results["metrics"])),
             *_table(PAIR_HEADER, map(_pair_cells, results["comparisons"])),
             *_table(JUDGES_HEADER, map(_judges_cells, results["agreement"])),
             *(f"- {_cell(each['code'])}: {_cell(each['message'])}" for each in results["warnings"]), "",
             f"Rates with Wilson 95% intervals; p by the exact McNemar test.{smoke}"]
    return _fitted(lines)


def annotation_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each rule that did not pass, as GitHub Actions reads them from a log (either stream).

    Args:
        results: Valid results.

    Returns:
        `::error title=...::...` or `::warning ...`; only warnings where the gate advises.
    """
    gate, found = results["gate"], []
    for each in _worst_first(gate["rules"]):
        level = LEVELS.get((each["verdict"], "warning" if gate["mode"] == "advisory" else each["severity"]))
        if level:
            title = _escaped_property(f"{each['verdict']}: {each['rule']} [{each['system']}]")
            found.append(f"::{level} title={title}::{_escaped_data(each['text'])}")
    return found


def _worst_first(outcomes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = {name: place for place, name in enumerate(("fail", "inconclusive", "pass"))}
    return sorted(outcomes, key=lambda each: (order[each["verdict"]], each["severity"]))


def _rule_cells(outcome: Mapping[str, Any]) -> Iterator[str]:
    mark = " (warning)" if outcome["severity"] == "warning" else ""
    found = rows.number_text(outcome["value"]), rows.number_text(outcome["bound"])
    place = outcome["set"] + ("" if outcome["attack"] == "none" else f" under {outcome['attack']}")
    limit = f"{outcome['kind'].replace('_', ' ')} {outcome['threshold']:g}"
    more = "-" if outcome["more_samples"] is None else str(outcome["more_samples"])
    return map(_cell, (outcome["verdict"] + mark, outcome["rule"], outcome["system"], place,
                       f"{found[0]}, bound {found[1]}", limit, str(outcome["n"]), str(outcome["errors"]), more))


def _metric_cells(row: Mapping[str, Any]) -> Iterator[str]:
    k = f", worst of {row['k']}" if "k" in row else ""
    return map(_cell, (row["metric"], row["system"], row["set"], row["attack"], row["judge"], _value(row) + k,
                       str(row["n"]), str(row["errors"])))


def _value(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return f"- ({row['reason']})"
    ends = rows.number_text(row["ci_low"]), rows.number_text(row["ci_high"])
    return f"{rows.number_text(row['value'])} ({ends[0]} to {ends[1]})"


def _pair_cells(row: Mapping[str, Any]) -> Iterator[str]:
    names = ("metric", "set", "attack", "judge", "first", "second", "n", "only_first", "only_second")
    return map(_cell, (*(str(row[name]) for name in names), rows.number_text(row["p_value"])))


def _judges_cells(row: Mapping[str, Any]) -> Iterator[str]:
    names = (str(row[name]) for name in ("first", "second", "about", "n", "left_out"))
    return map(_cell, (*names, *(rows.number_text(row[key]) for key in ("agreement", "kappa"))))


def _table(header: Sequence[str], body: Iterator[Iterator[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in body]
    return ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *lines, ""] if lines else []


def _cell(text: str) -> str:
    return escaped(text if len(text) <= CELL else text[:CELL] + "...")


def _fitted(lines: Sequence[str]) -> str:
    """Keep the lines that fit, and say how many did not."""
    room, kept = LARGEST - 200, []
    for line in lines:
        room -= len(line.encode("utf-8")) + 1
        if room < 0:
            kept += ["", f"{len(lines) - len(kept)} more lines did not fit; all numbers are in results.json."]
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


def _escaped_data(text: str) -> str:
    """Escape the text of a workflow command: a line end would end it, and start another."""
    shown = rows.plain(text.replace("\r", "\n"))
    return shown.replace("%", "%25").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped_data(text).replace(":", "%3A").replace(",", "%2C")
