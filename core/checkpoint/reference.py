"""What the user types for a checkpoint, `ID_OR_PATH[@REVISION][+ADAPTER[@REVISION]]`, and where its files are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tqdm.auto import tqdm

from ..config import Progress, no_progress
from ..errors import UsageError
from .quiet import quiet

RECORDED = "-"
"""Typed for BASE where the adapter itself names its base."""

WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "vocab.txt", "merges.txt")
UNWANTED_FILES = ("*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.py", "*.gguf", "*.onnx")


@dataclass(frozen=True)
class Reference:
    """A checkpoint as typed.

    Attributes:
        base: Local folder or hub id.
        revision: Branch, tag or commit of a hub id.
        adapter: Local folder or hub id of an adapter on top of `base`.
        adapter_revision: Its branch, tag or commit.
        text: What the user typed.
    """

    base: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    text: str


def parse_reference(text: str) -> Reference:
    """Read `ID_OR_PATH[@REVISION][+ADAPTER[@REVISION]]`; an existing local path wins, even one with `@` or `+`.

    Args:
        text: As typed.

    Returns:
        Its parts.

    Raises:
        UsageError: An empty reference, or nothing before or after a `+`.
    """
    base, adapter = _split_adapter(text)
    if not base or adapter == "":
        raise UsageError(f"incomplete reference - {text!r}", hint="write ID_OR_PATH[@REVISION][+ADAPTER[@REVISION]]")
    name, revision = _split_revision(base)
    adapter_name, adapter_revision = _split_revision(adapter) if adapter else (None, None)
    return Reference(name, revision, adapter_name, adapter_revision, text)


def _split_adapter(text: str) -> tuple[str, str | None]:
    if _exists(text) or "+" not in text:
        return text, None
    splits = [(text[:i], text[i + 1 :]) for i, character in enumerate(text) if character == "+"]
    # A folder may have `+` in its name: the split whose left side exists is meant, else the first.
    return next((split for split in splits if _exists(split[0])), splits[0])


def _split_revision(text: str) -> tuple[str, str | None]:
    if _exists(text) or looks_like_path(text) or "@" not in text:
        return text, None
    name, _, revision = text.rpartition("@")
    return name, revision


def _exists(text: str) -> bool:
    return bool(text) and Path(text).expanduser().exists()


def looks_like_path(name: str) -> bool:
    """Tell whether `name` can only be meant as a local path: such a name never goes to the network."""
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or os.sep != "/" and os.sep in name
        or name.endswith((".safetensors", "/"))
    )


def shown(name: str, revision: str | None = None) -> str:
    """Return `name` as it may be written into a file meant to be shared: an absolute path keeps its last part only."""
    if Path(name).is_absolute() or name.startswith("~"):
        return Path(name).name
    return f"{name}@{revision}" if revision else name


def locate(name: str, revision: str | None = None, *, offline: bool = False,
           progress: Progress = no_progress) -> Path:
    """Return the local folder of a checkpoint, downloading a hub id's safetensors, JSON and tokenizer files.

    Args:
        name: Local folder or hub id.
        revision: Branch, tag or commit of a hub id.
        offline: Take a hub id from the local cache only.
        progress: Called with the bytes downloaded.

    Returns:
        The folder, absolute.

    Raises:
        UsageError: No such folder, a file instead of a folder, or a hub id that cannot be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise UsageError(f"not a folder - {name}", hint=f"give the folder of the checkpoint: {path.parent}")
    if looks_like_path(name):
        raise UsageError(f"no such folder - {name}", hint="check the path; a hub id has the form OWNER/NAME")
    return _download(name, revision, offline, progress)


def _download(name: str, revision: str | None, offline: bool, progress: Progress) -> Path:
    try:
        with quiet():
            folder = snapshot_download(name, revision=revision, local_files_only=offline,
                                       tqdm_class=_relay(f"downloading {name}", progress),
                                       allow_patterns=list(WANTED_FILES), ignore_patterns=list(UNWANTED_FILES))
    except Exception as error:  # the hub client's transport, and so its exceptions, change between versions
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the hub
        what, hint = next(row for kind, *row in HUB_FAILURES if isinstance(error, kind))
        raise UsageError(f"{what} - {shown(name, revision)}", hint=hint.format(name=name)) from error
    return Path(folder)


def _relay(stage: str, progress: Progress) -> type[tqdm]:
    """Return a bar that draws nothing and hands its bytes to `progress`."""

    class Relay(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **(settings | {"disable": True}))
            self.counts_bytes, self.done = settings.get("unit") == "B", 0

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if self.counts_bytes:
                progress(stage, self.done, max(self.done, int(self.total or 0)))

    return Relay


HUB_FAILURES: tuple[tuple[type[Exception], str, str], ...] = (
    (HFValidationError, "neither a folder nor a hub id", "check the path; a hub id has the form OWNER/NAME"),
    (GatedRepoError, "access to this repository is restricted",
     "accept its terms at https://huggingface.co/{name} and run: hf auth login"),
    (LocalEntryNotFoundError, "no such folder, and not in the local cache (hub not reached)",
     "check the path, or with a connection run: hf download {name}"),
    (HfHubHTTPError, "no such folder, and the hub does not give it",
     "check spelling and revision; for a private repository run: hf auth login"),
    (Exception, "no such folder, and the download failed",
     "check the path, or with a connection run: hf download {name}"),
)
"""Exception of the hub client, what it means, what to do: the first row that fits."""
