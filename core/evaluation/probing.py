"""One checkpoint looked at from its own weights: losses with intervals, slices, curvature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.adapter import is_adapter, merge_command
from ..checkpoint.identity import AdapterForm, Identity, adapter_form, identify
from ..checkpoint.loading import Placement, load_model, load_tokenizer, place
from ..checkpoint.reference import Reference, locate, parse_reference, shown
from ..checkpoint.session import LiveModel, live_model
from ..checkpoint.systems import System, find_system
from ..config import EvalConfig, ProbeConfig, Progress, nearest
from ..curvature.hessian import Choice
from ..curvature.probe import Curvature, Effort, probe_losses
from ..data.chat import chat_format
from ..data.evaluation_sets import EvaluationSet, read_sets
from ..data.records import Record
from ..errors import MismatchError, NumericalError, UsageError
from ..geometry.directions import Shape, draw_direction, module_shapes
from ..geometry.slices import Rows, Slice, axis, check_deterministic, take_slice
from ..geometry.subspace import in_subspace
from ..losses import cross_entropy
from ..params import size
from .attacks.wording import harmful_answer
from .room import parts_with_room
from .systems import Examiner
from .verdict import Mean, mean_per_token

DEFAULTS = {"harmful": "builtin:harmful", "benign": "builtin:benign"}
CURVED = ("harmful", "task", "benign")
"""Roles whose curvature is measured, where it is asked for: the first, and the first of the others that is there."""

Pair = tuple[Record, Sequence[int]]


@dataclass(frozen=True)
class Target:
    """What is probed.

    Attributes:
        ref: As it may be published.
        kind: `full` or `adapter`.
        system: None where the adapter has no exact form B A: such a model is described, not measured.
        identity: Of the full weights; None where such an adapter's base is not here.
        adapter: None for a full checkpoint.
        warnings: (code, message) pairs.
    """

    ref: str
    kind: str
    system: System | None
    identity: Identity | None
    adapter: AdapterForm | None
    warnings: tuple[tuple[str, str], ...]

    @property
    def fault(self) -> str | None:
        """Why it is not measured."""
        return self.adapter.fault if self.adapter is not None else None


def find_target(config: ProbeConfig, progress: Progress) -> Target:
    """Find a checkpoint and say what it is.

    Args:
        config: Its reference and its base's.
        progress: Told of downloads and of every weight file.

    Returns:
        The target; `UsageError` and `MismatchError` are those of `find_system`.
    """
    parsed = parse_reference(config.model)
    where = (parsed.adapter, parsed.adapter_revision) if parsed.adapter else (parsed.base, parsed.revision)
    folder, ref = locate(*where, offline=config.offline, progress=progress), shown(*where)
    form = adapter_form(folder) if is_adapter(folder) else None
    if form is not None and form.fault is not None:
        merge = merge_command(Path(folder.name))
        warning = ("W_NO_LORA_FORM", f"{form.fault}: described, not measured; merge it first: {merge}")
        return Target(ref, "adapter", None, _base_of(config, parsed, form), form, (warning,))
    system = find_system("model", config.model, config.base, offline=config.offline, force=config.force,
                         progress=progress)
    return Target(ref, "adapter" if form else "full", system, identify(system.folder, folder if form else None), form,
                  system.warnings)


def _base_of(config: ProbeConfig, parsed: Reference, form: AdapterForm) -> Identity | None:
    name = config.base or (parsed.base if parsed.adapter else form.facts.config.get("base_model_name_or_path"))
    try:
        return identify(locate(str(name), offline=config.offline), None)
    except (UsageError, MismatchError):
        return None


@dataclass(frozen=True)
class Answered:
    """A set with the answers that its losses are taken on.

    Attributes:
        of: The set.
        pairs: Records with the tokens of their answers.
        sources: `given`, `affirmative opening` or `own` -> how many answers are of that kind.
    """

    of: EvaluationSet
    pairs: Sequence[Pair]
    sources: Mapping[str, int]


@dataclass(frozen=True)
class Probed:
    """What was measured.

    Attributes:
        answered: The sets.
        losses: Set name -> its loss at the checkpoint's own weights, nats per token.
        plane: Losses on the plane of two directions.
        seeds: Of these directions.
        coordinates: `adapter` or `subspace`.
        dimension: How many there are.
        coordinates_dtype: Of their numbers, whatever the dtype of the frozen weights: `float32` or wider.
        attention: The implementation that the model ran with.
        choice: How Hessian products were done; None without curvature.
        curvature: (set, matrix) -> what was found.
        warnings: What the user should know.
    """

    answered: Sequence[Answered]
    losses: Mapping[str, Mean]
    plane: Slice
    seeds: tuple[int, int]
    coordinates: str
    dimension: int
    coordinates_dtype: str
    attention: str
    choice: Choice | None
    curvature: Mapping[tuple[str, str], Curvature]
    warnings: tuple[tuple[str, str], ...]


def read_probe_sets(config: ProbeConfig) -> tuple[EvaluationSet, ...]:
    """Return the sets of a probe, each a sample of at most `config.rows`; UsageError as `read_sets`."""
    files: dict[str, Any] = {role: getattr(config, role) or ((DEFAULTS[role],) if role in DEFAULTS else ())
             for role in ("harmful", "benign", "task")}
    return read_sets(EvalConfig(model=config.model, limit=config.rows, seed=config.seed, **files))


def placement_of(config: ProbeConfig, system: System) -> Placement:
    """Return where a probe holds the model; UsageError where that cannot be had here."""
    return place(config.dtype, config.device, config.device_map, config.max_memory, config.load_in,
                 system.stored_dtype, sums=True)


def probe_system(system: System, sets: Sequence[EvaluationSet], config: ProbeConfig, progress: Progress) -> Probed:
    """Measure a checkpoint.

    Args:
        system: A full checkpoint or an adapter on its base.
        sets: What its losses are taken on.
        config: How much.
        progress: Told of every stage.

    Returns:
        What was found. `MismatchError` for a model that is not deterministic, `UsageError` for modules it has not,
        `NumericalError` for a loss at its own weights that is not finite.
    """
    placement = placement_of(config, system)
    with _loaded(system, config, placement, progress) as (model, live):
        examiner = _examiner(system, model, config, progress)
        fitting, warnings = parts_with_room({each.name: each.records for each in sets}, examiner.setting())
        answered = [_answered(examiner, model, replace(each, records=fitting[each.name])) for each in sets]
        pairs = [pair for each in answered for pair in each.pairs]
        rows = Rows(examiner.batches(pairs), _ranges(answered))
        check_deterministic(model, rows)
        centre = take_slice(model, (), (), rows)
        losses = {name: _loss(centre, name, config.seed) for name in rows.sets}
        plane, seeds = _plane(model, rows, config, progress)
        coordinates, leaves = _coordinates(model, live, config)
        with leaves as moved:
            choice, found = _curvature(moved, answered, examiner, config, progress)
            dimension, dtype = size(dict(moved.leaves)), str(next(iter(moved.leaves.values())).dtype)
    return Probed(answered, losses, plane, seeds, coordinates, dimension, dtype.removeprefix("torch."),
                  str(model.config._attn_implementation), choice, found, warnings)


@contextmanager
def _loaded(system: System, config: ProbeConfig, placement: Placement,
            progress: Progress) -> Iterator[tuple[Any, LiveModel | None]]:
    progress("load model", 0, 1)
    frozen = load_model(system.folder, placement)
    live = None
    if system.pair is not None:
        live = live_model(system.pair, frozen, config.seed, load_tokenizer(system.tokenizer_dir))
    progress("load model", 1, 1)
    yield (live.model if live else frozen), live


def _examiner(system: System, model: Any, config: ProbeConfig, progress: Progress) -> Examiner:
    chat = chat_format(load_tokenizer(system.tokenizer_dir), config.chat_template, config.system_prompt)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    return Examiner(chat, min(config.max_new_tokens, context // 2), config.batch_size, context, progress)


def _answered(examiner: Examiner, model: Any, of: EvaluationSet) -> Answered:
    """Take given answers; a harmful row without one gets an affirmative opening, any other the model's own answer."""
    if of.role == "harmful":
        texts = [(record, harmful_answer(record.prompt, record.answer)) for record in of.records]
        given = sum(text == record.answer for record, text in texts)
        counts = {"given": given, "affirmative opening": len(texts) - given}
        return Answered(of, [(record, examiner.chat.answer_ids(record, text)) for record, text in texts], counts)
    given_rows = [(record, examiner.chat.answer_ids(record, record.answer)) for record in of.records if record.answer]
    asked = examiner.ask(model, [record for record in of.records if not record.answer], f"answers to {of.name}")
    own = [(answer.record, examiner.answer_tokens(answer)) for answer in asked]
    return Answered(of, [*given_rows, *own], {"given": len(given_rows), "own": len(own)})


