"""`saferestore compare BASE TUNED`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..core.config import UNRELATED, CompareConfig
from .options import read_compare_defaults, settings

D = CompareConfig(base="-", tuned="-")
NONE: list[str] = []
FILES = "FILE[:FORMAT]"
Option = partial(typer.Option, show_envvar=False)


def compare(  # one line an option: the command's page of help
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The aligned model, or `-` where the adapter names it.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned adapter or full checkpoint.")],
    out: Annotated[Path | None, Option("--out", "-o", help="Folder for the document, a page and pictures.")] = None,
    plots: Annotated[Path | None, Option(metavar="DIR", help="Folder for the pictures alone.")] = None,
    harmful: Annotated[list[str], Option(metavar=FILES, help="Harmful prompts [built-in].")] = NONE,
    benign: Annotated[list[str], Option(metavar=FILES, help="Benign look-alikes [built-in].")] = NONE,
    task: Annotated[list[str], Option(metavar=FILES, help="Task rows [general requests].")] = NONE,
    rows: Annotated[int, Option(help="Rows of each set, at most.")] = D.rows,
    points: Annotated[int, Option(help="Points along each side of the landscape, odd.")] = D.points,
    reach: Annotated[float, Option(help="Where it ends, in norms of the base's weights.")] = D.reach,
    directions: Annotated[int, Option(help="Directions along which changes are compared.")] = D.directions,
    step: Annotated[float, Option(help="How far along these.")] = D.step,
    rank: Annotated[int, Option(help="Rank of directions and of the shared subspace.")] = D.rank,
    draws: Annotated[int, Option(help="Labels drawn for every answer token.")] = D.draws,
    top: Annotated[int, Option(help="Dimensions of the leading eigenspaces.")] = D.top,
    unrelated: Annotated[str, Option(help=f"The control: {' or '.join(UNRELATED)} weights.")] = D.unrelated,
    max_new_tokens: Annotated[int, Option(help="Longest generated answer, tokens.")] = D.max_new_tokens,
    batch_size: Annotated[int, Option(help="Rows a batch.")] = D.batch_size,
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32.")] = D.dtype,
    device: Annotated[str, Option(help="auto, cpu, cuda[:N] or mps.")] = D.device,
    device_map: Annotated[str | None, Option(help="Spread the model: auto, balanced, ...")] = D.device_map,
    max_memory: Annotated[str | None, Option(help="Memory a device may use, with --device-map.")] = D.max_memory,
    chat_template: Annotated[str, Option(help="auto, none or FILE.")] = D.chat_template,
    system_prompt: Annotated[str | None, Option(help="System turn of every prompt.")] = D.system_prompt,
    seed: Annotated[int, Option(help="Seed of samples, directions, labels and resamples.")] = D.seed,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = D.offline,
    force: Annotated[bool, Option("--force", help="Replace OUT; accept another recorded base.")] = D.force,
    config: Annotated[Path | None, Option("--config", "-c", is_eager=True, callback=read_compare_defaults,
                                          help="YAML of settings; flags win.")] = None,
    print_config: Annotated[bool, Option("--print-config", help="Print the settings as YAML and stop.")] = False,
    json: Annotated[bool, Option("--json", help="Print the document as JSON on stdout.")] = False,
    no_progress: Annotated[bool, Option("--no-progress", help="No progress bars on stderr.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="One line of result; no bars, no warnings.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of a failure.")] = False,
) -> int:
    """Test whether the harmful-loss geometry of BASE survived in TUNED, beside controls."""
    from .looking import execute
    from .running import View

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    return execute(settings(context.params, CompareConfig), out, plots, view, print_config=print_config)
