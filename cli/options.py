"""What commands have in common: options of one meaning, settings from a file, and settings for the calculation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..core.config import AnyConfig, read_yaml
from ..core.errors import UsageError

Settings = TypeVar("Settings", bound=AnyConfig)


def _path(text: str) -> Path:
    """Return the path that was typed: shells leave the `~` of `--out=~/x` as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - where there is no such user, Path's own raises


Option = partial(typer.Option, show_envvar=False)
Out = partial(Option, "--out", "-o", metavar="OUT", parser=_path)
Folder = partial(Option, metavar="DIR", parser=_path)
File = partial(Option, metavar="FILE", parser=_path)
FILES = "FILE[:FORMAT]"

HarmfulFiles = Annotated[list[str], Option(metavar=FILES, help="Harmful prompts [built-in].")]
BenignFiles = Annotated[list[str], Option(metavar=FILES, help="Benign look-alikes [built-in].")]
Limit = Annotated[float | None, Option(help="Rows read of each set, at most, or a share below 1.")]
MaxNewTokens = Annotated[int, Option(help="Longest generated answer, tokens.")]
BatchSize = Annotated[int, Option(help="Rows a batch.")]
Dtype = Annotated[str, Option(help="auto, bfloat16, float16 or float32.")]
Device = Annotated[str, Option(help="auto, cpu, cuda[:N]; for eval mps, too.")]
DeviceMap = Annotated[str | None, Option(help="Spread the model: auto, balanced, ...")]
MaxMemory = Annotated[str | None, Option(help="Memory a device may use, with --device-map.")]
LoadIn = Annotated[str | None, Option(help="Quantise frozen weights: 4bit or 8bit.")]
ChatTemplate = Annotated[str, Option(help="auto, none or FILE.")]
SystemPrompt = Annotated[str | None, Option(help="System turn of every prompt.")]
Deterministic = Annotated[bool, Option("--deterministic", help="The same bits every time, on a GPU too.")]
LowMemory = Annotated[bool, Option("--low-memory", help="Less memory, more time.")]
Offline = Annotated[bool, Option("--offline", help="Never use the network.")]
Force = Annotated[bool, Option("--force", help="Replace OUT; accept another recorded base.")]
Resume = Annotated[bool, Option("--resume", help="Go on with an interrupted run.")]
Restart = Annotated[bool, Option("--restart", help="Drop an interrupted run and begin again.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check everything, print the plan, load no weights.")]
PrintConfig = Annotated[bool, Option("--print-config", help="Print the settings as YAML and stop.")]
Json = Annotated[bool, Option("--json", help="Print the document as JSON on stdout.")]
NoProgress = Annotated[bool, Option("--no-progress", help="No progress bars on stderr.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="One line of result; no bars, no warnings.")]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of a failure.")]


def config_file(kind: type[AnyConfig]) -> Any:
    """Return the option `--config FILE`: defaults of a command, below its flags and the environment."""
    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            fields = {field.name: field for field in dataclasses.fields(kind)}
            context.default_map = {name: _as_given(name, value, fields[name].default)
                                   for name, value in read_yaml(path, fields).items()}
        return path

    return File("--config", "-c", is_eager=True, callback=read, help="YAML of these settings; flags win over it.")


def settings(given: Mapping[str, Any], kind: type[Settings]) -> Settings:
    """Return the settings among a command's parameters; raises UsageError where one is out of range."""
    values: dict[str, Any] = {field.name: tuple(value) if isinstance(value := given[field.name], list) else value
                              for field in dataclasses.fields(kind)}
    return kind(**values)


def _as_given(name: str, value: object, default: object) -> object:
    """Let one file stand for a list of one; raises UsageError where YAML read another kind of value than is meant."""
    several = isinstance(default, tuple)
    parts = value if isinstance(value, tuple) and several else (value,)
    kinds = (tuple, list, dict) if isinstance(default, bool) else (tuple, list, dict, bool)
    if any(isinstance(part, kinds) for part in parts):
        shown = list(value) if isinstance(value, tuple) else value
        raise UsageError(f"not a value of this setting - {name}: {shown}",
                         hint=f"give one value{' or a list of them' if several else ''}; text such as 'yes' in quotes")
    return [value] if isinstance(value, str) and several else value
