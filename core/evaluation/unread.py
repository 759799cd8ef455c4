"""Settings that a kind of run does not read are refused: one that is silently left out would be silently wrong."""

from __future__ import annotations

import dataclasses

from ..config import EvalConfig
from ..errors import UsageError

ASKING = ("model", "base", "tuned", "system", "harmful", "benign", "task", "untouched", "set", "attack", "shots",
          "lm_eval", "limit")
"""What decides who is asked and what; answers that exist are not asked for."""

LABELLED = (*ASKING, "generations", "gate", "baseline", "max_errors")
"""What a calibration does not read, besides."""


def check_generations(config: EvalConfig) -> None:
    """Refuse settings that decide what is asked, where answers that exist are judged (`--generations`)."""
    _refuse(config, ASKING, "--generations", "leave it out, or evaluate a MODEL without --generations")


def check_calibration(config: EvalConfig) -> None:
    """Refuse settings that decide what is asked or gated, where judges are calibrated (`--calibrate`)."""
    _refuse(config, LABELLED, "--calibrate", "leave it out, or give it in a run without --calibrate")


def check_baseline_use(config: EvalConfig) -> None:
    """Refuse a baseline that no rule could be compared with.

    Raises:
        UsageError: A baseline, and no gate.
    """
    if config.baseline is not None and config.gate is None:
        raise UsageError(f"no rule compares with it - --baseline {config.baseline}",
                         hint="add --gate FILE with a rule of max_increase or max_decrease")


def _refuse(config: EvalConfig, names: tuple[str, ...], kind: str, hint: str) -> None:
    usual = {field.name: field.default for field in dataclasses.fields(config)} | {"model": ""}
    given = next((name for name in names if getattr(config, name) != usual[name]), None)
    if given is not None:
        flag = "MODEL" if given == "model" else f"--{given.replace('_', '-')}"
        raise UsageError(f"{kind} does not read it - {flag}", hint=hint)
