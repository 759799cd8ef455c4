"""The document of `probe`: every number that its tables and pictures show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checkpoint.identity import AdapterForm, Identity
from ..checkpoint.runtimes import acceptances
from ..config import ProbeConfig
from ..curvature.density import Estimate, curve
from ..curvature.probe import Curvature
from ..curvature.spectrum import Eigenpair
from ..data.evaluation_sets import EvaluationSet
from ..evaluation.probing import Answered, Probed, Target
from .assemble import checkpoint_facts, settings
from .probe_schema import SCHEMA_VERSION
from .share import environment

Json = dict[str, Any]
ONE_PROBE = "an interval needs two probes"


def document(config: ProbeConfig, target: Target, found: Probed | None) -> Json:
    """Return the document without its `run` object.

    Args:
        config: Of the run.
        target: What was probed.
        found: What was measured; None where the adapter has no form that can be.

    Returns:
        Plain JSON values; numbers that are not known are null beside their reason.
    """
    return {
        "schema_version": SCHEMA_VERSION, "command": "probe", "status": "ok", "exit_code": 0,
        "inputs": _inputs(target, found), "settings": settings(config), "seed": config.seed,
        "environment": environment(), **_checkpoint(target),
        "runtimes": [dataclasses.asdict(each) for each in
                     (acceptances(target.adapter.facts) if target.adapter is not None else ())],
        **(_measured(found) if found is not None else _unmeasured(target.fault)),
        "warnings": [{"code": code, "message": message} for code, message in
                     (*target.warnings, *(found.warnings if found is not None else ()))]}


def _inputs(target: Target, found: Probed | None) -> Json:
    system = target.system
    model = {"ref": target.ref, "kind": target.kind, "weights_sha256": {}} if system is None else {
        **checkpoint_facts(system.facts), "kind": target.kind}
    base = {} if system is None or system.pair is None else {"base": checkpoint_facts(system.pair.base_facts)}
    data = {each.of.name: _data(each.of, each) for each in (found.answered if found else ())}
    return {"model": model, **base, "data": data}


def _data(of: EvaluationSet, answered: Answered) -> Json:
    return {"name": of.file, "role": of.role, "sha256": of.sha256, "rows": len(answered.pairs),
            "rejected_rows": len(of.rejected), "answers": dict(answered.sources)}


def _checkpoint(target: Target) -> Json:
    adapter = _adapter(target.adapter) if target.adapter is not None else None
    if target.identity is None:
        return {"checkpoint": None, "checkpoint_reason": "the base of the adapter is not here", "adapter": adapter}
    return {"checkpoint": _identity(target.identity), "adapter": adapter}


def _identity(identity: Identity) -> Json:
    return {field.name: _plain(getattr(identity, field.name)) for field in dataclasses.fields(identity)
            if field.name != "adapter"}


def _adapter(form: AdapterForm) -> Json:
    return {"form": form.form, "rank": form.rank, "alpha": form.alpha, "parameters": form.parameters,
            "modules": dict(form.modules), "fault": form.fault}


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _unmeasured(fault: str | None) -> Json:
    why = f"the adapter has no exact LoRA form: {fault}"
    return {"losses": [], "surface": None, "surface_reason": why, "curvature": None, "curvature_reason": why}


def _measured(found: Probed) -> Json:
    losses = [{"set": name, "loss_nats_per_token": mean.value, "ci_low": mean.ci_low, "ci_high": mean.ci_high,
               "n": len(found.plane.sets[name])} for name, mean in found.losses.items()]
    plane = found.plane
    surface = {"axes": [list(axis) for axis in plane.axes], "direction_seeds": list(found.seeds),
               "losses_nats_per_token": {name: numbers(plane.surface(name)) for name in plane.sets},
               "gaps": {name: plane.gaps(name) for name in plane.sets}}
    if found.choice is None:
        return {"losses": losses, "surface": surface, "curvature": None, "curvature_reason": "--products 0"}
    curvature = {"coordinates": found.coordinates, "dimension": found.dimension, "way": found.choice.way,
                 "way_reason": found.choice.reason, "check_distance": found.choice.distance,
                 "attention": found.attention, "coordinates_dtype": found.coordinates_dtype,
                 "matrices": [_matrix(*key, each) for key, each in found.curvature.items()]}
    return {"losses": losses, "surface": surface, "curvature": curvature}


def numbers(values: np.ndarray) -> list[Any]:
    """Return an array as nested lists with null at gaps."""
    return [numbers(value) if isinstance(value, np.ndarray) else None if np.isnan(value) else float(value)
            for value in values]


def _matrix(name: str, matrix: str, found: Curvature) -> Json:
    line = curve(found.density)
    return {"set": name, "matrix": matrix, "products": found.products,
            "largest": [_pair(pair) for pair in found.spectrum.largest],
            "smallest": [_pair(pair) for pair in found.spectrum.smallest],
            "lanczos_products": len(found.spectrum.iteration.diagonal),
            "sharpness": found.spectrum.largest[0].value,
            "trace": {"value": found.trace.value, "bound_95": found.trace.bound, "products": found.trace.products},
            "negative_mass": _estimate(found.negative_mass), "modules": dict(found.modules),
            "density": {"eigenvalues": line.eigenvalues.tolist(), "density": line.density.tolist(),
                        "half_width_95": None if line.half is None else line.half.tolist(),
                        **({"half_width_95_reason": ONE_PROBE} if line.half is None else {}),
                        "exact_eigenvalues": len(found.density.known), "probes": len(found.density.nodes),
                        "products": found.density.products,
                        "mean_eigenvalue": _estimate(found.density.estimated_moment(1)),
                        "mean_square_eigenvalue": _estimate(found.density.estimated_moment(2))}}


def _pair(pair: Eigenpair) -> Json:
    return {"value": pair.value, "error_at_most": pair.error}


def _estimate(found: Estimate) -> Json:
    return {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}
