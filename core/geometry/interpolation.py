"""Losses on the straight line from the base to the tuned model, and beyond both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..checkpoint.session import Session
from ..config import Progress, no_progress
from ..losses import row_losses
from .slices import Rows, Slice

STEPS = tuple(round(-0.5 + 0.125 * i, 3) for i in range(17))
"""From half a way before the base (0) to half a way beyond the tuned model (1)."""


def interpolate(session: Session, rows: Rows, steps: Sequence[float] = STEPS, *,
                progress: Progress = no_progress) -> Slice:
    """Measure the losses of rows at base + step (tuned - base).

    The weights of a full checkpoint are interpolated from disk, tensor by tensor; an adapter's change is scaled, which
    is the same line for the weights.

    Args:
        session: The pair; the tuned model is loaded, and as it was afterwards.
        rows: What is measured.
        steps: 0 is the base, 1 the tuned model.
        progress: Told of every step.

    Returns:
        A slice of one axis.
    """
    sums, tokens = [], None
    for done, step in enumerate(steps):
        progress("from base to tuned", done, len(steps))
        with session.blend(1 - step) as live:
            found, tokens = row_losses(live.model, rows.batches)
        sums.append(torch.where(torch.isfinite(found), found, torch.nan).numpy())
    progress("from base to tuned", len(steps), len(steps))
    assert tokens is not None
    return Slice((tuple(steps),), np.stack(sums), tokens.numpy(), rows.sets)
