"""`saferestore probe MODEL`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..core.config import ProbeConfig
from .options import read_probe_defaults, settings

D = ProbeConfig(model="-")
NONE: list[str] = []
FILES = "FILE[:FORMAT]"
Option = partial(typer.Option, show_envvar=False)


def probe(  # one line an option: the command's page of help
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, an adapter, or BASE+ADAPTER.")],
    out: Annotated[Path | None, Option("--out", "-o", help="Folder for the document, a page and pictures.")] = None,
    plots: Annotated[Path | None, Option(metavar="DIR", help="Folder for the pictures alone.")] = None,
    base: Annotated[str | None, Option(metavar="BASE", help="Base of an adapter [as it records].")] = D.base,
    harmful: Annotated[list[str], Option(metavar=FILES, help="Harmful prompts [built-in].")] = NONE,
    benign: Annotated[list[str], Option(metavar=FILES, help="Benign look-alikes [built-in].")] = NONE,
    task: Annotated[list[str], Option(metavar=FILES, help="Task rows with answers.")] = NONE,
    rows: Annotated[int, Option(help="Rows of each set, at most.")] = D.rows,
    points: Annotated[int, Option(help="Points along each side of the surface, odd.")] = D.points,
    reach: Annotated[float, Option(help="Where it ends, in norms of the weights.")] = D.reach,
    direction_rank: Annotated[int, Option(help="Rank of a direction in each module.")] = D.direction_rank,
    products: Annotated[int, Option(help="Lanczos products a matrix; 0: no curvature.")] = D.products,
    probes: Annotated[int, Option(help="Random probes of each spectral density.")] = D.probes,
    eigenvalues: Annotated[int, Option(help="Eigenvalues at each end.")] = D.eigenvalues,
    modules: Annotated[str, Option(help="Without an adapter: last name parts, joined by commas.")] = D.modules,
    rank: Annotated[int, Option(help="Without an adapter: coordinates a row of each weight.")] = D.rank,
    max_new_tokens: Annotated[int, Option(help="Longest generated answer, tokens.")] = D.max_new_tokens,
    batch_size: Annotated[int, Option(help="Rows a batch.")] = D.batch_size,
    dtype: Annotated[str, Option(help="auto, bfloat16, float16 or float32.")] = D.dtype,
    device: Annotated[str, Option(help="auto, cpu, cuda[:N] or mps.")] = D.device,
    device_map: Annotated[str | None, Option(help="Spread the model: auto, balanced, ...")] = D.device_map,
    max_memory: Annotated[str | None, Option(help="Memory a device may use, with --device-map.")] = D.max_memory,
    load_in: Annotated[str | None, Option(help="Quantise frozen weights: 4bit or 8bit.")] = D.load_in,
    chat_template: Annotated[str, Option(help="auto, none or FILE.")] = D.chat_template,
    system_prompt: Annotated[str | None, Option(help="System turn of every prompt.")] = D.system_prompt,
    seed: Annotated[int, Option(help="Seed of samples, directions and probes.")] = D.seed,
    low_memory: Annotated[bool, Option("--low-memory", help="Keep no graphs: less memory, more time.")] = D.low_memory,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = D.offline,
    force: Annotated[bool, Option("--force", help="Replace OUT; accept another recorded base.")] = D.force,
    config: Annotated[Path | None, Option("--config", "-c", is_eager=True, callback=read_probe_defaults,
                                          help="YAML of settings; flags win.")] = None,
    print_config: Annotated[bool, Option("--print-config", help="Print the settings as YAML and stop.")] = False,
    json: Annotated[bool, Option("--json", help="Print the document as JSON on stdout.")] = False,
    no_progress: Annotated[bool, Option("--no-progress", help="No progress bars on stderr.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="One line of result; no bars, no warnings.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of a failure.")] = False,
) -> int:
    """Look at one checkpoint: what it is, who serves it, its losses, their surfaces and curvature."""
    from .looking import execute
    from .running import View

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    return execute(settings(context.params, ProbeConfig), out, plots, view, print_config=print_config)
