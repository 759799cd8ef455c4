"""The entry point: which commands there are, and what every failure looks like."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from ..core.report.verdicts import EXIT_CODES
from .compare import compare
from .errors import failure, show
from .evaluate import evaluate
from .memory import names_small_models, return_freed_memory
from .probe import probe
from .restore import restore
from .schema import schema
from .score import score

HELP = """Put back the refusals that fine-tuning took away from a language model, and keep its task.

BASE is the aligned model, TUNED what fine-tuning made of it: a folder, or a hub id ID[@REVISION][+ADAPTER].
"""

CODES = "\b\nExit codes:\n" + "\n".join(f"{code:>5}  {meaning}" for code, meaning in EXIT_CODES.items())

SOURCES = """A setting is taken from its flag, else from the environment (--batch-size: SAFERESTORE_BATCH_SIZE), else
from --config FILE, else its default.
"""

interrupts: list[bool] = []
"""Whether a Ctrl-C came."""

commands = typer.Typer(name="saferestore", help=HELP, epilog=CODES, rich_markup_mode=None, add_completion=False)
commands.command("restore", epilog=f"{SOURCES}\n{CODES}",
                 context_settings={"auto_envvar_prefix": "SAFERESTORE"})(restore)
commands.command("eval", epilog=f"{SOURCES}\n{CODES}",
                 context_settings={"auto_envvar_prefix": "SAFERESTORE"})(evaluate)
commands.command("compare", epilog=f"{SOURCES}\n{CODES}",
                 context_settings={"auto_envvar_prefix": "SAFERESTORE"})(compare)
commands.command("probe", epilog=f"{SOURCES}\n{CODES}",
                 context_settings={"auto_envvar_prefix": "SAFERESTORE"})(probe)
commands.command("score", epilog=f"{SOURCES}\n{CODES}",
                 context_settings={"auto_envvar_prefix": "SAFERESTORE"})(score)
commands.command("schema")(schema)


@commands.callback(invoke_without_command=True)
def main(context: typer.Context,
         version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Show the help where no command is given."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"saferestore {installed('saferestore')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; every failure ends as two lines on stderr and its exit code."""
    try:
        code = commands(arguments, prog_name="saferestore", standalone_mode=False)
    except Exception as error:
        if interrupts:  # libraries turn a Ctrl-C while they load into errors of their own
            return show(failure(KeyboardInterrupt()), arguments, error)
        return show(failure(error, arguments), arguments, error)
    return show(failure(KeyboardInterrupt()), arguments) if code == 130 else int(code or 0)


def interrupt(*_: object) -> NoReturn:
    """Take a Ctrl-C as Python does, and remember that it came."""
    interrupts.append(True)
    raise KeyboardInterrupt


def app() -> NoReturn:
    """Run the command line of this process; a terminal that lacks a character shows another one."""
    signal.signal(signal.SIGINT, interrupt)
    if not names_small_models(sys.argv[1:]):
        return_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))
