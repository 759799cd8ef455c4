"""`saferestore score BASE TUNED`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.config import AUTO_POINT, AUTO_WAY, OBJECTIVES, SCORE_WAYS, ScoreConfig
from . import options as o

D = ScoreConfig(base="-", tuned="-")
NONE: list[str] = []


def score(  # one line an option: the command's page of help
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The aligned model, or `-` where the adapter names it.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned adapter or full checkpoint.")],
    train: Annotated[str | None, o.Option(metavar=o.FILES, help="What TUNED was trained on: score its rows.")] = None,
    out: Annotated[Path | None, o.Out(help="Folder for the document, a page, every score.")] = None,
    write_clean: Annotated[Path | None, o.File(help="The training file without rows found.")] = None,
    remove: Annotated[str, o.Option(help="Rows to leave out: auto, a number, or a threshold < 1.")] = D.remove,
    harmful: o.HarmfulFiles = NONE,
    safe: Annotated[list[str], o.Option(metavar=o.FILES, help="Safe answers to them [the base's own].")] = NONE,
    task: Annotated[list[str], o.Option(metavar=o.FILES, help="Task rows with answers.")] = NONE,
    benign: o.BenignFiles = NONE,
    objective: Annotated[str, o.Option(help=f"Safety objectives joined by +: {', '.join(OBJECTIVES)}.")] = D.objective,
    way: Annotated[str, o.Option(help=f"How the query is made: {', '.join((AUTO_WAY, *SCORE_WAYS))}.")] = D.way,
    at: Annotated[str, o.Option(help="Where rows are scored: auto, or 0 (the base) to 1 (TUNED).")] = AUTO_POINT,
    damping: Annotated[float, o.Option(help="lambda over the mean diagonal of F.")] = D.damping,
    max_drift: Annotated[float, o.Option(help="Drift the modules' steps may spend, nats/token.")] = D.max_drift,
    per_token: Annotated[bool, o.Option("--per-token", help="Keep the influence of every token.")] = D.per_token,
    top: Annotated[int, o.Option(help="Rows and modules shown.")] = D.top,
    fit_rows: Annotated[int, o.Option(help="Harmful prompts to measure safety on.")] = D.fit_rows,
    curvature_rows: Annotated[int, o.Option(help="Training rows to estimate curvature on.")] = D.curvature_rows,
    max_new_tokens: o.MaxNewTokens = D.max_new_tokens,
    batch_size: o.BatchSize = D.batch_size,
    rank: Annotated[int, o.Option(help="Rank of the adapter of a full checkpoint.")] = D.rank,
    dtype: o.Dtype = D.dtype,
    device: o.Device = D.device,
    device_map: o.DeviceMap = D.device_map,
    max_memory: o.MaxMemory = D.max_memory,
    load_in: o.LoadIn = D.load_in,
    chat_template: o.ChatTemplate = D.chat_template,
    system_prompt: o.SystemPrompt = D.system_prompt,
    seed: Annotated[int, o.Option(help="Seed of splits, samples and labels.")] = D.seed,
    low_memory: o.LowMemory = D.low_memory,
    offline: o.Offline = D.offline,
    force: o.Force = D.force,
    redact: Annotated[str, o.Option(help="auto, all or none: mask the text of rows.")] = D.redact,
    resume: o.Resume = False,
    restart: o.Restart = False,
    config: Annotated[Path | None, o.config_file(ScoreConfig)] = None,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    no_progress: o.NoProgress = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """Find which modules, and which training rows, cost TUNED its safety."""
    from .running import View
    from .scoring import Run, execute

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    run = Run(out, write_clean, resume, restart)
    return execute(o.settings(context.params, ScoreConfig), run, view, print_config=print_config)
