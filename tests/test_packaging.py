"""What is installed is what stands in the folders; an editable install would hide an omission."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = {"saferestore.cli": "cli", "saferestore.core": "core", "saferestore.sample_data": "sample_data"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_on_disk() -> set[str]:
    """Dotted names of all folders with an __init__.py under the package trees."""
    return {".".join([name, *path.parent.relative_to(ROOT / folder).parts])
            for name, folder in TREES.items() for path in (ROOT / folder).rglob("__init__.py")}


def test_every_folder_is_a_listed_package() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for folder in ("cli", "core") for path in (ROOT / folder).rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_every_dependency_is_pinned() -> None:
    pinned = {line.split("==")[0].lower().replace("_", "-")
              for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    names = {entry.split(">=")[0].split("[")[0].lower().replace("_", "-") for entry in wanted}
    assert not names - pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Made from the source distribution, so that what that lacks is missed here, too."""
    tree = tmp_path_factory.mktemp("tree") / "source"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "out", "out.partial", "tests")
    shutil.copytree(ROOT, tree, ignore=left_out)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", tree / "dist", tree],
                   check=True, capture_output=True)
    return zipfile.ZipFile(next((tree / "dist").glob("*.whl")))


def test_the_wheel_has_one_top_level_package(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name} == {"saferestore"}


def test_the_wheel_carries_every_file_of_the_trees(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(["git", "ls-files", *TREES.values()], cwd=ROOT, check=True, capture_output=True, text=True)
    missing = {f"saferestore/{name}" for name in tracked.stdout.split()} - set(wheel.namelist())
    assert not missing


def test_the_command_and_the_licence_are_installed(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert "saferestore = saferestore.cli.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
