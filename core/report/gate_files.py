"""What a gate reads from disk and writes to it: the rules, a baseline, a new baseline."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config.strict_yaml import load_yaml
from ..errors import UsageError
from ..evaluation.gate.rules import Rule, parse_rules
from .results import LONE_SURROGATES
from .results_schema import validate
from .staging import paths_read
from .write import report_text

NEW_BASELINE_HINT = "give --write-baseline a file you may write"
OWN_BASELINE_HINT = "give --write-baseline a file of its own, outside OUT and what is read"
BASELINE_HINT = "give --baseline a results.json of `saferestore eval`, or a file of --write-baseline"


def read_gate(path: Path) -> tuple[Rule, ...]:
    """Return the rules of a gate file.

    Args:
        path: YAML with `rules`.

    Returns:
        At least one rule.

    Raises:
        UsageError: A file that cannot be read, is no YAML, has a key twice in one place, or has rules that cannot be
            used.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cannot read gate - {path}: {_why(error)}",
                         hint="give --gate a readable YAML file with `rules:`, each rule begun by `-`") from error
    return parse_rules(content, str(path))


def read_baseline(path: Path) -> dict[str, Any]:
    """Return an earlier run's results.

    Args:
        path: A results.json.

    Returns:
        The results, valid and of a finished run.

    Raises:
        UsageError: A file that cannot be read, is no results file, or is of a run that stopped.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        validate(found)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read baseline - {path}: {_why(error)}", hint=BASELINE_HINT) from error
    if found["status"] != "ok":
        raise UsageError(f"baseline of a run that stopped - {path}", hint=BASELINE_HINT)
    return found


def _why(error: Exception) -> str:
    """Return why a file cannot be read, in the system's or the parser's words, on one line."""
    words = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return (words or type(error).__name__)[:200]


def check_new_baseline(path: Path, *, out: Path | None = None, reads: Iterable[str] = ()) -> None:
    """Refuse, before the work, a place where no baseline can be written.

    Args:
        path: The file; its parents need not exist.
        out: The folder that the run writes; it is made, or replaced, as a whole.
        reads: References and `FILE[:FORMAT]` that the run reads.

    Raises:
        UsageError: A folder, a place without the right to write, in OUT or in the place of it, or what is read or a
            file in it.
    """
    target = path.resolve()
    if out is not None and (target.is_relative_to(out.resolve()) or out.resolve().is_relative_to(target)):
        raise UsageError(f"it would lie in the place of OUT - --write-baseline {path}", hint=OWN_BASELINE_HINT)
    held = next((name for name, read in paths_read(reads).items()
                 if read.exists() and target.is_relative_to(read.resolve())), None)
    if held is not None:
        raise UsageError(f"it would change {held}, which is read - --write-baseline {path}", hint=OWN_BASELINE_HINT)
    parent = next(folder for folder in path.resolve().parents if folder.exists())
    if path.is_dir():
        raise UsageError(f"cannot write baseline - {path}: a folder", hint=NEW_BASELINE_HINT)
    try:
        with tempfile.TemporaryFile(dir=parent):  # asking for the right to write is not enough: root is never denied
            pass
    except OSError as error:
        raise UsageError(f"cannot write baseline - {path}: {error.strerror}", hint=NEW_BASELINE_HINT) from error


def write_baseline(path: Path, results: Mapping[str, Any]) -> None:
    """Write results where later runs look for their baseline, whole or not at all.

    Args:
        path: The file; its parents are made, an earlier one is replaced.
        results: Of a finished run.

    Raises:
        UsageError: The file cannot be written.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(report_text(results), encoding="utf-8", errors=LONE_SURROGATES, newline="\n")
        staged.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise UsageError(f"cannot write baseline - {path}: {error.strerror}", hint=NEW_BASELINE_HINT) from error