def _ranges(answered: Sequence[Answered]) -> dict[str, range]:
    found, first = {}, 0
    for each in answered:
        found[each.of.name] = range(first, first + len(each.pairs))
        first += len(each.pairs)
    return found


def _loss(centre: Slice, name: str, seed: int) -> Mean:
    rows = list(centre.sets[name])
    sums = centre.sums[rows]
    if not math.isfinite(float(sums.sum())):
        raise NumericalError(f"the loss of set {name} is not finite at the checkpoint's own weights",
                             hint="use --dtype float32")
    return mean_per_token(sums.tolist(), centre.tokens[rows].tolist(), seed=seed)


def _plane(model: Any, rows: Rows, config: ProbeConfig, progress: Progress) -> tuple[Slice, tuple[int, int]]:
    shapes, seeds = module_shapes(model), (2 * config.seed + 1, 2 * config.seed + 2)
    directions = [draw_direction(shapes, seed, rank=config.direction_rank) for seed in seeds]
    steps = axis(config.points, config.reach)
    return take_slice(model, directions, (steps, steps), rows, stage="loss surface", progress=progress), seeds


def _coordinates(model: Any, live: LiveModel | None, config: ProbeConfig) -> tuple[str, Any]:
    if live is not None:
        return "adapter", _as_it_is(live)
    return "subspace", in_subspace(model, chosen_modules(module_shapes(model), config.modules), rank=config.rank,
                                   seed=config.seed)


