"""Words and pixels: the only place that knows rich. Tables go to stdout, bars and warnings to stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..core.config import Progress as ProgressCallback
from ..core.config import no_progress
from ..core.report import rows

WIDTH = 80
COLOURS = {"restored": "bold green", "partial": "bold yellow", "unchanged": "bold red", "refused": "bold red"}
GATE_COLOURS = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow", "none": "bold"}
GATE_TITLES = {"pass": "gate passed", "fail": "gate failed", "inconclusive": "gate inconclusive", "none": "measured"}


def print_report(report: dict[str, Any], out: Path, *, brief: bool = False) -> None:
    """Print the summary of a finished run on stdout, at most 80 columns wide; only its first line if `brief`."""
    console = console_of(sys.stdout)
    console.print(title(report), soft_wrap=True)
    if not brief:
        console.print(summary(report, out))


def print_warnings(report: dict[str, Any]) -> None:
    """Print the report's warnings on stderr."""
    for warning in report["warnings"]:
        print_warning(f"{warning['code']} {warning['message']}")


def print_warning(text: str) -> None:
    """Print one warning on stderr as one line, which only the terminal breaks: it may hold a command to copy."""
    console_of(sys.stderr).print(text_of(f"warning: {text}", "yellow"), soft_wrap=True)


def print_plan(plan: dict[str, Any]) -> None:
    """Print what `--dry-run` found, one line a value; its warnings are for `print_warnings`."""
    table = table_of(["plan", ""])
    for name, value in _flat({key: value for key, value in plan.items() if key != "warnings"}):
        table.add_row(text_of(name.replace("_", " ")), text_of(value))
    console_of(sys.stdout).print(table)


@contextlib.contextmanager
def progress_bars(*, enabled: bool) -> Iterator[ProgressCallback]:
    """Yield a callback that draws one bar a stage on stderr; it draws nothing where stderr is no terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield no_progress
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
               _Rate(), TimeRemainingColumn(compact=True))
    console = Console(file=sys.stderr, highlight=False)
    console.width = min(console.width, WIDTH)
    with Progress(*columns, console=console) as bars:
        stages: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(rows.plain(stage)[:30].ljust(24), total=total)
            bars.update(stages[stage], completed=done, total=total)

        yield show


class _Rate(ProgressColumn):
    """How many a second, once that is known."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g}/s" if speed and (task.total or 0) > 1 else "", style="dim")


def title(report: dict[str, Any]) -> Text:
    """Return the first line: the verdict, the gate's, the exit code and the figure, or that nothing was lost."""
    before, after = (rows.rate_text(report[key]["harmful_rate"]).split(" ")[0] for key in ("before", "after"))
    safe = any(warning["code"] == "W_ALREADY_SAFE" for warning in report["warnings"])
    gate = report.get("gate", {"verdict": None, "mode": None})
    gated = [", ", (GATE_TITLES[gate["verdict"]], GATE_COLOURS[gate["verdict"]])] if gate["verdict"] else []
    advisory = ", advisory" if gate["mode"] == "advisory" else ""
    return Text.assemble((report["verdict"], COLOURS[report["verdict"]]), *gated,
                         f" (exit {report['exit_code']}{advisory}): ",
                         "nothing was lost, " if safe else "", f"harmful answers {before} -> {after}")


def summary(report: dict[str, Any], out: Path) -> RenderableType:
    """Return everything below the first line."""
    parts = ([_measures(report), *_footnotes(report)], [_facts(report, out)], _gate(report), _controls(report),
             _modules(report))
    return Group(*(line for part in parts if part for line in ("", *part)))


def _measures(report: dict[str, Any]) -> Table:
    table = table_of(["held-out rows", *rows.SYSTEMS.values(), "n"])
    for key, label in rows.MEASURES.items():
        cells = [Text(rows.cell_text(report[system], key), no_wrap=True) for system in rows.SYSTEMS]
        table.add_row(label, *cells, rows.sample_size(report, key))
    return table


def _footnotes(report: dict[str, Any]) -> Iterator[Text]:
    yield Text(" rates with 95% intervals; losses in nats per token", style="dim")
    for label, reason in rows.reasons(report):
        yield text_of(f" {label}: not given, {reason}", "dim")
    if names := rows.judges(report):
        yield text_of(f" judged by {rows.joined(names)}: by wording only, a smoke test", "dim")


def _facts(report: dict[str, Any], out: Path) -> Padding:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in (("drift of budget", _drift(report)), ("stopped because", rows.stopped_text(report)),
                        *_relearning(report), ("cost", _cost(report)), ("written to", str(out))):
        table.add_row(Text(name, style="bold"), text_of(value))
    return Padding(table, (0, 0, 0, 1))


