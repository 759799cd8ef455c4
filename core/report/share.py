"""What may leave the machine: settings and the command without absolute paths, and nothing of the environment."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import shlex
from pathlib import Path
from typing import TypeVar

from ..config import AnyConfig, RestoreConfig

Settings = TypeVar("Settings", bound=AnyConfig)

PACKAGES = ("accelerate", "huggingface_hub", "jinja2", "jsonschema", "numpy", "peft", "pyyaml", "safetensors",
            "scipy", "tokenizers", "torch", "transformers")
"""Packages whose versions can change a result or a file."""

JOINT = re.compile(r"(?<=[=:,])(?=~|/(?!/))")
"""Where an absolute path follows something else: NAME=FILE, RUBRIC=MODEL, suffix:FILE, A,B."""


def shareable(text: str) -> str:
    """Return a reference or FILE[:FORMAT] without absolute paths.

    Args:
        text: `ID_OR_PATH[@REVISION][+ADAPTER]` or a file, perhaps after NAME=, NAME: or another and a comma;
            anything else comes back as it is.

    Returns:
        The same with each absolute path made relative to the working folder or, outside of it, cut to its last
        part.
    """
    return "+".join(_relative(part) for part in text.split("+"))


def shareable_settings(config: Settings) -> Settings:
    """Return the settings with every path made shareable, and `force` off: repeating must not overwrite."""
    shared = {key: _shareable_value(value) for key, value in dataclasses.asdict(config).items()}
    return dataclasses.replace(config, **{**shared, "force": False})


def command_line(config: RestoreConfig) -> str:
    """Return the shell command that stands for these settings, whatever mix of flags, files and API made them.

    Args:
        config: The settings of a run.

    Returns:
        One line; settings at their default are left out, the folder written is the word OUT, no absolute path.
    """
    shared = shareable_settings(config)
    words = ["saferestore", "restore", shared.base, shared.tuned]
    for field in sorted(dataclasses.fields(shared), key=lambda each: bool(each.kw_only)):  # shared ones are last
        value = getattr(shared, field.name)
        if field.name not in ("base", "tuned") and value != field.default:
            words += _flag(field.name.replace("_", "-"), value)
    return shlex.join([*words, "-o", "OUT"])


def requirements() -> str:
    """Return the installed versions as a requirements file, sorted, with those of Python and this in a comment."""
    lines = [f"# saferestore {_version('saferestore')}, Python {platform.python_version()}"]
    lines += [f"{name}=={version}" for name in PACKAGES if (version := _version(name))]
    return "\n".join(lines) + "\n"


def environment() -> dict[str, str]:
    """Return what the numbers may depend on: versions and the platform; no host name, no path, no user."""
    versions = {name: _version(name) for name in ("saferestore", *PACKAGES)}
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}",
            **{name: version for name, version in versions.items() if version}}


def _shareable_value(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_shareable_value, value))
    return shareable(value) if isinstance(value, str) else value


def _relative(part: str) -> str:
    head, *tail = JOINT.split(part, maxsplit=1)
    if tail:
        return _relative(head[:-1]) + head[-1] + _relative(tail[0])
    path = Path(os.path.expanduser(part))  # noqa: PTH111 - where there is no such user, Path's own raises
    if not path.is_absolute():
        return part
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else path.name


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple):
        return [word for item in value for word in (f"--{name}", str(item))]
    return [f"--{name}", str(int(value) if isinstance(value, float) and value.is_integer() else value)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
