"""Failures as a user meets them: two lines on stderr, one JSON document with `--json`, one exit code."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from ..core.errors import SaferestoreError
from ..core.report.rows import plain
from ..core.report.staging import MAKE_ROOM, is_full_disk

UNEXPECTED = "run it again with --debug for the traceback"

OUT_OF_MEMORY = "lower --batch-size, or give --low-memory or --load-in 8bit where the command has them"
RESUME = "run the same command again; where it has --resume, that and the same -o go on where it stopped"
REMEDIES = {
    "KeyboardInterrupt": (130, "interrupted - nothing was written at OUT", RESUME),
    "OutOfMemoryError": (1, "out of memory", OUT_OF_MEMORY),
    "MemoryError": (1, "out of memory", OUT_OF_MEMORY),
    "ModuleNotFoundError": (1, "", "install what is missing, or saferestore anew: pip install saferestore"),
}
"""Name of an exception that is none of ours to exit code, first line (else its own text) and hint."""

OFF = ("", "0", "f", "false", "n", "no", "off")
"""Values of a variable of the environment by which the parser leaves a flag off, in any case of letters."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, the way out, and the exit code."""

    what: str
    hint: str
    exit_code: int


def failure(error: BaseException, arguments: Sequence[str] = ()) -> Failure:
    """Return what to tell the user about any exception; `arguments` say whose help a hint names."""
    if isinstance(error, SaferestoreError):
        return Failure(error.what, error.hint, error.exit_code)
    if isinstance(error, typer.TyperException):
        return _usage(error, arguments)
    if is_full_disk(error):
        return Failure(f"no space left on the disk - {getattr(error, 'filename', None) or error}", MAKE_ROOM, 1)
    name = type(error).__name__
    code, what, hint = REMEDIES.get(name, (1, "", UNEXPECTED))
    return Failure(what or f"{name}: {error}", hint, code)


def show(failed: Failure, arguments: Sequence[str] | None, error: BaseException | None = None) -> int:
    """Print a failure the way the arguments ask for (None: its document is printed) and return its exit code."""
    if error is not None and arguments is not None and _asked("debug", arguments):
        traceback.print_exception(error)
    what, hint = _cut(_line(failed.what)), _line(failed.hint)
    if arguments is not None and _asked("json", arguments):
        command = next((word for word in arguments if not word.startswith("-")), "restore")
        document = _document(command, what, hint, failed.exit_code)
        write_document(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    print(f"error: {what}\nhint: {hint}", file=sys.stderr)
    return failed.exit_code


def write_document(text: str) -> None:
    """Write what programs read to stdout: in UTF-8, as JSON and --config are, whatever the terminal's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    print(text, end="")  # nowhere, where stdout was closed by whoever started this


def _asked(flag: str, arguments: Sequence[str]) -> bool:
    """Tell whether a flag is on, also where the command line could not be read to its end."""
    return f"--{flag}" in arguments or os.environ.get(f"SAFERESTORE_{flag.upper()}", "").lower() not in OFF


def _usage(error: typer.TyperException, arguments: Sequence[str]) -> Failure:
    """Turn the parser's message into ours; it names the near options of a mistyped one."""
    message = error.format_message()
    close = getattr(error, "possibilities", None)
    named = " ".join(("saferestore", *(word for word in arguments[:1] if not word.startswith("-"))))
    command = getattr(getattr(error, "ctx", None), "command_path", named)
    hint = f"did you mean {' or '.join(sorted(close))}?" if close else f"see: {command} --help"
    what = getattr(error, "message", message) if close else message
    return Failure(what[:1].lower() + what[1:].rstrip("."), hint, error.exit_code)


def _line(text: str) -> str:
    """Return text as one line that no terminal obeys, whole: a hint may hold a command."""
    return " ".join(plain(text).split())


def _cut(line: str) -> str:
    """Return a line of which a library's long message keeps its beginning."""
    return line if len(line) <= 300 else line[:297] + "..."


def _document(command: str, what: str, hint: str, code: int) -> dict[str, object]:
    """Return the document of a run that came to no verdict of its own, by the command's schema (`status: error`)."""
    own = {"restore": {"verdict": "refused"}, "eval": {"gate": {"verdict": "none", "mode": "enforce", "rules": []}}}
    return {"schema_version": "1.0", "command": command, "status": "error", "exit_code": code,
            **own.get(command, {}), "error": {"what": what, "hint": hint}, "warnings": []}
