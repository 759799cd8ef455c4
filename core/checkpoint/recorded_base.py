"""The base that an adapter says it was trained on: found where it lies, compared with the base given."""

from __future__ import annotations

import re
from pathlib import Path

from ..config import Progress
from ..errors import MismatchError
from .adapter import LoraAdapter, Warnings, is_adapter, read_config
from .reference import RECORDED, Reference, locate, parse_reference, shown


def find_base(base: Reference, tuned: Reference, tuned_dir: Path, *, offline: bool,
              progress: Progress) -> tuple[Reference, Path]:
    """Return the base as a reference and its folder; for `-`, the base of base+adapter or the one recorded.

    A recorded path is looked for from the adapter's folder upward, then from the working directory.

    Args:
        base: As typed.
        tuned: As typed.
        tuned_dir: Its folder.
        offline: Never ask the network.
        progress: Called while downloading.

    Returns:
        The reference and the folder.

    Raises:
        MismatchError: `-`, and the tuned checkpoint names no base.
    """
    if base.base != RECORDED:
        return base, locate(base.base, base.revision, offline=offline, progress=progress)
    if tuned.adapter:
        found = parse_reference(tuned.text.rpartition("+" + tuned.adapter)[0])
        return found, locate(found.base, found.revision, offline=offline, progress=progress)
    recorded = read_config(tuned_dir).get("base_model_name_or_path") if is_adapter(tuned_dir) else None
    if not recorded:
        raise MismatchError(f"BASE is -, and no base is recorded - {tuned.text}", hint="give the base instead of -")
    found, beside = parse_reference(str(recorded)), base_beside(tuned_dir)
    if beside is not None:
        return found, beside
    return found, locate(found.base, found.revision, offline=offline, progress=progress)


def base_beside(folder: Path) -> Path | None:
    """Return the folder of the base that an adapter records, looked for from its own folder upward, then from here.

    None where there is none.

    Raises:
        MismatchError: An adapter whose configuration cannot be read.
    """
    recorded = read_config(folder).get("base_model_name_or_path") if is_adapter(folder) else None
    if not recorded:
        return None
    places = (parent / parse_reference(str(recorded)).base for parent in (folder, *folder.parents, Path.cwd()))
    return next((place.resolve() for place in places if (place / "config.json").is_file()), None)


def check_recorded_base(adapter: LoraAdapter, base: Reference, base_dir: Path, *, force: bool) -> Warnings:
    """Refuse a base that the adapter was not trained on: another of the same shape would fit and be wrong.

    The same id, the same folder, or the same last part of either is the same base.

    Args:
        adapter: As read.
        base: The base given.
        base_dir: Its folder.
        force: Warn only.

    Returns:
        Warnings.

    Raises:
        MismatchError: Another base is recorded.
    """
    name = adapter.base_name
    if name is None:
        return (("W_BASE_UNKNOWN", "the adapter does not say which base it was trained on"),)
    if names_of(name) & (names_of(base.base) | names_of(str(base_dir))):
        return ()
    given = shown(base.base, base.revision)
    if force:
        return (("W_OTHER_BASE", f"the adapter records the base {shown(name)}, not {given}"),)
    raise MismatchError(f"the adapter was trained on {name}, not on the base given - {given}",
                        hint="give that base (or - to take it), or --force if it is the same model under another name")


def names_of(name: str) -> set[str]:
    """Return what a base may be called by: its whole id or path, its last part, its id in a hub cache's path."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", name)
    if cached:
        return {name, "/".join(cached.groups()), cached.group(2)}
    return {name, str(Path(name).expanduser().resolve()), Path(name).name} - {""}
