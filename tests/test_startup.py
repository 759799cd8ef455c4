"""The command line answers before a person notices: nothing heavy is imported until it is needed."""

from __future__ import annotations

import resource
import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "numpy", "scipy", "rich", "jinja2", "jsonschema", "huggingface_hub")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, saferestore.cli.app; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_takes_at_most_three_tenths_of_a_second() -> None:
    """The best of several, in processor time: what the program takes, not what else the machine does."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "saferestore.cli", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) <= 0.3
