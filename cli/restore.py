"""`saferestore restore BASE TUNED -o OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.config import ENGINES, OBJECTIVES, RestoreConfig, rows_a_batch
from . import options as o

D = RestoreConfig(base="-", tuned="-")
NONE: list[str] = []


def restore(  # one line an option: the command's page of help
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The aligned model, or `-` where the adapter names it.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned adapter or full checkpoint.")],
    out: Annotated[Path | None, o.Out(help="Folder to write: the adapter and its report.")] = None,
    harmful: o.HarmfulFiles = NONE,
    safe: Annotated[list[str], o.Option(metavar=o.FILES, help="Safe answers to them [the base's own].")] = NONE,
    task: Annotated[list[str], o.Option(metavar=o.FILES, help="Task rows with answers.")] = NONE,
    benign: o.BenignFiles = NONE,
    untouched: Annotated[list[str], o.Option(metavar=o.FILES, help="Rows of a skill only measured.")] = NONE,
    train: Annotated[str | None, o.Option(metavar=o.FILES, help="What TUNED was trained on: find the harmful rows.")]
        = D.train,
    objective: Annotated[str, o.Option(help=f"Safety objectives joined by +: {', '.join(OBJECTIVES)}.")] = D.objective,
    engine: Annotated[str, o.Option(help=f"How curvature is inverted: {', '.join(ENGINES)}.")] = D.engine,
    method: Annotated[str, o.Option(help="curvature, a pair such as anchor-cg, or a published one (docs/methods.md).")]
        = D.method,
    strength: Annotated[float | None, o.Option(help="The method's own knob [as far as --max-drift allows].")]
        = D.strength,
    unaligned: Annotated[str | None, o.Option(metavar="REF", help="BASE before alignment (safelora, resta).")]
        = D.unaligned,
    max_drift: Annotated[float, o.Option(help="Drift budget from TUNED on retain rows, nats/token.")] = D.max_drift,
    max_steps: Annotated[int, o.Option(help="Steps at most.")] = D.max_steps,
    fit_rows: Annotated[int, o.Option(help="Harmful rows to fit on, at most.")] = D.fit_rows,
    held_out_rows: Annotated[int, o.Option(help="Rows of each set to measure on, at most.")] = D.held_out_rows,
    hold_out_categories: Annotated[int, o.Option(help="Whole harm categories only measured.")] = D.hold_out_categories,
    limit: o.Limit = D.limit,
    max_new_tokens: o.MaxNewTokens = D.max_new_tokens,
    batch_size: Annotated[Any, o.Option(parser=rows_a_batch, metavar="N|auto", help="Rows a batch.")] = D.batch_size,
    rank: Annotated[int, o.Option(help="Rank of the new adapter of a full checkpoint.")] = D.rank,
    dtype: o.Dtype = D.dtype,
    device: o.Device = D.device,
    device_map: o.DeviceMap = D.device_map,
    max_memory: o.MaxMemory = D.max_memory,
    load_in: o.LoadIn = D.load_in,
    chat_template: o.ChatTemplate = D.chat_template,
    system_prompt: o.SystemPrompt = D.system_prompt,
    seed: Annotated[int, o.Option(help="Seed of splits, samples and directions.")] = D.seed,
    deterministic: o.Deterministic = D.deterministic,
    low_memory: o.LowMemory = D.low_memory,
    controls: Annotated[bool, o.Option("--controls/--no-controls", help="Run the controls, too.")] = D.controls,
    relearn: Annotated[int, o.Option(metavar="ROWS", help="Train on so many harmful rows: how soon is harm back?")]
        = D.relearn,
    gate: Annotated[str | None, o.Option(metavar="FILE", help="Rules; the exit code is their verdict.")] = D.gate,
    gate_mode: Annotated[str, o.Option(help="enforce, or advisory: shown only.")] = D.gate_mode,
    offline: o.Offline = D.offline,
    resume: o.Resume = False,
    restart: o.Restart = False,
    force: o.Force = D.force,
    redact: Annotated[str, o.Option(help="auto, all or none: mask prompts and answers in report.html.")] = D.redact,
    config: Annotated[Path | None, o.config_file(RestoreConfig)] = None,
    dry_run: o.DryRun = False,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    no_progress: o.NoProgress = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """Restore the refusals that TUNED has lost; write an adapter and a report."""
    from .running import Run, View, execute

    view, run = View(json=json, progress=not (no_progress or quiet), quiet=quiet), Run(out, resume, restart)
    return execute(o.settings(context.params, RestoreConfig), run, view, dry_run=dry_run, print_config=print_config)
