"""OUT appears whole or not at all: files are written to a sibling folder, renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import SaferestoreError, TakenError, UsageError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM = "free some space, or use another disk"


def check_out(out: Path, *, force: bool = False, reads: Iterable[str] = ()) -> None:
    """Refuse an OUT that could not be written at the end; called before any work is done.

    Args:
        out: The folder to write; its parents need not exist.
        force: Whether a non-empty folder may be replaced.
        reads: References and `FILE[:FORMAT]` that the run reads: replacing OUT must not take them away.

    Raises:
        UsageError: OUT is a file, holds files (without `force`), holds what is read or worked in (even with it), or
            lies where nothing can be made.
        SaferestoreError: The disk is full.
    """
    with _as_usable(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"OUT is not a folder - {out}", hint="give -o a folder that does not exist yet")
        if out.is_dir() and not force and any(out.iterdir()):
            raise UsageError(f"OUT is not empty - {out}",
                             hint="give -o another folder, or --force to replace it")
        if held := next(_needed_in(out.resolve(), reads), None):
            raise UsageError(f"OUT would replace {held} - {out}", hint="give -o a folder of its own")
        _remove(_make(_workplace(out.resolve())))


def check_folders(folders: Iterable[Path | None], *, force: bool, reads: Iterable[str]) -> None:
    """Refuse folders that could not all be written at the end; None is not written.

    Raises:
        UsageError: One of them cannot be written (as `check_out`), or is or lies in another.
        SaferestoreError: The disk is full.
    """
    given = [folder for folder in folders if folder is not None]
    for folder in given:
        check_out(folder, force=force, reads=reads)
    for inner, outer in itertools.permutations(given, 2):
        if inner.resolve().is_relative_to(outer.resolve()):
            raise UsageError(f"one folder to write lies in another - {inner}, {outer}",
                             hint="give each a folder of its own, none inside another")


@contextlib.contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside OUT that becomes OUT when the block ends without an exception.

    Args:
        out: The folder that is to appear; its parents are made.
        force: Whether a non-empty OUT is replaced. It stands untouched until the new one is whole.

    Yields:
        The folder to write into. After any exception, Ctrl-C included, it is gone, with the parents made for it.

    Raises:
        TakenError: OUT cannot be written (as `check_out`).
        SaferestoreError: The disk is full.
    """
    try:
        check_out(out, force=force)
    except UsageError as error:  # it was another folder when the work began
        raise TakenError(error.what, hint="move it away; where the command has --resume, that goes on where it stopped"
                         ) from error
    target = out.resolve()
    _clear_stale(target)
    with _as_usable(out):
        made = _make(_workplace(target))
    try:
        yield made[-1]
        _open_rights(made[-1])
        _swap(made[-1], target)
    except BaseException as error:
        _remove(made)
        if is_full_disk(error):
            raise SaferestoreError(f"no space left on the disk - {out}", hint=MAKE_ROOM) from error
        raise


def _needed_in(target: Path, reads: Iterable[str]) -> Iterator[str]:
    """Name what lies in `target`, or is it, and must not be replaced."""
    from ..checkpoint.recorded_base import base_beside  # torch, which an error's two lines do not wait for

    given = paths_read(reads)
    known = {**given, "the folder you work in": Path.cwd(), "your home": Path.home()}
    for name, path in given.items():
        with contextlib.suppress(SaferestoreError):  # said where it is opened
            known |= {f"the base of {name}": base for base in (base_beside(path.absolute()),) if base is not None}
    yield from (name for name, path in known.items() if path.exists() and path.resolve().is_relative_to(target))


def paths_read(reads: Iterable[str]) -> dict[str, Path]:
    """Return what may be a path in references and `FILE[:FORMAT]`, by its text; not all of them exist."""
    parts = [part for text in reads for part in (text, *text.split("+"), text.rpartition(":")[0], text.split("@")[0])]
    return {part: Path(part).expanduser() for part in parts if part}


def _workplace(target: Path) -> Path:
    return target.parent / f".{target.name}.staging-{os.getpid()}"


def _make(folder: Path) -> list[Path]:
    """Make a folder and its missing parents (with the umask's rights, unlike mkdtemp's) and list them."""
    missing = [folder, *(parent for parent in folder.parents if not parent.exists())]
    if folder.exists():
        shutil.rmtree(folder)
    for path in reversed(missing):
        path.mkdir()
    return missing[::-1]


def _remove(made: list[Path]) -> None:
    """Remove the last folder with all in it and the others where they are empty."""
    shutil.rmtree(made[-1], ignore_errors=True)
    for parent in reversed(made[:-1]):
        with contextlib.suppress(OSError):
            parent.rmdir()


def _open_rights(folder: Path) -> None:
    """Give files the rights of any new file: safetensors writes them for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


def _swap(folder: Path, target: Path) -> None:
    """Put `folder` in the place of `target`; the old one is set aside first and comes back on failure."""
    if not target.exists():
        folder.rename(target)
        return
    aside = target.parent / f".{target.name}.old-{os.getpid()}"
    target.rename(aside)
    try:
        folder.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _clear_stale(target: Path) -> None:
    """Remove what a killed run left beside OUT."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.staging-(\d+)")
    for path in target.parent.glob(".*.staging-*"):
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _as_usable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise SaferestoreError(f"no space left on the disk - {out}", hint=MAKE_ROOM) from error
        raise UsageError(f"cannot write OUT - {out}: {error.strerror}",
                         hint="give -o a folder you may write to") from error


def is_full_disk(error: BaseException) -> bool:
    """Tell a full disk also from the text of libraries that wrap the error (safetensors does)."""
    return getattr(error, "errno", None) in FULL_DISK or "No space left on device" in str(error)

