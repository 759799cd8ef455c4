"""The house keeps its shape: imports go one way, words stay in cli, weights are never unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (("errors", "params", "config"), ("checkpoint", "data"), ("losses",), ("curvature",),
          ("geometry", "influence", "restoration"), ("evaluation",), ("report",), ("pipeline",), ("cli",))
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(path for folder in ("core", "cli") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> tuple[str, ...]:
    """saferestore.core.x.y as a tuple, of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ("saferestore", *(parts[:-1] if parts[-1] == "__init__" else parts))


def imports_of(path: Path) -> Iterator[tuple[str, ...]]:
    """Every module imported anywhere in a file, relative imports resolved, imported names appended."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[:len(package) - node.level + 1] if node.level else ()
            yield from ((*start, *(node.module or "").split("."), alias.name) if node.module
                        else (*start, alias.name) for alias in node.names)


def part_of(module: tuple[str, ...]) -> str:
    """The layer that a module belongs to: cli, or what follows core."""
    return "cli" if module[1] == "cli" else module[2]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    if module_of(path) == ("saferestore", "core"):
        return
    own = part_of(module_of(path))
    for module in imports_of(path):
        if module[0] == "saferestore" and len(module) > 2:
            other = part_of(module)
            allowed = other == own or RANK[other] < RANK[own] or RANK[other] == RANK[own] == 0
            assert allowed, f"{own} must not import {other}"


def test_every_part_of_core_has_its_place() -> None:
    parts = {part_of(module_of(path)) for path in SOURCES if len(module_of(path)) > 2}
    assert parts <= set(RANK)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_inside_the_package_imports_are_relative(path: Path) -> None:
    found = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    assert not [node.module for node in found if not node.level and node.module.startswith("saferestore")]


def test_only_the_command_line_knows_the_terminal() -> None:
    found = {path.name: {module[0] for module in imports_of(path)} & {"typer", "rich"} for path in SOURCES}
    core = {path.name for path in SOURCES if path.is_relative_to(ROOT / "core")}
    assert not {name for name in core if found[name]}
    assert all(name.startswith("render") for name in found if "rich" in found[name])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call)]
    assert "torch.load" not in calls
    assert not {module[0] for module in imports_of(path)} & {"pickle", "dill", "cloudpickle", "joblib"}