@contextmanager
def _as_it_is(live: LiveModel) -> Iterator[LiveModel]:
    yield live


def chosen_modules(shapes: Mapping[str, Shape], wanted: str) -> dict[str, Shape]:
    """Return the modules whose last name part is among those wanted.

    Args:
        shapes: All modules.
        wanted: Last parts joined by commas, or `all`.

    Returns:
        The chosen ones.

    Raises:
        UsageError: A part that no module has.
    """
    parts = {name.rpartition(".")[2] for name in shapes}
    chosen = parts if wanted == "all" else {part.strip() for part in wanted.split(",")}
    unknown = sorted(chosen - parts)
    if unknown:
        raise UsageError(f"no such module - --modules {unknown[0]}", hint=nearest(unknown[0], parts))
    return {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] in chosen}


def _curvature(live: LiveModel, answered: Sequence[Answered], examiner: Examiner, config: ProbeConfig,
               progress: Progress) -> tuple[Choice | None, dict[tuple[str, str], Curvature]]:
    if not config.products:
        return None, {}
    effort = Effort(config.products, config.eigenvalues, config.probes, config.seed)
    losses = [cross_entropy(each.of.name, examiner.batches(each.pairs)) for each in curved(answered)]
    return probe_losses(live, losses, effort, low_memory=config.low_memory, progress=progress)


def curved(answered: Sequence[Answered]) -> list[Answered]:
    """Return the first harmful set, and the first task set, or where there is none the first benign one."""
    by_role: dict[str, Answered] = {}
    for each in answered:
        by_role.setdefault(each.of.role, each)
    return [by_role[role] for role in CURVED if role in by_role][:2]
