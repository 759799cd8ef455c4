"""`saferestore compare BASE TUNED`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.config import UNRELATED, CompareConfig
from . import options as o

D = CompareConfig(base="-", tuned="-")
NONE: list[str] = []


def compare(  # one line an option: the command's page of help
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The aligned model, or `-` where the adapter names it.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned adapter or full checkpoint.")],
    out: Annotated[Path | None, o.Out(help="Folder for the document, a page and pictures.")] = None,
    plots: Annotated[Path | None, o.Folder(help="Folder for the pictures alone.")] = None,
    harmful: o.HarmfulFiles = NONE,
    benign: o.BenignFiles = NONE,
    task: Annotated[list[str], o.Option(metavar=o.FILES, help="Task rows [general requests].")] = NONE,
    rows: Annotated[int, o.Option(help="Rows of each set, at most.")] = D.rows,
    points: Annotated[int, o.Option(help="Points along each side of the landscape, odd.")] = D.points,
    reach: Annotated[float, o.Option(help="Where it ends, in norms of the base's weights.")] = D.reach,
    directions: Annotated[int, o.Option(help="Directions along which changes are compared.")] = D.directions,
    step: Annotated[float, o.Option(help="How far along these.")] = D.step,
    rank: Annotated[int, o.Option(help="Rank of directions and of the shared subspace.")] = D.rank,
    draws: Annotated[int, o.Option(help="Labels drawn for every answer token.")] = D.draws,
    top: Annotated[int, o.Option(help="Dimensions of the leading eigenspaces.")] = D.top,
    unrelated: Annotated[str, o.Option(help=f"The control: {' or '.join(UNRELATED)} weights.")] = D.unrelated,
    max_new_tokens: o.MaxNewTokens = D.max_new_tokens,
    batch_size: o.BatchSize = D.batch_size,
    dtype: o.Dtype = D.dtype,
    device: o.Device = D.device,
    device_map: o.DeviceMap = D.device_map,
    max_memory: o.MaxMemory = D.max_memory,
    chat_template: o.ChatTemplate = D.chat_template,
    system_prompt: o.SystemPrompt = D.system_prompt,
    seed: Annotated[int, o.Option(help="Seed of samples, directions, labels and resamples.")] = D.seed,
    offline: o.Offline = D.offline,
    force: o.Force = D.force,
    config: Annotated[Path | None, o.config_file(CompareConfig)] = None,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    no_progress: o.NoProgress = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """Test whether the harmful-loss geometry of BASE survived in TUNED, beside controls."""
    from .looking import execute
    from .running import View

    view = View(json=json, progress=not (no_progress or quiet), quiet=quiet)
    return execute(o.settings(context.params, CompareConfig), out, plots, view, print_config=print_config)
