"""The results of `eval` on a terminal: the verdict, a table of rules, a table of systems side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..core.report import rows
from .render import (
    GATE_COLOURS,
    GATE_TITLES,
    console_of,
    name_of,
    print_warning,
    rules_table,
    table_of,
    text_of,
    wrapping_table,
)

LABELS: dict[str, str] = {**rows.MEASURES, "attack_success_rate": "attack success", "perplexity": "perplexity",
          "kl_to_tuned_nats_per_token": "drift from tuned"}
OWN_JUDGES = ("coherence", "exact-match", "likelihood", "choice-normalised", "choice-sum", "lm-eval")
"""What tells a number without being asked for by --judge."""

PARTIAL = {"as refusal": "refused", "as compliance": "complied", "none": "-"}
"""What people's partial refusals are counted as, in a word."""

Json = dict[str, Any]


def print_results(results: Json, out: Path | None, *, brief: bool = False) -> None:
    """Print what an evaluation found on stdout, at most 80 columns wide; only the first line if `brief`."""
    console = console_of(sys.stdout)
    console.print(title(results), soft_wrap=True)
    if brief:
        return
    for part in (*_rules(results), *_metrics(results), *_comparisons(results), *_agreement(results)):
        console.print()
        console.print(part)
    console.print(_note(results))
    if out is not None:
        console.print(text_of(f" written to {out}", "dim"))


def title(results: Json) -> Text:
    """Return the first line: the gate's verdict, the exit code, and how many rules came to what."""
    gate = results["gate"]
    counts = [f"{count} {name}" for name in ("fail", "inconclusive", "pass")
              if (count := sum(rule["verdict"] == name for rule in gate["rules"]))]
    advisory = ", advisory" if gate["mode"] == "advisory" and gate["rules"] else ""
    return Text.assemble((GATE_TITLES[gate["verdict"]], GATE_COLOURS[gate["verdict"]]),
                         f" (exit {results['exit_code']}{advisory})", f": {', '.join(counts)}" if counts else "")


def _rules(results: Json) -> list[RenderableType]:
    if not results["gate"]["rules"]:
        return []
    return [rules_table(results["gate"]["rules"], lambda rule: _where(rule, results))]


def _where(row: Json, results: Json) -> str:
    """What tells a rule or a difference from others of its name: set, attack and judge where there are several."""
    sets = {each["set"] for each in results["metrics"] if each["metric"] == row["metric"]}
    judges = results["inputs"]["judges"]
    return "".join((f", {row['set'][:30]}" if len(sets) > 1 else "",
                    "" if row["attack"] == "none" else f" [{row['attack']}]",
                    f": {row['judge']}" if len(judges) > 1 and row["judge"] in judges else ""))


def _metrics(results: Json) -> list[RenderableType]:
    """A table a set and attack; a row a metric and judge, a column a system."""
    systems = list(dict.fromkeys(row["system"] for row in results["metrics"]))
    places: dict[tuple[str, str], dict[tuple[str, str], Json]] = {}
    for row in results["metrics"]:
        of_place = places.setdefault((row["set"], row["attack"]), {})
        of_place.setdefault((row["metric"], row["judge"]), {})[row["system"]] = row
    return [_of_place(place, found, systems, len(results["inputs"]["judges"]) > 1) for place, found in places.items()]


def _of_place(place: tuple[str, str], found: dict[tuple[str, str], Json], systems: list[str], judges: bool) -> Table:
    of_set, attack = place
    shown = (of_set if attack == "none" else f"{of_set}, {attack}", *systems)
    table = table_of([*(str(name_of(name, 30)) for name in shown), "n"])
    for column in table.columns[:-1]:
        column.no_wrap = False  # an interval too wide for the line goes on in the next
    last = ""
    for (metric, judge), row in found.items():
        name, _, shots = metric.partition("@")
        k = max(each.get("k", 1) for each in row.values())
        label = LABELS.get(name, name) + (f", {shots} shots" if shots else "") + (f", worst of {k}" if k > 1 else "")
        if judges and judge not in OWN_JUDGES:
            label, last = (f"  {judge}" if metric == last else f"{label}: {judge}"), metric
        table.add_row(text_of(label[:40]), *(_value(row.get(system)) for system in systems), _counts(row))
    return table


def _value(row: Json | None) -> Text:
    if row is None or row["value"] is None:
        return Text("-")
    if row["metric"].partition("@")[0].endswith(("_rate", "_accuracy")):
        return Text(rows.rate_text(row), no_wrap=True)
    ends = "" if row["ci_low"] is None else f" ({row['ci_low']:.3g} to {row['ci_high']:.3g})"
    return Text(f"{row['value']:.3g}{ends}")


def _counts(row: Json) -> str:
    counts = dict.fromkeys(f"{each['n']}" + (f"+{each['errors']}?" if each["errors"] else "") for each in row.values())
    return " ".join(counts)


def _comparisons(results: Json) -> list[RenderableType]:
    """Pairs of systems whose rates differ more than chance allows."""
    clear = [row for row in results["comparisons"] if row["p_value"] < 0.05]
    if not clear:
        return []
    table = wrapping_table(["differs", "A", "B", "A only", "B only", "p"])
    for row in clear:
        name = LABELS.get(row["metric"], row["metric"])
        table.add_row(name_of(f"{name}{_where(row, results)}", 120), name_of(row["first"]),
                      name_of(row["second"]), str(row["only_first"]), str(row["only_second"]), f"{row['p_value']:.1g}")
    return [table]


def _agreement(results: Json) -> list[RenderableType]:
    if not results["agreement"]:
        return []
    table = wrapping_table(["judges", "about", "agree", "kappa", "n"])
    for row in results["agreement"]:
        agree, kappa = (("-" if row[key] is None else f"{row[key]:.2f}") for key in ("agreement", "kappa"))
        table.add_row(text_of(f"{row['first']} / {row['second']}"), row["about"], agree, kappa, str(row["n"]))
    return [table]


def _note(results: Json) -> Text:
    wording = rows.smoke_tests(results)
    smoke = f"; {rows.joined(wording)}: by wording only, a smoke test" if wording else ""
    return text_of(f" rates with Wilson 95% intervals, `+N?` answers not judged{smoke}", "dim")


def print_calibration(found: Json) -> None:
    """Print how often judges agree with people, a table a model."""
    console, models = console_of(sys.stdout), {}
    for row in found["calibration"]:
        models.setdefault((row["model"], row["about"]), []).append(row)
    for (model, about), of_model in models.items():
        console.print(Text(f" {name_of(f'{model}, {about}', 60)}", style="bold"))
        table = table_of(["judge", "partial", "sensitivity", "specificity", "n", "?"])
        table.columns[0].no_wrap = False
        for row in of_model:
            table.add_row(name_of(row["judge"], 24), PARTIAL[row["partial"]],
                          *(rows.rate_text(row[key]).replace("% (", " (") for key in ("sensitivity", "specificity")),
                          str(row["n"]), str(row["errors"]))
        console.print(table)
        console.print()
    console.print(text_of(" sensitivity: found among what people labelled so; specificity: left among the rest; "
                          "percent with Wilson 95% intervals; partial refusals are counted both ways; `?` answers "
                          "not judged, in neither rate", "dim"))


def print_rejected(found: Json) -> None:
    """Print the lines of labelled answers that could not be used on stderr."""
    for rejected in found["rejected"]:
        print_warning(f"{rejected['file']} line {rejected['line']}: {rejected['reason']}")
