"""Every command line in README, CONTRIBUTING and docs works as it stands there.

Those that would install or run everything again (`make`, `git clone`, `pip install`) are checked by what they name.
The restoration of the sample model is run once for all; any other restoration is run with few rows and one step,
or, where its model is not on this disk, only parsed.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import DEMO, ROOT, Finished

DOCUMENTS = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
             if path.exists()]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = ("--max-steps", "1", "--fit-rows", "8", "--held-out-rows", "8", "--max-new-tokens", "8", "--no-controls")
SMALL_PROBE = ("--rows", "4", "--points", "3", "--products", "10", "--probes", "2")
SMALL_COMPARISON = ("--rows", "10", "--points", "3", "--directions", "10", "--draws", "1", "--top", "3")
SMALL_SCORE = ("--fit-rows", "8", "--curvature-rows", "16", "--max-new-tokens", "16", "--force")
SMALL_EVAL = ("--limit", "4", "--max-new-tokens", "8", "--force")
DONE = (0, 3, 4)


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a document in these languages."""
    return (body for language, body in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages)


def commands_of(path: Path) -> list[str]:
    """The command lines of a document; a line that ends with a backslash goes on."""
    found = []
    for body in blocks(path, "console", "bash", "sh", "shell"):
        lines = body.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        found += typed or [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [part.strip() for line in found for part in line.split(" && ")]


def is_make_target(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE) for word in words if "=" not in word)


def is_installable(words: list[str]) -> None:
    """Only from this folder: the package is on no index."""
    assert words[0] == "install" and words[-1].split("[")[0] in (".", "-e")
    assert (ROOT / "pyproject.toml").exists()


def is_script(words: list[str]) -> None:
    ast.parse((ROOT / words[0]).read_text(encoding="utf-8"))


def is_clone(words: list[str]) -> None:
    assert words[0] == "clone"


NAMED: dict[str, Callable[[list[str]], None]] = {
    "make": is_make_target, "pip": is_installable, "git": is_clone, "cd": lambda words: None, "python": is_script,
    "python3": is_script, ".ci/run": lambda words: None, ".venv/bin/python": is_script}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("docs")
    (made / "sample_data").symlink_to(ROOT / "sample_data")
    return made


def run_shell(command: str, folder: Path) -> int:
    """Run a command line with the `saferestore` of this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True,
                          text=True, check=False)
    print(done.stdout[-2000:], done.stderr[-2000:])
    return done.returncode


def cheap(words: list[str], folder: Path) -> list[str]:
    """A restoration with few rows, or only parsed where its base is on no disk here."""
    if {"--dry-run", "--print-config", "--help"} & set(words):
        return words
    is_here = (folder / words[2]).exists() or words[2].startswith("-")
    return [*words, *SMALL, "--force"] if is_here else [*words, "--print-config"]


@pytest.mark.parametrize(("document", "command"), [(path.relative_to(ROOT), command) for path in DOCUMENTS
                                                   for command in commands_of(path)], ids=str)
def test_a_command_in_the_documents_works(
        document: Path, command: str, folder: Path, request: pytest.FixtureRequest) -> None:
    words = shlex.split(command)
    if words[0] in NAMED:
        NAMED[words[0]](words[1:])
        assert not words[0].startswith(".ci") or os.access(ROOT / words[0], os.X_OK)
    elif words == ["saferestore", *DEMO]:
        demo: Finished = request.getfixturevalue("demo")
        assert demo.returncode == 0, demo.stderr
    elif words[:2] == ["saferestore", "restore"]:
        assert run_shell(shlex.join(cheap(words, folder)), folder) in DONE
    elif words[:2] == ["saferestore", "probe"]:
        assert run_shell(shlex.join([*words, *SMALL_PROBE]), folder) == 0
    elif words[:2] == ["saferestore", "compare"]:
        assert run_shell(shlex.join([*words, *SMALL_COMPARISON]), folder) == 0
    elif words[:3] == ["saferestore", "eval", "sample_data/tuned"]:
        assert run_shell(shlex.join([*words, *SMALL_EVAL]), folder) in DONE
    elif words[:2] == ["saferestore", "score"]:
        assert run_shell(shlex.join([*words, *SMALL_SCORE]), folder) == 0
    else:
        assert run_shell(command, folder) == 0


def test_the_demo_of_the_makefile_is_the_command_of_the_readme() -> None:
    command = shlex.join(["saferestore", *DEMO])
    assert command in commands_of(ROOT / "README.md")
    assert f"$(VENV)/bin/{command}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_python_in_the_documents_imports_is_there(path: Path) -> None:
    for body in blocks(path, "python"):
        imports = [node for node in ast.parse(body).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), str(path), "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_inside_the_project_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


def test_every_page_of_a_benchmark_is_in_their_index() -> None:
    folder = ROOT / "docs" / "benchmarks"
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in folder.glob("*.md")} - {"README.md"}
