"""`saferestore restore BASE TUNED -o OUT`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..core.config import ENGINES, OBJECTIVES, RestoreConfig
from .options import read_defaults, settings

D = RestoreConfig(base="-", tuned="-")
FILES = "FILE[:FORMAT]"
NONE: list[str] = []
Option = partial(typer.Option, show_envvar=False)  # the epilog says it once


def restore(  # one line an option: the command's page of help
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The aligned model, or `-` where the adapter names it.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned adapter or full checkpoint.")],
    out: Annotated[Path | None, Option("--out", "-o", help="Folder to write: the adapter and its report.")] = None,
    harmful: Annotated[list[str], Option(metavar=FILES, help="Harmful prompts [built-in].")] = NONE,
    safe: Annotated[list[str], Option(metavar=FILES, help="Safe answers to them [the base's own].")] = NONE,
    task: Annotated[list[str], Option(metavar=FILES, help="Task rows with answers.")] = NONE,
    benign: Annotated[list[str], Option(metavar=FILES, help="Benign look-alikes [built-in].")] = NONE,
    untouched: Annotated[list[str], Option(metavar=FILES, help="Rows of a skill only measured.")] = NONE,
    objective: Annotated[str, Option(help=f"Safety objectives joined by +: {', '.join(OBJECTIVES)}.")] = D.objective,
    engine: Annotated[str, Option(help=f"How curvature is inverted: {', '.join(ENGINES)}.")] = D.engine,
    method: Annotated[str, Option(help="curvature, a pair such as anchor-cg, or a published one (docs/methods.md).")]
        = D.method,
    strength: Annotated[float | None, Option(help="The method's own knob [as far as --max-drift allows].")]
        = D.strength,
    unaligned: Annotated[str | None, Option(metavar="REF", help="BASE before alignment (safelora, resta).")]
        = D.unaligned,
    max_drift: Annotated[float, Option(help="Drift budget from TUNED on retain rows, nats/token.")] = D.max_drift,
    max_steps: Annotated[int, Option(help="Steps at most.")] = D.max_steps,
    fit_rows: Annotated[int, Option(help="Harmful rows to fit on, at most.")] = D.fit_rows,
    held_out_rows: Annotated[int, Option(help="Rows of each set to measure on, at most.")] = D.held_out_rows,
    hold_out_categories: Annotated[int, Option(help="Whole harm categories only measured.")] = D.hold_out_categories,
    max_new_tokens: Annotated[int, Option(help="Longest generated answer, tokens.")] = D.max_new_tokens,
    batch_size: Annotated[int, Option(help="Rows a batch.")] = D.batch_size,
    rank: Annotated[int, Option(help="Rank of the new adapter of a full checkpoint.")] = D.rank,
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32.")] = D.dtype,
    device: Annotated[str, Option(help="auto, cpu, cuda[:N] or mps.")] = D.device,
    device_map: Annotated[str | None, Option(help="Spread the model: auto, balanced, ...")] = D.device_map,
    max_memory: Annotated[str | None, Option(help="Memory a device may use, with --device-map.")] = D.max_memory,
    load_in: Annotated[str | None, Option(help="Quantise frozen weights: 4bit or 8bit.")] = D.load_in,
    chat_template: Annotated[str, Option(help="auto, none or FILE.")] = D.chat_template,
    system_prompt: Annotated[str | None, Option(help="System turn of every prompt.")] = D.system_prompt,
    seed: Annotated[int, Option(help="Seed of splits, samples and directions.")] = D.seed,
    low_memory: Annotated[bool, Option("--low-memory", help="Less memory, more time.")] = D.low_memory,
    controls: Annotated[bool, Option("--controls/--no-controls", help="Run the controls, too.")] = D.controls,
    gate: Annotated[str | None, Option(metavar="FILE", help="Rules for what is made; they decide the exit.")] = D.gate,
    gate_mode: Annotated[str, Option(help="enforce, or advisory: shown only.")] = D.gate_mode,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = D.offline,
    force: Annotated[bool, Option("--force", help="Replace OUT; accept another recorded base.")] = D.force,
    redact: Annotated[str, Option(help="auto, all or none: mask prompts and model text.")] = D.redact,
    config: Annotated[Path | None, Option("--config", "-c", is_eager=True, callback=read_defaults,
                                          help="YAML of these settings; flags win over it.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Check everything, print the plan, load no weights.")] = False,
    print_config: Annotated[bool, Option("--print-config", help="Print the settings as YAML and stop.")] = False,
    json: Annotated[bool, Option("--json", help="Print the report as JSON on stdout.")] = False,
    no_progress: Annotated[bool, Option("--no-progress", help="No progress bars on stderr.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="One line of result; no bars, no warnings.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of a failure.")] = False,
) -> int:
    """Restore the refusals that TUNED has lost; write an adapter and a report."""
    from .running import View, execute

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    return execute(settings(context.params, RestoreConfig), out, view, dry_run=dry_run, print_config=print_config)
