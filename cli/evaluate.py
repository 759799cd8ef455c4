"""`saferestore eval MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.config import EvalConfig
from . import options as o

D = EvalConfig(model="")
FILES = "[NAME=]FILE[:FORMAT]"
NONE: list[str] = []
JUDGES = [*D.judge]


def evaluate(  # one line an option: the command's page of help
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An adapter, a full checkpoint, or BASE+ADAPTER.")] = "",
    out: Annotated[Path | None, o.Out(help="Folder for results, samples, junit, summary.")] = None,
    base: Annotated[str | None, o.Option(help="Its aligned base, evaluated beside it.")] = D.base,
    tuned: Annotated[str | None, o.Option(help="What it was restored from, evaluated beside it.")] = D.tuned,
    system: Annotated[str, o.Option(help="What MODEL is: auto, base, tuned or restored.")] = D.system,
    harmful: Annotated[list[str], o.Option(metavar=FILES, help="Harmful prompts [built-in without any set].")] = NONE,
    benign: Annotated[list[str], o.Option(metavar=FILES, help="Benign look-alikes [built-in without any set].")] = NONE,
    task: Annotated[list[str], o.Option(metavar=FILES, help="Task rows with answers, or choices.")] = NONE,
    untouched: Annotated[list[str], o.Option(metavar=FILES, help="Rows of a skill in no fit set.")] = NONE,
    set: Annotated[list[str], o.Option(metavar="NAME=FILE[:FORMAT]", help="A set; its format says what for.")] = NONE,
    generations: Annotated[list[str], o.Option(metavar="FILE", help="Judge answers that exist; no MODEL.")] = NONE,
    judge: Annotated[list[str], o.Option(metavar="NAME", help="A judge's name, or RUBRIC=MODEL; several side by side.")]
        = JUDGES,
    attack: Annotated[list[str], o.Option(metavar="NAME", help="prefill:K, template:NAME, decode:GRID, manyshot:N ...")]
        = NONE,
    shots: Annotated[str, o.Option(help="Solved rows before each task row, as in 0,1,4.")] = D.shots,
    lm_eval: Annotated[str | None, o.Option(metavar="TASKS", help="Tasks of lm-evaluation-harness.")] = D.lm_eval,
    calibrate: Annotated[list[str], o.Option(metavar="FILE", help="Labelled answers: how good are the judges?")] = NONE,
    gate: Annotated[str | None, o.Option(metavar="FILE", help="Rules; the exit code is their verdict.")] = D.gate,
    gate_mode: Annotated[str, o.Option(help="enforce, or advisory: shown, exit code 0.")] = D.gate_mode,
    baseline: Annotated[str | None, o.Option(metavar="FILE", help="Results to compare with.")] = D.baseline,
    write_baseline: Annotated[Path | None, o.File(help="Keep these results to compare with.")] = None,
    limit: o.Limit = D.limit,
    max_errors: Annotated[int, o.Option(help="Unreadable judgements allowed; -1 for any.")] = D.max_errors,
    max_new_tokens: o.MaxNewTokens = D.max_new_tokens,
    batch_size: Annotated[str, o.Option(help="Prompts a batch, or auto.")] = D.batch_size,
    dtype: o.Dtype = D.dtype,
    device: o.Device = D.device,
    device_map: o.DeviceMap = D.device_map,
    max_memory: o.MaxMemory = D.max_memory,
    load_in: o.LoadIn = D.load_in,
    chat_template: o.ChatTemplate = D.chat_template,
    system_prompt: o.SystemPrompt = D.system_prompt,
    seed: Annotated[int, o.Option(help="Seed of samples, shots and draws.")] = D.seed,
    deterministic: o.Deterministic = D.deterministic,
    offline: o.Offline = D.offline,
    force: o.Force = D.force,
    redact: Annotated[str, o.Option(help="auto, all or none: mask prompts and answers in samples.jsonl.")] = D.redact,
    resume: o.Resume = False,
    restart: o.Restart = False,
    config: Annotated[Path | None, o.config_file(EvalConfig)] = None,
    dry_run: o.DryRun = False,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    no_progress: o.NoProgress = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """Measure harm, over-refusal and utility of MODEL, and pass or fail a gate."""
    from .evaluating import Run, execute
    from .running import View

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    run = Run(out, write_baseline, resume=resume, restart=restart, calibrate=tuple(calibrate))
    return execute(o.settings(context.params, EvalConfig), run, view, dry_run=dry_run, print_config=print_config)
