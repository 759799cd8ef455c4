"""`saferestore probe MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.config import ProbeConfig
from . import options as o

D = ProbeConfig(model="-")
NONE: list[str] = []


def probe(  # one line an option: the command's page of help
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, an adapter, or BASE+ADAPTER.")],
    out: Annotated[Path | None, o.Out(help="Folder for the document, a page and pictures.")] = None,
    plots: Annotated[Path | None, o.Folder(help="Folder for the pictures alone.")] = None,
    base: Annotated[str | None, o.Option(metavar="BASE", help="Base of an adapter [as it records].")] = D.base,
    harmful: o.HarmfulFiles = NONE,
    benign: o.BenignFiles = NONE,
    task: Annotated[list[str], o.Option(metavar=o.FILES, help="Task rows with answers.")] = NONE,
    rows: Annotated[int, o.Option(help="Rows of each set, at most.")] = D.rows,
    points: Annotated[int, o.Option(help="Points along each side of the surface, odd.")] = D.points,
    reach: Annotated[float, o.Option(help="Where it ends, in norms of the weights.")] = D.reach,
    direction_rank: Annotated[int, o.Option(help="Rank of a direction in each module.")] = D.direction_rank,
    products: Annotated[int, o.Option(help="Lanczos products a matrix; 0: no curvature.")] = D.products,
    probes: Annotated[int, o.Option(help="Random probes of each spectral density.")] = D.probes,
    eigenvalues: Annotated[int, o.Option(help="Eigenvalues at each end.")] = D.eigenvalues,
    modules: Annotated[str, o.Option(help="Without an adapter: last name parts, joined by commas.")] = D.modules,
    rank: Annotated[int, o.Option(help="Without an adapter: coordinates a row of each weight.")] = D.rank,
    max_new_tokens: o.MaxNewTokens = D.max_new_tokens,
    batch_size: o.BatchSize = D.batch_size,
    dtype: o.Dtype = D.dtype,
    device: o.Device = D.device,
    device_map: o.DeviceMap = D.device_map,
    max_memory: o.MaxMemory = D.max_memory,
    load_in: o.LoadIn = D.load_in,
    chat_template: o.ChatTemplate = D.chat_template,
    system_prompt: o.SystemPrompt = D.system_prompt,
    seed: Annotated[int, o.Option(help="Seed of samples, directions and probes.")] = D.seed,
    low_memory: o.LowMemory = D.low_memory,
    offline: o.Offline = D.offline,
    force: o.Force = D.force,
    config: Annotated[Path | None, o.config_file(ProbeConfig)] = None,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    no_progress: o.NoProgress = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """Look at one checkpoint: what it is, who serves it, its losses, their surfaces and curvature."""
    from .looking import execute
    from .running import View

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    return execute(o.settings(context.params, ProbeConfig), out, plots, view, print_config=print_config)
