"""Settings from YAML and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import UsageError
from .checks import nearest
from .evaluation import EvalConfig
from .landscape import CompareConfig, ProbeConfig
from .restore import RestoreConfig
from .score import ScoreConfig

AnyConfig = RestoreConfig | EvalConfig | ProbeConfig | CompareConfig | ScoreConfig
"""Settings of any command."""


def read_yaml(path: Path, known: Iterable[str]) -> dict[str, object]:
    """Read settings from a YAML mapping; keys may use `-` or `_`.

    Args:
        path: The file.
        known: Field names that are allowed.

    Returns:
        Field name to value, lists as tuples.

    Raises:
        UsageError: A missing or unreadable file, no mapping, a key given twice, or an unknown one (the nearest known
            one is named).
    """
    import yaml  # takes a tenth of the time that `--help` may

    from .strict_yaml import load_yaml

    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"cannot read configuration - {path}: {why[:200]}",
                         hint="give --config a readable YAML file, each setting once") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"no mapping of settings - {path}", hint="write one `key: value` a line")
    names = [str(key).replace("-", "_") for key in content]
    if twice := next((str(key) for key, name in zip(content, names, strict=True) if names.count(name) > 1), None):
        raise UsageError(f"`{twice}` is given twice, with `-` and with `_` - {path}", hint="write each setting once")
    settings = dict(zip(names, content.values(), strict=True))
    allowed = set(known)
    for key in settings:
        if key not in allowed:
            raise UsageError(f"unknown key `{key}` - {path}", hint=nearest(key, allowed))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def to_yaml(config: AnyConfig) -> str:
    """Return the settings as YAML, sorted by name, as `read_yaml` reads them."""
    import yaml

    plain = {key: list(value) if isinstance(value, tuple) else value
             for key, value in dataclasses.asdict(config).items()}
    return yaml.safe_dump(plain, sort_keys=True, allow_unicode=True)
