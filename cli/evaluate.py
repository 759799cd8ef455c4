"""`saferestore eval MODEL`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..core.config import EvalConfig
from .options import read_eval_defaults, settings

D = EvalConfig(model="")
FILES = "[NAME=]FILE[:FORMAT]"
NONE: list[str] = []
JUDGES = [*D.judge]
Option = partial(typer.Option, show_envvar=False)


def evaluate(  # one line an option: the command's page of help
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An adapter, a full checkpoint, or BASE+ADAPTER.")] = "",
    out: Annotated[Path | None, Option("--out", "-o", help="Folder for results, samples, junit, summary.")] = None,
    base: Annotated[str | None, Option(help="Its aligned base, evaluated beside it.")] = D.base,
    tuned: Annotated[str | None, Option(help="What it was restored from, evaluated beside it.")] = D.tuned,
    system: Annotated[str, Option(help="What MODEL is: auto, base, tuned or restored.")] = D.system,
    harmful: Annotated[list[str], Option(metavar=FILES, help="Harmful prompts [built-in].")] = NONE,
    benign: Annotated[list[str], Option(metavar=FILES, help="Benign look-alikes [built-in].")] = NONE,
    task: Annotated[list[str], Option(metavar=FILES, help="Task rows with answers, or choices.")] = NONE,
    untouched: Annotated[list[str], Option(metavar=FILES, help="Rows of a skill in no fit set.")] = NONE,
    set: Annotated[list[str], Option(metavar="NAME=FILE[:FORMAT]", help="A set; its format says what for.")] = NONE,
    generations: Annotated[list[str], Option(metavar="FILE", help="Judge answers that exist; no MODEL.")] = NONE,
    judge: Annotated[list[str], Option(help="A judge's name, or RUBRIC=MODEL; several side by side.")] = JUDGES,
    attack: Annotated[list[str], Option(help="prefill:K, template:NAME, decode:GRID, manyshot:N, ...")] = NONE,
    shots: Annotated[str, Option(help="Solved rows before each task row, as in 0,1,4.")] = D.shots,
    lm_eval: Annotated[str | None, Option(metavar="TASKS", help="Tasks of lm-evaluation-harness.")] = D.lm_eval,
    calibrate: Annotated[list[str], Option(metavar="FILE", help="Labelled answers: how good are the judges?")] = NONE,
    gate: Annotated[str | None, Option(metavar="FILE", help="Rules; the exit code is their verdict.")] = D.gate,
    gate_mode: Annotated[str, Option(help="enforce, or advisory: shown, exit code 0.")] = D.gate_mode,
    baseline: Annotated[str | None, Option(metavar="FILE", help="Results to compare with.")] = D.baseline,
    write_baseline: Annotated[Path | None, Option(metavar="FILE", help="Keep these results to compare with.")] = None,
    limit: Annotated[float | None, Option(help="Rows of each set at most, or a share below 1.")] = D.limit,
    max_errors: Annotated[int, Option(help="Unreadable judgements allowed; -1 for any.")] = D.max_errors,
    max_new_tokens: Annotated[int, Option(help="Longest generated answer, tokens.")] = D.max_new_tokens,
    batch_size: Annotated[str, Option(help="Prompts a batch, or auto.")] = D.batch_size,
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32.")] = D.dtype,
    device: Annotated[str, Option(help="auto, cpu, cuda[:N] or mps.")] = D.device,
    device_map: Annotated[str | None, Option(help="Spread the model: auto, balanced, ...")] = D.device_map,
    max_memory: Annotated[str | None, Option(help="Memory a device may use, with --device-map.")] = D.max_memory,
    load_in: Annotated[str | None, Option(help="Quantise frozen weights: 4bit or 8bit.")] = D.load_in,
    chat_template: Annotated[str, Option(help="auto, none or FILE.")] = D.chat_template,
    system_prompt: Annotated[str | None, Option(help="System turn of every prompt.")] = D.system_prompt,
    seed: Annotated[int, Option(help="Seed of samples, shots and draws.")] = D.seed,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = D.offline,
    force: Annotated[bool, Option("--force", help="Replace OUT; accept another recorded base.")] = D.force,
    redact: Annotated[str, Option(help="auto, all or none: mask prompts and answers in samples.jsonl.")] = D.redact,
    resume: Annotated[bool, Option("--resume", help="Go on with a run that was interrupted.")] = False,
    restart: Annotated[bool, Option("--restart", help="Drop an interrupted run and begin again.")] = False,
    config: Annotated[Path | None, Option("--config", "-c", is_eager=True, callback=read_eval_defaults,
                                          help="YAML of these settings; flags win over it.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Check everything, print the plan, load no weights.")] = False,
    print_config: Annotated[bool, Option("--print-config", help="Print the settings as YAML and stop.")] = False,
    json: Annotated[bool, Option("--json", help="Print the results as JSON on stdout.")] = False,
    no_progress: Annotated[bool, Option("--no-progress", help="No progress bars on stderr.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="One line of result; no bars, no warnings.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of a failure.")] = False,
) -> int:
    """Measure harm, over-refusal and utility of MODEL, and pass or fail a gate."""
    from .evaluating import Run, execute
    from .running import View

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    run = Run(out, write_baseline, resume=resume, restart=restart, calibrate=tuple(calibrate))
    return execute(settings(context.params, EvalConfig), run, view, dry_run=dry_run, print_config=print_config)