def _drift(report: dict[str, Any]) -> str:
    drift = report["drift"]
    return (f"{rows.drift_text(drift)} of {rows.number_text(drift['budget_nats_per_token'])} nats/token "
            "on retain rows")


def _relearning(report: dict[str, Any]) -> list[tuple[str, str]]:
    found = rows.relearning_text(report)
    return [] if found is None else [("relearning", found)]


def _cost(report: dict[str, Any]) -> str:
    cost, run = report["cost"], report["run"]
    parts = [f"{cost['gradient_passes']} gradient passes, {cost['curvature_products']} curvature products",
             f"{sum(seconds or 0 for seconds in run['seconds'].values()):.0f} s"]
    if run["peak_memory_bytes"] is not None:
        parts.append(f"peak {size_text(run['peak_memory_bytes'])}")
    return ", ".join(parts)


def _gate(report: dict[str, Any]) -> list[RenderableType]:
    if "gate" not in report:
        return []
    return [rules_table(report["gate"]["rules"],
                        lambda rule: "" if rule["attack"] == "none" else f" [{rule['attack']}]")]


def rules_table(rules: list[dict[str, Any]], where: Callable[[dict[str, Any]], str]) -> Table:
    """Return the rules of a gate with what each found; `where` tells rules whose names begin alike from each other."""
    table = wrapping_table(["rule", "system", "verdict", "found (end)", "limit", "n", "+n"])
    for rule in rules:
        mark = " (warning)" if rule["severity"] == "warning" else ""
        table.add_row(name_of(f"{name_of(rule['rule'], 24)}{where(rule)}{mark}", 120), name_of(rule["system"]),
                      text_of(rule["verdict"], GATE_COLOURS[rule["verdict"]]), _found(rule),
                      f"{'≤' if rule['kind'] != 'min_lower' else '≥'} {rows.number_text(rule['threshold'])}",
                      str(rule["n"]), str(rule["more_samples"] or ""))
    return table


def _found(rule: dict[str, Any]) -> str:
    if rule["value"] is None:
        return "not measured"
    bound = "-" if rule["bound"] is None else rows.number_text(rule["bound"])
    return f"{rows.number_text(rule['value'])} ({bound})"


def _controls(report: dict[str, Any]) -> list[RenderableType]:
    if not report["controls"]:
        return []
    table = table_of(["at the same drift", "harmful answers", "task accuracy", "drift"])
    own = {**report["after"], "name": "this restoration", **report["drift"]}
    for control in (own, *report["controls"]):
        table.add_row(text_of(control["name"]), *(rows.cell_text(control, key) for key in (
            "harmful_rate", "task_accuracy", "task_kl_nats_per_token")))
    return [table]


def _modules(report: dict[str, Any]) -> list[RenderableType]:
    modules = rows.top_modules(report, 5)
    if not modules:
        return []
    table = table_of(["moved most", "share of the update", ""])
    longest = max(module["update_share"] or 0 for module in modules) or 1.0
    for module in modules:
        share = module["update_share"] or 0
        bar = "█" * round(13 * share / longest)
        table.add_row(text_of(shortened(module["module"])), f"{rows.percent(share)}%", bar)
    return [table]


def shortened(name: str, width: int = 42) -> str:
    """Return the end of a module's name, which tells it from others, with dots for what is left out."""
    return name if len(name) <= width else "..." + name[3 - width:]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}: {key}" if name else key)
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value)) or "-"
    else:
        yield name, _quantity(name, value)


def _quantity(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if "bytes" in name and isinstance(value, int | float):
        return size_text(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def size_text(count: float) -> str:
    """Return a number of bytes in the unit that leaves one to three digits before the point."""
    power = next((p for p in (4, 3, 2, 1) if count >= 1000**p), 0)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def table_of(headers: list[str]) -> Table:
    """Return an empty table without lines; a column without a header goes on in the next line where it is too long."""
    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="bold")
    for header in headers:
        table.add_column(text_of(header), no_wrap=header != "", overflow="fold" if header == "" else "ellipsis")
    return table


def wrapping_table(headers: list[str], column: int = 0) -> Table:
    """Return a table of which one column goes on in the next line where it is too long: no number is cut off."""
    table = table_of(headers)
    table.columns[column].no_wrap, table.columns[column].overflow = False, "fold"
    return table


def name_of(name: str, longest: int = 20) -> Text:
    """Return a name of unknown origin on one line, cut to so many characters."""
    line = " ".join(rows.plain(name).split())
    return Text(line if len(line) <= longest else f"{line[:longest - 3]}...")


def text_of(text: str, style: str = "") -> Text:
    """Return text of unknown origin as it is, without markup or control characters."""
    return Text(rows.plain(text), style=style)


def console_of(stream: Any) -> Console:
    """Return a console of 80 columns: in a narrower terminal lines go on in the next, and no number is cut off."""
    return Console(file=stream, highlight=False, width=WIDTH)
