"""Everything an evaluation needs, found and checked before any weights are in memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.adapter import is_adapter
from ..checkpoint.loading import Placement, load_tokenizer, place, read_model_config
from ..checkpoint.quiet import quiet
from ..checkpoint.reference import RECORDED, locate, parse_reference
from ..checkpoint.systems import System, common_tokenizer, find_system, recorded_base
from ..config import EvalConfig, Progress, RestoreConfig
from ..data.chat import chat_format
from ..data.evaluation_sets import EvaluationSet, read_sets
from ..data.generations import Generations, read_generations
from ..errors import UsageError
from .asking import Plan, plan_questions
from .attacks import Attack, Setting, parse_attacks
from .choice import SCORERS, has_choices
from .fewshot import parse_shots
from .gate.known import Known, check_rules
from .gate.rules import Rule
from .judges import JudgeSpec, parse_judges
from .judges.run import check_judging_model
from .lm_eval import parse_tasks
from .room import need_room
from .unread import check_gate_use, check_generations, check_sets

REPORT = "saferestore.json"
DRIFT = "kl_to_tuned_nats_per_token"
MOST_SHOWN = 10
"""Malformed rows of a file that are warned of one by one; the results list all."""


@dataclass(frozen=True)
class Setup:
    """An evaluation that has been checked.

    Attributes:
        systems: In the order in which they are asked: base, tuned, restored.
        sets: What they are asked.
        generations: Answers that exist already, where no system is asked.
        attacks: `none` first.
        judges: Of the answers.
        shots: Solved rows before task rows.
        lm_eval: Tasks of lm-evaluation-harness.
        rules: Of the gate.
        known: What will be there for rules to name.
        setting: How prompts are written; None without systems.
        plan: All questions.
        placement: Where models are held; None without systems.
    """

    systems: tuple[System, ...]
    sets: tuple[EvaluationSet, ...]
    generations: tuple[Generations, ...]
    attacks: tuple[Attack, ...]
    judges: tuple[JudgeSpec, ...]
    shots: tuple[int, ...]
    lm_eval: tuple[str, ...]
    rules: tuple[Rule, ...]
    known: Known
    setting: Setting | None
    plan: Plan
    placement: Placement | None


def set_up(config: EvalConfig, rules: tuple[Rule, ...], *, has_baseline: bool, read_weights: bool = True,
           progress: Progress) -> Setup:
    """Find and check the systems, sets, attacks and judges of an evaluation, and its rules against them.

    Args:
        config: The settings.
        rules: Of the gate, none without one. Attacks that they name are made, too.
        has_baseline: Whether a baseline is given.
        read_weights: Hash the weights and scan them for NaN.
        progress: Told of downloads and of every weight file.

    Returns:
        The evaluation. `UsageError` and `MismatchError` for whatever cannot be found, read, or does not fit, and for a
        set of which no prompt leaves room for an answer.
    """
    check_gate_use(config)
    if config.generations:
        check_generations(config)
    judges, shots = parse_judges(config.judge), parse_shots(config.shots)
    attacks = parse_attacks((*config.attack, *(r.attack for r in rules if r.attack and r.attack != "none")))
    if not config.model:
        return _of_answers(config, judges, rules, read_weights, progress)
    tasks = parse_tasks(config.lm_eval) if config.lm_eval else ()
    sets = read_sets(config)
    check_sets(config, {each.role for each in sets})
    systems = _systems(config, read_weights, progress)
    tokenizer_dir = common_tokenizer(systems)
    names = tuple(system.name for system in systems)
    judges = _checked(judges, names, config.offline, read_weights, progress)
    known = _known(names, {each.name: each.role for each in sets}, judges, attacks, shots, tasks, has_baseline, sets)
    if rules:
        check_rules(rules, known)
    setting = setting_of(config, tokenizer_dir, systems[-1].folder)
    placement = place(config.dtype, config.device, config.device_map, config.max_memory, config.load_in,
                      systems[-1].stored_dtype)
    with quiet():  # transformers warns of long prompts, which `W_TOO_LONG` counts
        plan = plan_questions(sets, attacks, shots, setting)
    _need_questions(sets, plan, setting)
    return Setup(systems, sets, (), attacks, judges, shots, tasks, rules, known, setting, plan, placement)


def _of_answers(config: EvalConfig, judges: tuple[JudgeSpec, ...], rules: tuple[Rule, ...], read_weights: bool,
                progress: Progress) -> Setup:
    """Answers that exist already: who answered and what was asked stands in the files."""
    if not config.generations:
        raise UsageError("nothing to evaluate - MODEL", hint="give a MODEL, or --generations FILE")
    judges = _checked(judges, (), config.offline, read_weights, progress)
    read = tuple(read_generations(Path(spec)) for spec in config.generations)
    rows = [row for each in read for row in each.rows]
    known = _known(tuple(dict.fromkeys(row.system for row in rows)), {row.set: row.role for row in rows}, judges, (),
                   (), (), False, ())
    if rules:
        check_rules(rules, known)
    return Setup((), (), read, (), judges, (), (), rules, known, None, Plan((), {}, ()), None)


def _checked(judges: Sequence[JudgeSpec], names: Sequence[str], offline: bool, read_weights: bool,
             progress: Progress) -> tuple[JudgeSpec, ...]:
    """Refuse judges that could not judge these systems, and note which model stands behind each."""
    found = []
    for spec in judges:
        if spec.kind == "likelihood" and "base" not in names:
            raise UsageError(f"needs the base's own answers - --judge {spec.name}", hint="add --base BASE")
        files = check_judging_model(spec.rubric, spec.model, offline=offline, read_weights=read_weights,
                                    progress=progress) if spec.rubric is not None and spec.model is not None else ""
        found.append(dataclasses.replace(spec, files_sha256=files))
    return tuple(found)


def _systems(config: EvalConfig, read_weights: bool, progress: Progress) -> tuple[System, ...]:
    settings: dict[str, Any] = {"offline": config.offline, "force": config.force, "read_weights": read_weights,
                                "progress": progress}
    if config.system == "auto" and config.tuned is None and _is_base(config):
        return (find_system("base", config.model, **settings),)
    beside = [_base(config, settings)] if config.base is not None else []
    if config.tuned is not None:
        beside.append(find_system("tuned", config.tuned, config.base, **settings))
    name = config.system if config.system != "auto" else _name(config)
    base = config.base
    if base is not None and parse_reference(config.model).adapter:
        base = None  # MODEL names what it sits on itself: a restored adapter of a full checkpoint sits on that
    model = find_system(name, config.model, base, **settings)
    return (*beside, model)


def _base(config: EvalConfig, settings: dict[str, Any]) -> System:
    if config.base != RECORDED:
        return find_system("base", config.base or "", **settings)
    folder, ref = recorded_base(config.model, offline=config.offline)
    found = find_system("base", folder, **settings)
    return dataclasses.replace(found, facts=dataclasses.replace(found.facts, ref=ref))


def _is_base(config: EvalConfig) -> bool:
    """Tell whether MODEL is BASE itself, which is then evaluated once."""
    if config.base in (None, RECORDED):
        return False
    model, base = parse_reference(config.model), parse_reference(config.base or "")
    if model.adapter or base.adapter:
        return False
    folders = [locate(each.base, each.revision, offline=config.offline) for each in (model, base)]
    return folders[0].resolve() == folders[1].resolve()


def _name(config: EvalConfig) -> str:
    """What MODEL is called where the user does not say."""
    parsed = parse_reference(config.model)
    where = (parsed.adapter, parsed.adapter_revision) if parsed.adapter else (parsed.base, parsed.revision)
    folder = locate(*where, offline=config.offline)
    if config.tuned is not None or (folder / REPORT).is_file():
        return "restored"
    return "tuned" if config.base is not None or is_adapter(folder) else "base"


def _known(systems: tuple[str, ...], sets: Mapping[str, str], judges: Sequence[JudgeSpec], attacks: Sequence[Attack],
           shots: Sequence[int], tasks: Sequence[str], has_baseline: bool, read: Sequence[EvaluationSet]) -> Known:
    has_task = "task" in sets.values()
    extra = [*(f"task_accuracy@{count}" for count in shots if count and has_task),
             *(["perplexity"] if has_task or "untouched" in sets.values() else []),
             *([DRIFT] if "tuned" in systems else []), *(["lm-eval:*"] if tasks else [])]
    by_choice = any(has_choices(record) for each in read for record in each.records)
    return Known(systems, sets, tuple(spec.name for spec in judges),
                 tuple(attack.name for attack in attacks if attack.name != "none"), tuple(extra),
                 tuple(SCORERS) if by_choice else (), has_baseline)


def _need_questions(sets: Sequence[EvaluationSet], plan: Plan, setting: Setting) -> None:
    """Refuse a set of which nothing can be asked."""
    for each in sets:
        asked = sum(question.set == each.name for question in plan.questions) + sum(
            len(records) for (name, _), records in plan.scored.items() if name == each.name)
        need_room(f"set {each.name}", sum(name == each.name for name, *_ in plan.too_long), asked, setting)


def setting_of(config: EvalConfig | RestoreConfig, tokenizer_dir: Path, folder: Path) -> Setting:
    """Return how prompts are written, and for how many tokens there is room, by the files of a model.

    Args:
        config: Template, system prompt, longest answer and seed.
        tokenizer_dir: Folder of the tokenizer.
        folder: Folder of `config.json`.

    Returns:
        The setting; `UsageError` and `MismatchError` for a template that cannot be read or does not fit.
    """
    chat = chat_format(load_tokenizer(tokenizer_dir), config.chat_template, config.system_prompt)
    shape = read_model_config(folder).get_text_config()
    context = getattr(shape, "max_position_embeddings", None) or 2048
    return Setting(chat, context, min(config.max_new_tokens, context // 2), config.seed)


def inputs_of(setup: Setup) -> dict[str, Any]:
    """Return the `inputs` of the results: systems, sets, judges, attacks; no absolute path."""
    sets = [{"name": each.name, "role": each.role, "sha256": each.sha256, "rows": len(each.records),
             "rejected": len(each.rejected), "left_out": each.left_out, "file": each.file} for each in setup.sets]
    given = [{"name": name, "role": role, "sha256": each.sha256, "rows": sum(r.set == name for r in each.rows),
              "rejected": len(each.rejected), "left_out": len(each.left_out), "file": each.name}
             for each in setup.generations for name, role in dict.fromkeys((row.set, row.role) for row in each.rows)]
    return {"systems": {system.name: dataclasses.asdict(system.facts) | _template_of(setup)
                        for system in setup.systems},
            "sets": sets + given,
            "judges": {spec.name: {"kind": spec.kind, "identity": spec.identity} | (
                {"files_sha256": spec.files_sha256} if spec.files_sha256 else {}) for spec in setup.judges},
            "attacks": {attack.name: {"k": attack.k, "sha256": attack.sha256} for attack in setup.attacks}}


def _template_of(setup: Setup) -> dict[str, str | None]:
    """All systems are asked in one template, which may be a file's: that is what a baseline has to agree with."""
    template = setup.setting.chat.template if setup.setting else None
    return {"chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None}


def rejected_rows(setup: Setup) -> list[dict[str, Any]]:
    """Return file, line and reason of every malformed row."""
    return [{"file": name, "line": line, "reason": reason} for name, rejected in _rejected_by_file(setup)
            for line, reason in rejected]


def _rejected_by_file(setup: Setup) -> list[tuple[str, tuple[tuple[int, str], ...]]]:
    """Name and malformed rows of every file that has some, once where it gives several sets; names may be alike."""
    files = [*((each.file, each.sha256, each.rejected) for each in setup.sets),
             *((each.name, each.sha256, each.rejected) for each in setup.generations)]
    return [(name, rejected) for name, _, rejected in dict.fromkeys(files) if rejected]


def warnings_of(setup: Setup) -> list[tuple[str, str]]:
    """Return what the user should know of systems and rows, each once."""
    found = [pair for system in setup.systems for pair in system.warnings]
    for name, rejected in _rejected_by_file(setup):
        found += [("W_ROWS_REJECTED", f"{name}: {len(rejected)} rows not used"),
                  *(("W_ROW", f"{name} line {line}: {reason}") for line, reason in rejected[:MOST_SHOWN])]
        if len(rejected) > MOST_SHOWN:
            found.append(("W_ROWS_REJECTED", f"{name}: results.json lists all {len(rejected)} under `rejected`"))
    if setup.plan.too_long:
        name, attack, _ = setup.plan.too_long[0]
        found.append(("W_TOO_LONG", f"{len(setup.plan.too_long)} prompts leave no room for an answer and were not "
                      f"asked, the first of set {name} under attack {attack}"))
    return list(dict.fromkeys(found))
