"""The results of `eval` as the JSON document that is written and printed, and the files made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import SaferestoreError, strongest
from ..evaluation.gate.decide import Outcome, exit_code, gate_verdict
from ..evaluation.gate.measure import Measured
from .junit import junit_xml
from .results_schema import SCHEMA_VERSION, validate
from .step_summary import summary
from .write import report_text

Json = dict[str, Any]
RESULTS = "results.json"
LONE_SURROGATES = "backslashreplace"
"""Half a character, which a row's id may hold, is written as the escape that JSON reads it from."""

FRAME: Mapping[str, str] = {"schema_version": SCHEMA_VERSION, "command": "eval"}


def results(*, inputs: Json, settings: Json, seed: int, environment: Mapping[str, Any], measured: Measured,
            comparisons: Sequence[Mapping[str, Any]], agreement: Sequence[Mapping[str, Any]],
            outcomes: Sequence[Outcome], mode: str, warnings: Sequence[tuple[str, str]], run: Json,
            rejected: Sequence[Mapping[str, Any]] = (), codes: Sequence[int] = ()) -> Json:
    """Return the results of a finished run, in the order of the contract.

    Args:
        inputs: `systems` (name -> checkpoint as in a restore report), `sets`, `judges` and perhaps `attacks` (name ->
            what it is).
        settings: Of the run; generation settings under the names of `evaluation.gate.baseline.GENERATION`.
        seed: Of the run.
        environment: Versions, see `share.environment`.
        measured: Rates and how prompts counted; rows of other numbers may be among its rows.
        comparisons: Of `evaluation.gate.measure.comparisons`.
        agreement: Of judges, a row a pair.
        outcomes: Of the gate, none without one.
        mode: enforce or advisory.
        warnings: (code, message) each.
        run: What differs from run to run: times, memory.
        rejected: Malformed rows: file, line, reason.
        codes: Exit codes of other parts of the run.

    Returns:
        A valid document with `status: ok`.

    Raises:
        ValueError: It breaks its schema: a defect of the program.
    """
    found: Json = {
        **FRAME, "status": "ok", "exit_code": strongest((exit_code(outcomes, mode), *codes)),
        "gate": gate_section(outcomes, mode), "inputs": inputs, "settings": settings, "seed": seed,
        "environment": dict(environment), "metrics": list(measured.rows), "comparisons": list(comparisons),
        "agreement": list(agreement), "warnings": [{"code": code, "message": text} for code, text in warnings],
        "rejected": list(rejected), "verdicts": list(measured.verdicts), "run": run}
    validate(found)
    return found


def failure(error: SaferestoreError, mode: str = "enforce") -> Json:
    """Return the document of a run that stopped; nothing is written, `--json` prints it."""
    return {**FRAME, "status": "error", "exit_code": error.exit_code, "gate": gate_section((), mode),
            "error": {"what": error.what, "hint": error.hint}, "warnings": []}


def gate_section(outcomes: Sequence[Outcome], mode: str) -> Json:
    """Return the gate as results say it: its verdict, its mode, and a row an outcome."""
    return {"verdict": gate_verdict(outcomes), "mode": mode, "rules": [_row(each) for each in outcomes]}


def write_results(folder: Path, found: Mapping[str, Any]) -> None:
    """Write results.json, junit.xml and report.md; the same results give the same bytes.

    Args:
        folder: The staged folder of OUT.
        found: Of `results`; only results.json shows its `run`.

    Raises:
        ValueError: The results break their schema.
        OSError: The folder cannot be written.
    """
    validate(found)
    files = {RESULTS: report_text(found), "junit.xml": junit_xml(found), "report.md": summary(found)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", errors=LONE_SURROGATES, newline="\n")


def _row(outcome: Outcome) -> Json:
    rule = outcome.rule
    return {"rule": rule.name, "severity": rule.severity, "metric": rule.metric, "system": outcome.system,
            "set": outcome.set, "judge": outcome.judge, "attack": outcome.attack, "verdict": outcome.verdict,
            "kind": rule.kind, "threshold": rule.threshold, "value": outcome.value, "bound": outcome.bound,
            "n": outcome.n, "errors": outcome.errors, "more_samples": outcome.more_samples, "text": outcome.text}
