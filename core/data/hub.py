"""Rows of a data set on the hub: `ID[SPLIT]`, `ID[CONFIG/SPLIT]`, with `@REVISION`; read through `datasets`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

_SPEC = re.compile(r"(?P<id>(?:[\w-][\w.-]*/)?[\w-][\w.-]*)\[(?:(?P<config>[\w.-]+)/)?(?P<split>[\w.-]+)\]"
                   r"(?:@(?P<revision>[\w./-]+))?")
HINT = "check the id, the split and the connection: ID[SPLIT]@REVISION, or ID[CONFIG/SPLIT]"


@dataclass(frozen=True)
class HubSet:
    """One split of a data set on the hub, at a revision or the newest."""

    id: str
    config: str | None
    split: str
    revision: str | None


def hub_set(spec: str) -> HubSet | None:
    """Return what `ID[SPLIT]@REVISION` names, None for anything else; whether it exists is not asked."""
    match = _SPEC.fullmatch(spec)
    return HubSet(match["id"], match["config"], match["split"], match["revision"]) if match else None


def rows_of(found: HubSet, *, offline: bool = False) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a split as they are downloaded; no code of the data set is run.

    Args:
        found: Which split.
        offline: Take it from the cache of `datasets` only.

    Yields:
        Column name to value.

    Raises:
        UsageError: It cannot be found or read.
    """
    from datasets import DownloadConfig, load_dataset

    offline = offline or bool(os.environ.get("HF_HUB_OFFLINE"))
    try:
        rows: Any = load_dataset(found.id, found.config, split=found.split, revision=found.revision,
                                 streaming=not offline, download_config=DownloadConfig(local_files_only=offline))
        yield from rows
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()
        raise UsageError(f"cannot read the data set - {found.id}[{found.split}]: {(why or ['no reason'])[0][:200]}",
                         hint=HINT) from error


def as_json_lines(found: HubSet, *, offline: bool = False) -> bytes:
    """Return a split as UTF-8 JSON lines, keys sorted, so that the same rows have the same digest everywhere."""
    return "".join(json.dumps(dict(row), sort_keys=True, ensure_ascii=False, default=str) + "\n"
                   for row in rows_of(found, offline=offline)).encode("utf-8", "backslashreplace")
