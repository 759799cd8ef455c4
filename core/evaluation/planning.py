"""What a restoration or an evaluation will need, from headers, rows and the tokenizer: no weights are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.loading import read_model_config, skeleton
from ..checkpoint.pair import CheckpointPair
from ..checkpoint.safetensors_files import TensorInfo, read_headers
from ..checkpoint.systems import System
from ..config import PUBLISHED, RestoreConfig
from ..curvature.engines import passes_at_most
from ..curvature.kfac import factor_bytes
from ..data.selection import Selection
from .attacks import Attack
from .room import with_room
from .setup import Setup, setting_of, warnings_of

Json = dict[str, Any]
MEASURED_FLOPS = {"cpu": 5e10, "cuda": 1e14}
"""Floating-point operations a second that a gradient pass was seen to reach, for the time estimate alone."""
FLOPS_PER_PARAMETER_TOKEN = {"gradient": 6, "generation": 2}


def estimate(pair: CheckpointPair, rows: Selection, config: RestoreConfig, attacks: Sequence[Attack] = (), *,
             device: str) -> Json:
    """Return the plan of a run.

    Answers are taken as long as they may become, so sizes are upper ends; the seconds are an order of magnitude.

    Args:
        pair: Opened without reading weights.
        rows: Fit and held-out rows.
        config: The settings.
        attacks: Of the gate.
        device: `cpu` or `cuda`, for the time estimate.

    Returns:
        Counts of rows and tokens, bytes by purpose, gradient passes and seconds, as plain JSON values; of the rows that
        leave room for an answer (errors are those of `with_room` and `setting_of`).
    """
    folder = pair.carrier_dir
    setting = setting_of(config, pair.tokenizer_dir, folder)
    rows, chat = with_room(rows, setting, attacks), setting.chat
    prompts = {name: sum(len(chat.prompt_ids(r)) for r in part) for name, part in
               {"harmful": rows.harmful, "retain": rows.retain}.items()}
    answers = {"harmful": len(rows.harmful) * config.max_new_tokens, "retain": len(rows.retain) * config.max_new_tokens}
    tokens = sum(prompts.values()) + sum(answers.values())
    headers = read_headers(folder)
    weights = _parameters(headers)
    config_of_model = read_model_config(folder)
    model, vocabulary = skeleton(config_of_model, folder), config_of_model.get_text_config().vocab_size
    # Of the model itself: files may have other names.
    shapes = [(pair.rank, side) for name in pair.target_modules for side in model.get_parameter(f"{name}.weight").shape]
    adapter = sum(rank * side for rank, side in shapes)
    passes = passes_at_most(config.engine, config.max_steps, fresh=pair.kind == "full")
    return {
        "base": pair.base_facts.ref, "tuned": pair.tuned_facts.ref, "kind": pair.kind,
        "method": config.method, "objective": config.objective,
        "engine": None if config.method in PUBLISHED else config.engine, "adapted_modules": len(pair.target_modules),
        "rank": pair.rank, "parameters": weights, "adapter_parameters": adapter,
        "rows": {"harmful_fit": len(rows.harmful), "retain_fit": len(rows.retain),
                 **{f"{name}_held_out": len(part) for name, part in rows.held_out.items()}},
        "fit_tokens_at_most": tokens, "gradient_passes_at_most": passes,
        "bytes": {"weights_on_disk": pair.base_facts.bytes + pair.tuned_facts.bytes,
                  "adapter_vectors": 8 * adapter * 4,
                  "fisher_rows": len(rows.retain) * adapter * 4 if config.engine == "fisher" else 0,
                  "kronecker_factors": factor_bytes(shapes) if config.engine == "ekfac" else 0,
                  "log_probabilities_at_most": answers["retain"] * vocabulary * 4},
        "seconds_about": _seconds(passes * tokens * weights, "gradient", device),
        "warnings": [{"code": code, "message": text} for code, text in (*pair.warnings, *rows.warnings)],
    }


def estimate_evaluation(setup: Setup, max_new_tokens: int, *, device: str) -> Json:
    """Return what an evaluation would ask.

    Answers are taken as long as they may become; the seconds are an order of magnitude for the questions alone,
    without likelihoods of choices, judging models and tasks of lm-evaluation-harness.

    Args:
        setup: Everything found and checked.
        max_new_tokens: Longest answer.
        device: `cpu` or `cuda`, for the time estimate.

    Returns:
        Systems, sets, questions, tokens, bytes of all files that are read, and seconds, as plain JSON values.
    """
    questions, systems = setup.plan.questions, setup.systems
    asked, made = sum(len(q.attempt.prompt) for q in questions), len(questions) * max_new_tokens
    work = sum(_parameters(read_headers(system.folder)) for system in systems) * (asked + made)
    files = {folder: size for system in systems for folder, size in _files(system)}
    return {
        "systems": {system.name: system.facts.ref for system in systems},
        "sets": {each.name: f"{len(each.records)} {each.role} rows" for each in setup.sets},
        "attacks": [attack.name for attack in setup.attacks], "judges": [spec.name for spec in setup.judges],
        "rules": len(setup.rules), "answers_to_judge": sum(len(each.rows) for each in setup.generations),
        "questions_a_system": len(questions), "prompts_too_long": len(setup.plan.too_long),
        "prompt_tokens": len(systems) * asked, "generated_tokens_at_most": len(systems) * made,
        "bytes": {"weights_on_disk": sum(files.values())},
        "seconds_about": _seconds(work, "generation", device),
        "warnings": [{"code": code, "message": text} for code, text in warnings_of(setup)],
    }


def _files(system: System) -> list[tuple[Path, int]]:
    """Return folders that a system is read from, with the bytes of their weights."""
    if system.pair is None:
        return [(system.folder, system.facts.bytes)]
    return [(system.pair.base_dir, system.pair.base_facts.bytes), (system.pair.tuned_dir, system.facts.bytes)]


def _seconds(work: int, kind: str, device: str) -> float:
    """Return the seconds that so many parameters times tokens take."""
    return round(work * FLOPS_PER_PARAMETER_TOKEN[kind] / MEASURED_FLOPS[device], 1)


def _parameters(headers: Mapping[str, TensorInfo]) -> int:
    return sum(math.prod(info.shape) for info in headers.values())
