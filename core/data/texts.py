"""Plain text files a user names, read whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .containers import decode


@dataclass(frozen=True)
class TextFile:
    """A file's text, its name without the folder so that it may be published, and the digest of its bytes."""

    text: str
    name: str
    sha256: str


def read_text(path: str, flag: str) -> TextFile:
    """Read a UTF-8 file; one that is empty or not UTF-8 is a UsageError, too.

    Args:
        path: The file.
        flag: What named it, for errors, such as `--attack suffix:FILE`.

    Returns:
        Its text and what identifies it.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read file - {path}: {error.strerror}", hint=f"give {flag} a readable file") from error
    return TextFile(decode(content, path), Path(path).name, hashlib.sha256(content).hexdigest())
