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


def test_ctrl_c_while_the_program_is_loaded_is_two_lines() -> None:
    """The signal comes when the commands are first asked for, before anything of theirs is there."""
    code = """
import os, signal, sys
from saferestore.cli.__main__ import main

class Interrupted:
    def find_spec(self, name, *_):
        if name == "saferestore.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupted())
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: interrupted - nothing was done yet\nhint: run the same command again\n"
