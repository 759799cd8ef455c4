"""The journal of a long run: every finished answer on disk at once, so that a killed run goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import MismatchError, NumericalError, SaferestoreError, TakenError, UsageError
from .staging import MAKE_ROOM, is_full_disk

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Json = Mapping[str, Any]
FILE = "journal.jsonl"


def journal_folder(out: Path) -> Path:
    """Return where the journal of OUT lies: `OUT.partial` beside it."""
    target = out.resolve()
    return target.parent / f"{target.name}.partial"


def check_journal(folder: Path, *, resume: bool, restart: bool) -> None:
    """Look at the journal that may lie in a folder, before any work is done.

    Raises:
        UsageError: One lies there and nobody says what to do with it, or another run writes it, whatever is said; to go
            on where there is none; or to go on and to begin again are both asked for.
    """
    path = folder / FILE
    if resume and restart:
        raise UsageError("to go on and to begin again - --resume --restart", hint="give one of them")
    if path.exists():
        with path.open("a", encoding="utf-8") as file:
            _lock(file, folder)
    if path.exists() and not (resume or restart):
        raise UsageError(f"an interrupted run lies here - {folder}", hint="add --resume to go on with it, or "
                         "--restart to begin again")
    if resume and not path.exists():
        raise UsageError(f"nothing to resume - {folder}", hint="leave out --resume")


def digest(settings: Json) -> str:
    """Return what two runs must share for the second to go on with the journal of the first."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class Journal:
    """Lines of JSON, each flushed to the disk before the next piece of work begins.

    A line that a kill tore is dropped and its work done again; any other line that cannot be read is an error. The
    first line holds the digest of the settings.
    """

    def __init__(self, folder: Path | None, settings: Json, *, resume: bool = False, restart: bool = False) -> None:
        """Open a journal.

        Args:
            folder: Where it lies; None keeps nothing (a run that writes no OUT).
            settings: What decides the answers.
            resume: Go on with what lies there.
            restart: Remove what lies there.

        Raises:
            UsageError: As of `check_journal`; `resume` and the journal is of other settings.
            SaferestoreError: The journal is damaged, or the disk is full.
        """
        self.entries: list[Json] = []
        self.folder = folder
        self._file = None
        if folder is None:
            return
        path = folder / FILE
        check_journal(folder, resume=resume, restart=restart)
        if restart:
            _delete(path)
        head = {"journal": 1, "settings_sha256": digest(settings)}
        if path.exists():
            self.entries = _read(path, head)
        with _full_disk_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        _lock(self._file, folder)
        if not path.stat().st_size:
            self.write([head])
            self.entries = []

    def write(self, entries: Iterable[Json]) -> None:
        """Add entries in one go and wait until they are on the disk; raises SaferestoreError when it is full."""
        entries = list(entries)
        self.entries += entries
        if self._file is None:
            return
        with _full_disk_named(self.folder):
            self._file.write("".join(json.dumps(entry, ensure_ascii=True) + "\n" for entry in entries))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and keep it; what a full disk did not take is lost, and was told of."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def remove(self) -> None:
        """Close and delete: OUT stands whole. Other files in the folder are somebody else's and stay."""
        self.close()
        if self.folder is not None:
            _delete(self.folder / FILE)


@contextlib.contextmanager
def kept_until_done(journal: Journal) -> Iterator[Journal]:
    """Remove a journal where the work inside is done, or ends in an error that the same work would meet again."""
    try:
        yield journal
    except TakenError:  # what was done is good for another try
        raise
    except (UsageError, MismatchError, NumericalError):
        journal.remove()
        raise
    finally:
        journal.close()
    journal.remove()


def _lock(file: TextIO, folder: Path) -> None:
    """Take a journal for this process until it is closed; raises UsageError where another process has it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another run is writing here - {folder}", hint="wait for it, or give -o another folder"
                         ) from error
    except OSError:  # a file system without locks
        return


def _delete(path: Path) -> None:
    """Delete a journal, and its folder where nothing else lies in it."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


@contextlib.contextmanager
def _full_disk_named(folder: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise SaferestoreError(f"no space left on the disk - {folder}", hint=MAKE_ROOM) from error
        raise


def _read(path: Path, head: Json) -> list[Json]:
    """Return the entries after the first, and cut off a line that has no end."""
    content = path.read_bytes()
    whole = content[:content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    try:
        entries = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError as error:
        raise SaferestoreError(f"the journal is damaged - {path}", hint="add --restart to begin again") from error
    if entries and entries[0] != head:
        raise UsageError(f"the journal is of other settings - {path}",
                         hint="give the same command as before with --resume, or --restart")
    return entries[1:]
