"""`saferestore score BASE TUNED`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..core.config import OBJECTIVES, SCORE_WAYS, ScoreConfig
from .options import read_score_defaults, settings

D = ScoreConfig(base="-", tuned="-")
NONE: list[str] = []
FILES = "FILE[:FORMAT]"
Option = partial(typer.Option, show_envvar=False)


def score(  # one line an option: the command's page of help
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The aligned model, or `-` where the adapter names it.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned adapter or full checkpoint.")],
    train: Annotated[str | None, Option(metavar=FILES, help="What TUNED was trained on: score its rows.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Folder for the document, a page, every score.")] = None,
    write_clean: Annotated[Path | None, Option(metavar="FILE", help="The training file without rows found.")] = None,
    remove: Annotated[str, Option(help="Rows to leave out: auto, a number, or a threshold < 1.")] = D.remove,
    harmful: Annotated[list[str], Option(metavar=FILES, help="Harmful prompts [built-in].")] = NONE,
    safe: Annotated[list[str], Option(metavar=FILES, help="Safe answers to them [the base's own].")] = NONE,
    task: Annotated[list[str], Option(metavar=FILES, help="Task rows with answers.")] = NONE,
    benign: Annotated[list[str], Option(metavar=FILES, help="Benign look-alikes [built-in].")] = NONE,
    objective: Annotated[str, Option(help=f"Safety objectives joined by +: {', '.join(OBJECTIVES)}.")] = D.objective,
    way: Annotated[str, Option(help=f"How the query is made: {', '.join(SCORE_WAYS)}.")] = D.way,
    at: Annotated[float, Option(help="Where rows are scored: 1 the tuned model, toward 0 the base.")] = D.at,
    damping: Annotated[float, Option(help="lambda over the mean diagonal of F.")] = D.damping,
    max_drift: Annotated[float, Option(help="Drift the modules' steps may spend, nats/token.")] = D.max_drift,
    per_token: Annotated[bool, Option("--per-token", help="Keep the influence of every token.")] = D.per_token,
    top: Annotated[int, Option(help="Rows and modules shown.")] = D.top,
    fit_rows: Annotated[int, Option(help="Harmful prompts to measure safety on.")] = D.fit_rows,
    curvature_rows: Annotated[int, Option(help="Training rows to estimate curvature on.")] = D.curvature_rows,
    max_new_tokens: Annotated[int, Option(help="Longest generated answer, tokens.")] = D.max_new_tokens,
    batch_size: Annotated[int, Option(help="Rows a batch.")] = D.batch_size,
    rank: Annotated[int, Option(help="Rank of the adapter of a full checkpoint.")] = D.rank,
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32.")] = D.dtype,
    device: Annotated[str, Option(help="auto, cpu, cuda[:N] or mps.")] = D.device,
    device_map: Annotated[str | None, Option(help="Spread the model: auto, balanced, ...")] = D.device_map,
    max_memory: Annotated[str | None, Option(help="Memory a device may use, with --device-map.")] = D.max_memory,
    load_in: Annotated[str | None, Option(help="Quantise frozen weights: 4bit or 8bit.")] = D.load_in,
    chat_template: Annotated[str, Option(help="auto, none or FILE.")] = D.chat_template,
    system_prompt: Annotated[str | None, Option(help="System turn of every prompt.")] = D.system_prompt,
    seed: Annotated[int, Option(help="Seed of splits, samples and labels.")] = D.seed,
    low_memory: Annotated[bool, Option("--low-memory", help="Less memory, more time.")] = D.low_memory,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = D.offline,
    force: Annotated[bool, Option("--force", help="Replace what is written; accept another base.")] = D.force,
    redact: Annotated[str, Option(help="auto, all or none: mask the text of rows.")] = D.redact,
    resume: Annotated[bool, Option("--resume", help="Go on with an interrupted run.")] = False,
    restart: Annotated[bool, Option("--restart", help="Throw an interrupted run away.")] = False,
    config: Annotated[Path | None, Option("--config", "-c", is_eager=True, callback=read_score_defaults,
                                          help="YAML of settings; flags win.")] = None,
    print_config: Annotated[bool, Option("--print-config", help="Print the settings as YAML and stop.")] = False,
    json: Annotated[bool, Option("--json", help="Print the document as JSON on stdout.")] = False,
    no_progress: Annotated[bool, Option("--no-progress", help="No progress bars on stderr.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="One line of result; no bars, no warnings.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of a failure.")] = False,
) -> int:
    """Find which modules, and which training rows, cost TUNED its safety."""
    from .running import View
    from .scoring import Run, execute

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    run = Run(out, write_clean, resume, restart)
    return execute(settings(context.params, ScoreConfig), run, view, print_config=print_config)
