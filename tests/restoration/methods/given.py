"""The inputs of a method as data: a tiny float64 model, ragged rows, and checkpoints on disk where one is asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from saferestore.core.checkpoint.pair import CheckpointPair
from saferestore.core.checkpoint.session import LiveModel
from saferestore.core.data.batches import Batch, Row, make_batches
from saferestore.core.losses import cross_entropy, kl_divergence, log_probabilities, row_losses
from saferestore.core.params import Params
from saferestore.core.restoration.methods.inputs import Inputs
from saferestore.core.restoration.modules import factors
from saferestore.core.restoration.objectives import SafetyData
from saferestore.core.restoration.trust_region import Problem
from safetensors.torch import save_file
from torch import Tensor

from ...cases import live_model, ragged_batches, ragged_rows

RETAIN = ragged_batches(6, seed=2, batch_size=2)


def answered(seed: int) -> list[Batch]:
    """Rows with prompts of their own and answers by seed: the same prompts for every seed."""
    prompts, answers = ragged_rows(5, seed=90), ragged_rows(5, seed=seed)
    rows = [Row(i, (*p.prompt, 3 + i), a.answer) for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]
    return make_batches(rows, batch_size=2, pad_id=0)


def inputs(live: LiveModel | None = None, *, harmful: bool = True, base_dir: Path | None = None,
           unaligned: Path | None = None, kind: str = "lora", transposed: bool = False, **more: Any) -> Inputs:
    """A problem whose safe and harmful answers stand beside the same prompts."""
    live = live or live_model()
    safe, bad = answered(11), answered(12) if harmful else []
    sums, tokens = row_losses(live.model, bad) if bad else (torch.zeros(0), torch.ones(0))
    data = SafetyData(safe, 0.0, bad, sums / tokens, None)
    drift = kl_divergence("drift", RETAIN, log_probabilities(live.model, RETAIN).__getitem__)
    pair = SimpleNamespace(kind=kind, transposed=transposed, base_dir=base_dir, tuned_dir=base_dir)
    problem = Problem(live, (cross_entropy("anchor", safe, target=0.0),), drift)
    settings = {"max_drift": 0.05, "max_passes": 3} | more
    return Inputs(problem, data, cast(CheckpointPair, pair), unaligned, **settings)


def weights_of(params: Params) -> dict[str, Tensor]:
    """B A of every module."""
    return {module: b @ a for module, (a, b) in factors(params).items()}


def save_weights(folder: Path, shapes: dict[str, Tensor], *, seed: int, prefix: str = "", size: float = 1.0,
                 transposed: bool = False) -> Path:
    """Save random weights of these modules as a checkpoint's file, in float64."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, like in shapes.items():
        weight = size * torch.randn(like.shape, generator=generator, dtype=torch.float64)
        tensors[f"{module.removeprefix(prefix)}.weight"] = (weight.T if transposed else weight).contiguous()
    save_file(tensors, folder / "model.safetensors")
    return folder
