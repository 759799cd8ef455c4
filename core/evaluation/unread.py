"""Settings that a kind of run does not read are refused: one that is silently left out would be silently wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator

from ..config import AnyConfig, EvalConfig, RestoreConfig, ScoreConfig
from ..errors import UsageError
from .attacks import ATTACKED_ROLE
from .judging import JUDGED

ASKING = ("model", "base", "tuned", "system", "harmful", "benign", "task", "untouched", "set", "attack", "shots",
          "lm_eval", "limit", "max_new_tokens", "chat_template", "system_prompt")
"""What decides who is asked and what; answers that exist are not asked for."""

LOADING = ("dtype", "device_map", "max_memory", "load_in")
"""How models are loaded: judging ones, too."""

LABELLED = (*ASKING, "generations", "gate", "gate_mode", "baseline", "max_errors")
"""What a calibration does not read, besides."""

NEED_A_GATE = {"baseline": "no rule compares with it", "gate_mode": "no gate gives a verdict"}
OF_ROWS = ("per_token", "remove", "at")
READ_BY = {"attack": (ATTACKED_ROLE,), "judge": JUDGED, "shots": ("task",)}
"""Setting -> purposes of the sets that read it."""


def check_generations(config: EvalConfig) -> None:
    """Refuse settings that decide what is asked, where answers that exist are judged (`--generations`).

    A baseline, too: it is of the same sets, and a file of other answers is another set.
    """
    _refuse(config, (*ASKING, "baseline", *_loading(config)), "--generations",
            "leave it out, or evaluate a MODEL without --generations")


def check_calibration(config: EvalConfig) -> None:
    """Refuse settings that decide what is asked or gated, where judges are calibrated (`--calibrate`)."""
    _refuse(config, (*LABELLED, *_loading(config)), "--calibrate",
            "leave it out, or give it in a run without --calibrate")


def check_gate_use(config: EvalConfig | RestoreConfig) -> None:
    """Refuse settings of a gate where there is none.

    Raises:
        UsageError: A baseline or an own mode, and no gate.
    """
    given = next(_given(config, NEED_A_GATE), None) if config.gate is None else None
    if given is not None:
        raise UsageError(f"{NEED_A_GATE[given]} - {_flag(given)} {getattr(config, given)}",
                         hint="add --gate FILE with a rule of max_increase or max_decrease" if given == "baseline" else
                         f"add --gate FILE, or leave out {_flag(given)}")


def check_sets(config: EvalConfig, roles: Collection[str]) -> None:
    """Refuse settings that only sets of one purpose read, where none of these is asked.

    Args:
        config: The settings.
        roles: What the sets are for.

    Raises:
        UsageError: One of them is not as by default.
    """
    given = next((name for name in _given(config, READ_BY) if not set(READ_BY[name]) & set(roles)), None)
    if given is not None:
        raise UsageError(f"no set reads it - {_flag(given)}",
                         hint=f"leave it out, or ask a set that does: {' or '.join(READ_BY[given])}")


def check_rows_use(config: ScoreConfig) -> None:
    """Refuse settings of the scores of training rows where there is no training file.

    Raises:
        UsageError: One of them is not as by default.
    """
    given = next(_given(config, OF_ROWS), None) if config.train is None else None
    if given is not None:
        raise UsageError(f"no training file - {_flag(given)}", hint=f"add --train FILE, or leave out {_flag(given)}")


def _loading(config: EvalConfig) -> tuple[str, ...]:
    """What is not read where no judge is a model."""
    return () if any("=" in judge for judge in config.judge) else LOADING


def _given(config: AnyConfig, names: Iterable[str]) -> Iterator[str]:
    """Those of the settings that are not as by default."""
    usual = {field.name: field.default for field in dataclasses.fields(config)} | {"model": ""}
    yield from (name for name in names if name in usual and getattr(config, name) != usual[name])


def _flag(name: str) -> str:
    return "MODEL" if name == "model" else f"--{name.replace('_', '-')}"


def _refuse(config: EvalConfig, names: Iterable[str], kind: str, hint: str) -> None:
    given = next(_given(config, names), None)
    if given is not None:
        raise UsageError(f"{kind} does not read it - {_flag(given)}", hint=hint)
