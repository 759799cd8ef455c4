"""The report as one HTML page without scripts, fonts or links to elsewhere; the same report gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2

from ..config import RestoreConfig
from . import rows
from .answers import Shown
from .share import command_line

TONES = {"restored": "good", "partial": "fair", "unchanged": "poor", "refused": "poor"}
"""The colour of a verdict."""


def page(report: Mapping[str, Any], config: RestoreConfig, answers: Sequence[Shown] = ()) -> str:
    """Return the page for the report of a finished run.

    Args:
        report: A valid report with `status: ok`; its `run` object is not shown.
        config: The settings of the run.
        answers: Some of them side by side.

    Returns:
        A whole HTML document; every text in it is escaped.
    """
    return _template().render(
        report=report, rows=rows, answers=answers, redact=config.redact, tone=TONES[report["verdict"]],
        command=command_line(config),
        settings=json.dumps(report["settings"], indent=1, sort_keys=True),
        drift_scale=_scale([report["drift"]["budget_nats_per_token"], *(s["drift"] for s in _accepted(report))]),
        objective_scale=_scale([s["objective"] for s in _accepted(report)]),
        share_scale=_scale([m["update_share"] for m in report["modules"]]))


def bar(value: float | None, scale: float = 1.0) -> float:
    """Return the width of a bar in percent: `value` against the longest, clipped to what can be drawn."""
    return round(100 * min(max((value or 0) / scale, 0), 1), 2)


def _accepted(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the accepted steps: a rejected one may be so far off that nothing else could be seen."""
    return [step for step in report["steps"] if step["accepted"]]


def _scale(values: list[float | None]) -> float:
    return max((value for value in values if value is not None), default=0) or 1.0


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    text = resources.files("saferestore.core.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
                                     finalize=lambda value: rows.plain(value) if type(value) is str else value)
    environment.filters["bar"] = bar
    return environment.from_string(text)
