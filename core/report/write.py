"""The files of OUT beside the adapter: report, page, model card and what it takes to run the same again.

The same report gives the same bytes. Only `saferestore.json` shows the report's `run` object (times, memory), so
that every other file is the same on a second run; these are the ones that SHA256SUMS covers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..config import RestoreConfig, to_yaml
from .answers import Shown
from .card import model_card
from .html import page
from .schema import validate
from .share import requirements, shareable_settings

REPORT = "saferestore.json"
SUMS = "reproduce/SHA256SUMS"


def report_text(report: Mapping[str, object]) -> str:
    """Return the report as the JSON document that is written and printed; raises ValueError on NaN."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_bundle(folder: Path, report: Mapping[str, object], config: RestoreConfig, command: str,
                 answers: Sequence[Shown] = ()) -> None:
    """Write every file of OUT but the adapter's, which stand in `folder` already.

    Args:
        folder: The staged folder.
        report: A valid report; `schema.validate` is called first.
        config: The settings of the run; written with shareable paths.
        command: The command that repeats the run (`share.command_line`).
        answers: Some answers side by side, for the page.

    Raises:
        ValueError: The report breaks its schema.
        OSError: The folder cannot be written.
    """
    validate(report)
    files: dict[str, Callable[[], str]] = {
        REPORT: lambda: report_text(report),
        "report.html": lambda: page(report, config, answers),
        "README.md": lambda: model_card(report, config),
        "reproduce/config.yaml": lambda: to_yaml(shareable_settings(config)),
        "reproduce/COMMAND.txt": lambda: command + "\n",
        "reproduce/requirements.txt": requirements,
        SUMS: lambda: sums(folder),
    }
    (folder / "reproduce").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text(), encoding="utf-8", newline="\n")


def sums(folder: Path) -> str:
    """Return the lines of `sha256sum` for every file under `folder` but the report and the sums themselves."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{sha256(folder / name)}  {name}\n" for name in names if name not in (REPORT, SUMS))


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
