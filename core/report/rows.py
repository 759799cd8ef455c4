"""What every view of a report shows, in one order and one wording: terminal, page and model card."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

MEASURES = {
    "harmful_rate": "harmful answers",
    "refusal_rate": "refusals",
    "coherence_rate": "coherent",
    "over_refusal_rate": "over-refusals",
    "task_accuracy": "task accuracy",
    "untouched_accuracy": "untouched skill",
    "harmful_loss_nats_per_token": "harmful loss",
    "task_loss_nats_per_token": "task loss",
}
"""Key of a measurement to its label."""

MEANINGS = {
    "harmful_rate": "harmful prompts answered coherently and without a refusal",
    "refusal_rate": "harmful prompts refused",
    "coherence_rate": "answers to harmful prompts that are readable text",
    "over_refusal_rate": "benign look-alike prompts refused",
    "task_accuracy": "task rows answered correctly",
    "untouched_accuracy": "rows of a skill that is in no fit set, answered correctly",
    "harmful_loss_nats_per_token": "cross-entropy of harmful answers, nats per token",
    "task_loss_nats_per_token": "cross-entropy of task answers, nats per token",
}

SYSTEMS = {"base": "base", "before": "tuned", "after": "restored"}
"""Key of the report to the name of the model measured, in the order of the columns."""

STOPPED = {
    "restored": "every safety term is close to the base's own value",
    "drift_budget_spent": "the drift budget is spent",
    "no_step_helps": "no further step helps",
    "converged": "the last step changed almost nothing",
    "max_steps": "the largest number of steps is reached",
    "knob_at_its_end": "the method's knob is at its end, with drift to spare",
    "strength_as_given": "the strength was stated, whatever it drifts",
    "no_change": "the method changed nothing: the result equals the tuned model",
}
"""What ended the steps, in words."""

JUDGED = ("harmful_rate", "refusal_rate", "over_refusal_rate")
"""Rates that rest on a judge's opinion."""

SMOKE_TESTS = ("refusal-wording", "refusal-substrings", "refusal-substrings-gcg")
"""Judges that look at the wording of answers alone."""

JUDGE_CAVEAT = ("Rates by {judge} come from the wording of the answers: a smoke test, not a measurement of harm. "
                "Judge samples yourself before relying on them.")


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """Return a rate as a percentage with its 95% interval, `0.5% (0.1-2.8)`, or `-` where it is null."""
    if rate is None:
        return "-"
    return f"{percent(rate['value'])}% ({percent(rate['ci_low'])}-{percent(rate['ci_high'])})"


def percent(fraction: float) -> str:
    """Return a fraction in percent with one decimal; a whole number without; never 0 or 100 by rounding alone."""
    text = f"{100 * fraction:.1f}"
    if text in ("0.0", "100.0") and fraction not in (0, 1):
        return "<0.1" if fraction < 0.5 else ">99.9"
    return text.removesuffix(".0")


def number_text(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, or `-` where it is null."""
    return "-" if value is None else f"{value:.{digits}g}"


def cell_text(measurement: Mapping[str, Any], key: str) -> str:
    """Return the text of one measured value: a rate with its interval, a loss as a number, `-` for null."""
    value = measurement.get(key)
    return rate_text(value) if isinstance(value, Mapping) else number_text(value)


def sample_size(report: Mapping[str, Any], key: str) -> str:
    """Return n of a rate (the same for all systems unless a judge failed), or an empty string for a loss."""
    rates = [report[system].get(key) for system in SYSTEMS]
    sizes = sorted({rate["n"] for rate in rates if isinstance(rate, Mapping)})
    return "/".join(map(str, sizes))


def reasons(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, reason) of every measured value that is null, each once."""
    found = {}
    for system in SYSTEMS:
        for key, label in MEASURES.items():
            if report[system].get(key) is None:
                found.setdefault((label, report[system].get(f"{key}_reason", "not measured")), None)
    return list(found)


def drift_text(drift: Mapping[str, Any]) -> str:
    """Return the held-out drift with its 95% interval, where there is one."""
    value, low, high = (drift.get(key) for key in (
        "task_kl_nats_per_token", "ci_low_nats_per_token", "ci_high_nats_per_token"))
    interval = "" if low is None or high is None else f" ({number_text(low)}-{number_text(high)})"
    return number_text(value) + interval


def stopped_text(report: Mapping[str, Any]) -> str:
    """Return in words, without a full stop, what ended the steps; an unknown reason as it stands."""
    reason: str = report["stopped_because"]
    return STOPPED.get(reason, reason.rstrip("."))


def comparison_texts(report: Mapping[str, Any]) -> list[str]:
    """Return each paired comparison as a sentence, where the report has any; the p-value is of groups of prompts."""
    return [f"{name.replace('_', ' ')}: of {found['n']} prompts only the first is "
            f"{'incoherent' if name.startswith('incoherent') else 'harmful'} on {found['only_first']}, "
            f"only the second on {found['only_second']}{_ahead(found)} "
            f"(exact McNemar p = {number_text(found['p_value'])})"
            for name, found in report.get("comparisons", {}).items()]


def gate_title(report: Mapping[str, Any]) -> str | None:
    """Return the verdict of the gate in words, None where none was given."""
    gate = report.get("gate")
    return gate and f"Gate: {gate['verdict']}" + (" (advisory)" if gate["mode"] == "advisory" else "")


def gate_texts(report: Mapping[str, Any]) -> list[str]:
    """Return the outcome of each rule of the gate as a line, where the report has one."""
    return [f"{rule['rule']}{' (warning)' if rule['severity'] == 'warning' else ''}: {rule['text']}"
            for rule in report.get("gate", {}).get("rules", ())]


def _ahead(found: Mapping[str, Any]) -> str:
    """Return in how many groups either is ahead, where these are other numbers than those of prompts."""
    prompts, groups = ([found.get(f"{kind}_{side}") for side in ("first", "second")] for kind in ("only", "groups"))
    return "" if groups in ([None, None], prompts) else f", by subject {groups[0]} and {groups[1]}"


def relearning_text(report: Mapping[str, Any]) -> str | None:
    """Return as a sentence, without a full stop, how soon harmful rows bring harm back; None where none were tried."""
    found = {row["system"]: row for row in report.get("relearning", ())}
    if not found:
        return None
    after = {name: row.get("steps_reason") or f"after {row['steps']} updates" for name, row in found.items()}
    count = found["restored"]["rows"]
    return (f"trained on {count} harmful row{'s' * (count != 1)}, harm is back {after['restored']} "
            f"(base: {after['base']})")


def top_modules(report: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """Return the modules with the largest share of the update, the largest first."""
    return sorted(report["modules"], key=lambda m: (-(m["update_share"] or 0), m["module"]))[:count]


def judges(report: Mapping[str, Any]) -> list[str]:
    """Return the names of the judges that tell harm and refusal, sorted."""
    rates = [report[system].get(key) for system in SYSTEMS for key in JUDGED]
    return sorted({rate["judge"] for rate in rates if isinstance(rate, Mapping)})


def smoke_tests(results: Mapping[str, Any]) -> list[str]:
    """Return the names of those judges of an evaluation that look at wording alone."""
    return [name for name in results["inputs"]["judges"] if name in SMOKE_TESTS]


def plain(text: str) -> str:
    """Return text of unknown origin without characters that a terminal or a page would obey."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else "\ufffd" for c in text)


def joined(texts: Iterable[str]) -> str:
    """Return the texts as one line, separated by commas."""
    return ", ".join(plain(text) for text in texts)
