"""The document of `compare`: every number that its tables and pictures show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..checkpoint.pair import CheckpointPair
from ..config import CompareConfig
from ..data.readers import ReadResult
from ..evaluation.comparing import Compared
from ..evaluation.landscape_rows import ComparedRows, ComparedSets
from ..geometry.alignment import Shares
from ..geometry.comparison import losses
from ..geometry.delta import ModuleDelta
from ..geometry.eigenspace import spectrum
from ..geometry.landscape import Landscape
from ..geometry.row_vectors import RowVectors, inner
from ..geometry.similarity import Alike, interval, resamples
from ..geometry.slices import Slice
from .assemble import checkpoint_facts, settings
from .compare_schema import SCHEMA_VERSION
from .share import environment

Json = dict[str, Any]
GAP = "a loss was not finite at every point, or one side is constant"


def document(config: CompareConfig, pair: CheckpointPair, sets: ComparedSets, rows: ComparedRows,
             deltas: Sequence[ModuleDelta], found: Compared) -> Json:
    """Return the document without its `run` object.

    Args:
        config: Of the run.
        pair: What was compared.
        sets: Where the rows came from.
        rows: How many there were.
        deltas: Changes by module.
        found: Everything measured.

    Returns:
        Plain JSON values; numbers that are not known are null beside their reason.
    """
    warnings = (*pair.warnings, *sets.warnings, *rows.warnings)
    return {
        "schema_version": SCHEMA_VERSION, "command": "compare", "status": "ok", "exit_code": 0,
        "verdict": found.verdict, "sentences": list(found.sentences),
        "findings": [_finding(each) for each in found.findings],
        "inputs": {"base": checkpoint_facts(pair.base_facts),
                   "tuned": {**checkpoint_facts(pair.tuned_facts), "kind": pair.kind},
                   "data": {name: _data(results, rows.counts[f"{name}_rows"]) for name, results in sets.read.items()}},
        "settings": settings(config), "seed": config.seed, "environment": environment(), "rows": dict(rows.counts),
        "losses": list(_losses(found.landscapes, config.seed)),
        "modules": [_module(each) for each in deltas],
        "interpolation": {"steps": list(found.line.axes[0]), **_surfaces(found.line)},
        "landscapes": {"axes": [list(axis) for axis in found.landscapes["base"].plane.axes],
                       "systems": {name: _surfaces(each.plane) for name, each in found.landscapes.items()}},
        "changes": {"step": config.step, "systems": {name: _surfaces(each.fan)
                                                     for name, each in found.landscapes.items()}},
        "similarity": list(_similarity(found)),
        "spectra": [_spectrum(system, name, each.scores, span, config.draws)
                    for system, each in found.landscapes.items() for name, span in each.plane.sets.items()],
        "shares": [row for system, each in found.landscapes.items() if each.shares
                   for row in _shares(system, each.shares)],
        "warnings": [{"code": code, "message": message} for code, message in warnings],
    }


def _data(results: Sequence[ReadResult], rows: int) -> Json:
    return {"name": ", ".join(result.name for result in results), "sha256": [result.sha256 for result in results],
            "rows": rows, "rejected_rows": sum(len(result.rejected) for result in results)}


def _finding(each: Any) -> Json:
    above = each.above_control
    found = {"measure": each.measure, "outcome": each.outcome, "threshold": each.threshold,
             "above_control": above.value, "ci_low": above.ci_low, "ci_high": above.ci_high}
    return {**found, **({"reason": GAP} if above.value is None else {})}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _losses(landscapes: Mapping[str, Landscape], seed: int) -> Iterator[Json]:
    """Losses at the models' own weights with bootstrap intervals over rows."""
    for system, name, value, n in losses(landscapes):
        centre = landscapes[system].centre
        rows = list(centre.sets[name])
        picks = np.array(rows)[resamples(n, seed)]
        found = interval(value, centre.sums[picks].sum(axis=1) / centre.tokens[picks].sum(axis=1), n)
        row = {"system": system, "set": name, "loss_nats_per_token": found.value, "ci_low": found.ci_low,
               "ci_high": found.ci_high, "n": n}
        yield {**row, **({"loss_nats_per_token_reason": GAP} if found.value is None else {})}


def _module(each: ModuleDelta) -> Json:
    plain = dataclasses.asdict(each)
    plain["shape"] = list(each.shape)
    why = {"relative_norm_reason": "the base's weight is zero"} if each.relative_norm is None else {}
    if each.effective_rank is None:
        why["effective_rank_reason"] = "no change" if len(each.shape) == 2 else "no matrix"
    return {**plain, **why}


def _surfaces(of: Slice) -> Json:
    """Losses of every set at every point, null where they are not finite, and how many of these there are."""
    return {"losses_nats_per_token": {name: _nested(of.surface(name)) for name in of.sets},
            "gaps": {name: of.gaps(name) for name in of.sets}}


def _nested(values: np.ndarray) -> Any:
    return _number(values) if values.ndim == 0 else [_nested(part) for part in values]  # type: ignore[arg-type]


def _similarity(found: Compared) -> Iterator[Json]:
    for against, sets in found.similarity.items():
        for name, measures in sets.items():
            for measure, alike in measures.items():
                yield {"against": against, "set": name, "measure": measure, **_alike(alike)}


def _alike(found: Alike) -> Json:
    row = {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high, "n": found.n, "gaps": found.gaps}
    return {**row, **({"reason": GAP} if found.value is None else {})}


def _spectrum(system: str, name: str, scores: RowVectors, rows: Sequence[int], draws: int) -> Json:
    count = len(scores.weights) // draws
    own = scores.only([draw * count + row for draw in range(draws) for row in rows])
    values = spectrum(inner(own, own)).values / own.weights.sum()
    return {"system": system, "set": name, "eigenvalues": [_number(v) or 0.0 for v in values[:50]],
            "trace": float(values.sum()), "dimension": scores.dimension}


def _shares(system: str, found: Shares) -> Iterator[Json]:
    for row in found.rows:
        yield {"system": system, "gradient": row.gradient, "k": row.k, **_alike(row.found),
               "random": row.k / found.dimension}
