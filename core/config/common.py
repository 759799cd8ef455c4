"""What the settings of all commands share, and how long stages tell of their progress."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import PurePath

from ..errors import UsageError
from .checks import not_negative, one_of

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) by every long stage; `done == total` ends the stage."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


HOME = re.compile(r"(?P<name>[^/~]+[=:])?(?P<path>~.*)", re.DOTALL)
"""A path below a home, alone or after what names it: `~/x`, `NAME=~/x`, `prefix:~/x`."""

DTYPES = ("auto", "bfloat16", "float16", "float32")
GATE_MODES = ("enforce", "advisory")


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What all commands share: how models are loaded and asked.

    Attributes:
        dtype: Of the weights; `auto` is as stored.
        device: `auto` is the fastest there is.
        device_map: Spreads a model over devices, as accelerate names it.
        max_memory: Memory that each device may use, with `device_map`.
        chat_template: `auto` (the tokenizer's own), `none`, or a file.
        system_prompt: System turn of every prompt.
        seed: Of samples, splits and draws.
        offline: Never use the network.
        force: Replace what is there; accept another recorded base.
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    max_memory: str | None = None
    chat_template: str = "auto"
    system_prompt: str | None = None
    seed: int = 0
    offline: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Take paths as text, `~` as the home (shells and YAML leave it), and refuse what could only fail later.

        Raises:
            UsageError: A value outside its range, a name that is no row of its table, or text in place of a tuple.
        """
        for field in fields(self):
            if field.name != "system_prompt":
                object.__setattr__(self, field.name, _path_as_text(getattr(self, field.name)))
            if isinstance(field.default, tuple) and isinstance(value := getattr(self, field.name), str):
                raise UsageError(f"text where several are meant - {field.name}={value!r}", hint=f"give ({value!r},)")
        one_of("dtype", self.dtype, DTYPES)
        not_negative("seed", self.seed)


def _path_as_text(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_path_as_text, value))
    found = HOME.fullmatch(str(value)) if isinstance(value, str | PurePath) else None
    if found:  # where there is no such user, Path's own raises
        return (found["name"] or "") + os.path.expanduser(found["path"])  # noqa: PTH111
    return str(value) if isinstance(value, PurePath) else value
