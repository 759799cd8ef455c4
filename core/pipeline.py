"""The stages of each command, in order: the only place where they meet."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoint.determinism import deterministic
from .checkpoint.loading import place
from .checkpoint.pair import CheckpointPair, open_pair
from .checkpoint.reference import locate, parse_reference
from .checkpoint.session import Session, open_session
from .checkpoint.writer import reload_error, write_adapter
from .config import PUBLISHED, CompareConfig, EvalConfig, ProbeConfig, Progress, RestoreConfig, no_progress
from .curvature.engines import passes_at_most
from .data.chat import chat_format
from .data.readers import ReadResult, read_records
from .data.selection import Selection, select
from .errors import NumericalError
from .evaluation.comparing import compare_models, measure_models
from .evaluation.controls import run_controls
from .evaluation.examination import Examined, examine
from .evaluation.findings import agreement_rows, calibrated, check_errors, given_answers, measured_of
from .evaluation.gate.baseline import check_baseline, measured_in
from .evaluation.gate.decide import decide
from .evaluation.gate.decide import exit_code as gate_exit_code
from .evaluation.gate.measure import comparisons
from .evaluation.gate.rules import Rule
from .evaluation.gradient_rows import fitting_rows
from .evaluation.judges import parse_judges
from .evaluation.judges.run import loading_of
from .evaluation.judging import judge_samples
from .evaluation.landscape_rows import answered_rows, read_sets
from .evaluation.planning import estimate, estimate_evaluation
from .evaluation.preparation import Prepared, prepare
from .evaluation.probing import find_target, probe_system, read_probe_sets
from .evaluation.relearning import run_relearning
from .evaluation.restore_gate import attacks_of, decide_restored, known_of
from .evaluation.restored import ask_restored
from .evaluation.room import with_room
from .evaluation.samples import Sample
from .evaluation.setup import Setup, inputs_of, rejected_rows, set_up, warnings_of
from .evaluation.systems import Examiner, known_answers
from .evaluation.unread import check_calibration, check_gate_use
from .geometry.delta import deltas
from .report import assemble
from .report.answers import Shown, shown_answers
from .report.calibration_schema import valid as valid_calibration
from .report.clock import Clock
from .report.compare import document
from .report.compare_files import write_comparison, write_pictures
from .report.compare_schema import validate as validate_comparison
from .report.gate_files import check_new_baseline, read_baseline, read_gate, write_baseline
from .report.journal import Journal, check_journal, journal_folder, kept_until_done
from .report.probe import document as probe_document
from .report.probe_files import write_pictures as write_probe_pictures
from .report.probe_files import write_probe
from .report.probe_schema import validate as validate_probe
from .report.restored import report_of
from .report.results import gate_section, results, write_results
from .report.samples_file import write_samples
from .report.score_run import found_rows, score  # noqa: F401 - the stages of score meet there; this is its place
from .report.share import command_line, environment
from .report.staging import check_folders, check_out, staged
from .report.write import sha256, write_bundle
from .restoration.methods.inputs import Applied, Inputs
from .restoration.methods.table import METHODS, apply
from .restoration.settings import solver_settings
from .restoration.trust_region import Outcome, minimise

Json = dict[str, Any]
USUAL_PROMPT = 192
"""Tokens of a prompt that `--batch-size auto` reckons with."""


def restore(config: RestoreConfig, out: Path, *, resume: bool = False, restart: bool = False,
            progress: Progress = no_progress) -> Json:
    """Repair a fine-tuned checkpoint and prove it.

    Args:
        config: What to read and how.
        out: The folder to write, whole or not at all; until then what both models answer is kept in `OUT.partial`.
        resume: Go on with the answers of a run that was killed.
        restart: Drop them.
        progress: Told of every long stage.

    Returns:
        The report (the contract of `saferestore schema`), with `exit_code` and `verdict`. Where a loss is not finite
        the verdict is `refused` and nothing is written. Wrong settings and empty sets raise `UsageError`, inputs that
        do not fit `MismatchError`.
    """
    check_out(out, force=config.force, reads=config.reads)
    check_journal(journal_folder(out), resume=resume, restart=restart)
    config = config.resolved()
    try:
        with deterministic(on=config.deterministic), contextlib.ExitStack() as until_done:
            return _restore(config, _Place(out, resume, restart, until_done), progress)
    except NumericalError as error:
        return assemble.refusal(config, error)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a run writes, whether it goes on with an earlier one, and what is closed once it is done."""

    out: Path
    resume: bool
    restart: bool
    until_done: contextlib.ExitStack


def _restore(config: RestoreConfig, place: _Place, progress: Progress) -> Json:
    clock = Clock()
    torch.manual_seed(config.seed)
    with clock.stage("open"):
        rows, rules, trained_on = _read(config)
        pair = open_pair(config.base, config.tuned, offline=config.offline, rank=config.rank, force=config.force,
                         progress=progress)
        unaligned = find_unaligned(config, progress)
        session = open_session(pair, dtype=config.dtype, device=config.device, device_map=config.device_map,
                               max_memory=config.max_memory, load_in=config.load_in, seed=config.seed)
        examiner = make_examiner(session, config, progress)
        journal = place.until_done.enter_context(kept_until_done(Journal(
            journal_folder(place.out), assemble.answered_by(pair, config), resume=place.resume, restart=place.restart)))
    if trained_on is not None:
        with clock.stage("find rows"):
            rows = select(config, found_rows(config, trained_on, session, journal, progress))
    rows = with_room(rows, examiner.setting(config.seed), attacks_of(rules))
    with clock.stage("prepare"):
        keeping = dataclasses.replace(examiner, known=known_answers(journal.entries), keep=journal.write)
        prepared = prepare(session, keeping, rows, objective=config.objective, on_disk=config.low_memory,
                           with_harmful=needs_harmful(config))
    with clock.stage("restore"):
        outcome, applied = _moved(config, pair, unaligned, prepared, progress)
    with clock.stage("evaluate"):
        after = ask_restored(prepared, examiner, rows, seed=config.seed)
    with clock.stage("controls"):
        controls = run_controls(session, prepared, outcome, examiner, rows, config) if config.controls else []
    with clock.stage("relearn"):
        relearning = run_relearning(session, prepared, outcome, examiner, config.relearn)
    report = report_of(config, pair, rows, prepared, outcome, applied, after, controls, relearning)
    if rules:
        with clock.stage("gate"):
            answers, params = {**prepared.answers, "restored": after.answers}, {
                "tuned": outcome.start.params, "restored": outcome.point.params}
            gated = decide_restored(session, params, answers, examiner, rows, rules, config)
        code = gate_exit_code(gated) if config.gate_mode == "enforce" else report["exit_code"]
        report |= {"gate": gate_section(gated, config.gate_mode), "exit_code": code}
    shown = shown_answers({**prepared.answers, "restored": after.answers}, config.redact)
    _write(place.out, report, config, prepared, session, outcome, clock, shown)
    return report


def _read(config: RestoreConfig) -> tuple[Selection, Sequence[Rule], ReadResult | None]:
    """Return rows, rules and training file; all is refused that can be before a checkpoint is looked at."""
    check_gate_use(config)
    place(config.dtype, config.device, config.device_map, config.max_memory, config.load_in, torch.float32, sums=True)
    rows, rules = select(config), read_gate(Path(config.gate)) if config.gate else ()
    if rules:
        known_of(rows, rules)
    return rows, rules, read_records(config.train, offline=config.offline) if config.train is not None else None


def _moved(config: RestoreConfig, pair: CheckpointPair, unaligned: Path | None, prepared: Prepared,
           progress: Progress) -> tuple[Outcome, Applied | None]:
    """Move the adapter by our own steps, or by a published method."""
    if config.method not in PUBLISHED:
        return minimise(prepared.problem, solver_settings(config), progress=progress), None
    applied = apply(config.method, method_inputs(config, pair, unaligned, prepared, progress), config.strength)
    return applied.outcome, applied


def method_inputs(config: RestoreConfig, pair: CheckpointPair, unaligned: Path | None, prepared: Prepared,
                  progress: Progress = no_progress) -> Inputs:
    """Return what a published method is given: the budgets are those of our own steps."""
    passes = passes_at_most(config.engine, config.max_steps, fresh=pair.kind == "full")
    return Inputs(prepared.problem, prepared.safety, pair, unaligned, config.max_drift, passes, config.seed, progress)


def find_unaligned(config: RestoreConfig, progress: Progress = no_progress) -> Path | None:
    """Return the folder of the unaligned model; None where the method takes none."""
    if config.unaligned is None:
        return None
    reference = parse_reference(config.unaligned)
    return locate(reference.base, reference.revision, offline=config.offline, progress=progress)


def needs_harmful(config: RestoreConfig) -> bool:
    """Tell whether the method looks at harmful answers of fit rows."""
    return config.method in PUBLISHED and "harmful" in METHODS[config.method].needs


def plan(config: RestoreConfig) -> Json:
    """Check everything that headers, rows and the tokenizer can tell, and return what a run would need.

    Args:
        config: The settings of the run.

    Returns:
        The plan, see `evaluation.planning.estimate`. Errors are those of `restore` before weights are read.
    """
    config = config.resolved()
    rows, rules, _ = _read(config)
    pair = open_pair(config.base, config.tuned, offline=config.offline, rank=config.rank, force=config.force,
                     read_weights=False)
    find_unaligned(config)
    return estimate(pair, rows, config, attacks_of(rules), device="cuda" if torch.cuda.is_available() else "cpu")


def evaluate(config: EvalConfig, out: Path | None = None, *, new_baseline: Path | None = None, resume: bool = False,
             restart: bool = False, progress: Progress = no_progress) -> Json:
    """Measure harm, over-refusal and utility of systems side by side, and decide a gate.

    Args:
        config: What to ask and how.
        out: The folder to write, whole or not at all; None writes nothing. Its journal lies in `OUT.partial`.
        new_baseline: File that later runs may compare with.
        resume: Go on with the journal of a run that was killed.
        restart: Drop that journal.
        progress: Told of every long stage.

    Returns:
        The results (the contract of `saferestore schema eval`), with the gate's exit code. Errors are raised.
    """
    if out is not None:
        check_out(out, force=config.force, reads=config.reads)
    if new_baseline is not None:
        check_new_baseline(new_baseline, out=out, reads=[each for each in config.reads if each != config.baseline])
    clock, rules = Clock(), read_gate(Path(config.gate)) if config.gate else ()
    baseline = read_baseline(Path(config.baseline)) if config.baseline else None
    torch.manual_seed(config.seed)
    with clock.stage("open"):
        setup = set_up(config, rules, has_baseline=baseline is not None, progress=progress)
        inputs, settings = _comparable(setup, config, baseline)
    folder = journal_folder(out) if out is not None and setup.systems else None
    journal = Journal(folder, assemble.deciding(config, inputs), resume=resume, restart=restart)
    with contextlib.closing(journal), deterministic(on=config.deterministic):
        samples, examined = _asked_and_judged(setup, journal, config, clock, progress)
    check_errors(samples, config.max_errors)
    measured = measured_of(samples, examined)
    outcomes = decide(rules, setup.known, measured, measured_in(baseline) if baseline is not None else None)
    found = results(inputs=inputs, settings=settings, seed=config.seed, environment=environment(), measured=measured,
                    comparisons=comparisons(measured), agreement=agreement_rows(samples), outcomes=outcomes,
                    mode=config.gate_mode, warnings=warnings_of(setup), rejected=rejected_rows(setup), run=clock.run())
    if new_baseline is not None:
        write_baseline(new_baseline, found)
    if out is not None:
        with staged(out, force=config.force) as staging:
            write_results(staging, found)
            write_samples(staging, samples, config.redact)
        journal.remove()
    return found


def plan_evaluation(config: EvalConfig) -> Json:
    """Check everything that headers, rows and tokenizers can tell, and return what a run would ask.

    Args:
        config: The settings of the run.

    Returns:
        The plan, see `evaluation.planning.estimate_evaluation`. Errors are those of `evaluate` before weights are read.
    """
    rules = read_gate(Path(config.gate)) if config.gate else ()
    baseline = read_baseline(Path(config.baseline)) if config.baseline else None
    setup = set_up(config, rules, has_baseline=baseline is not None, read_weights=False, progress=no_progress)
    _comparable(setup, config, baseline)
    return estimate_evaluation(setup, config.max_new_tokens, device="cuda" if torch.cuda.is_available() else "cpu")


def _comparable(setup: Setup, config: EvalConfig, baseline: Json | None) -> tuple[Json, Json]:
    """Return inputs and settings as results say them; UsageError where the baseline was measured in another way."""
    inputs, settings = inputs_of(setup), assemble.settings(config)
    if baseline is not None:
        check_baseline(baseline, {"inputs": inputs, "settings": settings, "seed": config.seed}, setup.rules,
                       setup.known, Path(config.baseline or "").name)
    return inputs, settings


def calibrate(config: EvalConfig, files: Sequence[str], *, progress: Progress = no_progress) -> Json:
    """Set judges beside people's labels, by model.

    Args:
        config: `judge`, and where a judging model runs.
        files: Labelled answers.
        progress: Told of every batch.

    Returns:
        The table (the contract of `saferestore schema calibrate`). Errors are raised.
    """
    check_calibration(config)
    return valid_calibration(calibrated(files, parse_judges(config.judge), loading_of(config), progress=progress))


def _asked_and_judged(setup: Setup, journal: Journal, config: EvalConfig, clock: Clock,
                      progress: Progress) -> tuple[list[Sample], Examined]:
    entries = list(journal.entries)
    with clock.stage("ask"):
        size = config.batch_size if config.batch_size == "auto" else int(config.batch_size)
        examined = given_answers(setup.generations) if not setup.systems else examine(
            setup, entries, batch_size=size, limit=config.limit, keep=journal.write, progress=progress)
    with clock.stage("judge"):
        samples = judge_samples(examined.samples, setup.judges, entries=entries, keep=journal.write,
                                loading=loading_of(config), progress=progress)
    return samples, examined


def compare(config: CompareConfig, out: Path | None = None, *, plots: Path | None = None,
            progress: Progress = no_progress) -> Json:
    """Test whether the geometry of the harmful loss survived fine-tuning, beside an unrelated model and other rows.

    Args:
        config: What to compare and how.
        out: The folder to write, whole or not at all; None writes nothing.
        plots: A folder for the pictures alone.
        progress: Told of every long stage.

    Returns:
        The document (the contract of `saferestore schema compare`). Errors are raised.
    """
    check_folders((out, plots), force=config.force, reads=config.reads)
    clock = Clock()
    with clock.stage("open"):
        sets = read_sets(config)
        pair = open_pair(config.base, config.tuned, offline=config.offline, force=config.force, progress=progress)
        session = open_session(pair, dtype=config.dtype, device=config.device, device_map=config.device_map,
                               max_memory=config.max_memory, seed=config.seed, between=True)
    with clock.stage("changes"):
        changes = deltas(pair, progress=progress)
    with clock.stage("answer"):
        rows = answered_rows(session, make_examiner(session, config, progress), sets)
    with clock.stage("measure"):
        landscapes, line = measure_models(session, rows, config, progress)
    with clock.stage("compare"):
        found = document(config, pair, sets, rows, changes, compare_models(landscapes, line, config))
    found["run"] = clock.run()
    validate_comparison(found)
    for folder, write in ((out, write_comparison), (plots, write_pictures)):
        if folder is not None:
            with staged(folder, force=config.force) as staging:
                write(staging, found)
    return found


def probe(config: ProbeConfig, out: Path | None = None, *, plots: Path | None = None,
          progress: Progress = no_progress) -> Json:
    """Say what a checkpoint is, and measure its losses, their surfaces and their curvature.

    Args:
        config: What to probe and how.
        out: The folder to write, whole or not at all; None writes nothing.
        plots: A folder for the pictures alone.
        progress: Told of every long stage.

    Returns:
        The document (the contract of `saferestore schema probe`). Errors are raised.
    """
    check_folders((out, plots), force=config.force, reads=config.reads)
    clock = Clock()
    with clock.stage("open"):
        sets, target = read_probe_sets(config), find_target(config, progress)
    with clock.stage("measure"):
        measured = probe_system(target.system, sets, config, progress) if target.system is not None else None
    found = probe_document(config, target, measured)
    found["run"] = clock.run()
    validate_probe(found)
    for folder, write in ((out, write_probe), (plots, write_probe_pictures)):
        if folder is not None:
            with staged(folder, force=config.force) as staging:
                write(staging, found)
    return found


def make_examiner(session: Session, config: RestoreConfig | CompareConfig, progress: Progress) -> Examiner:
    """Return how the systems of a session are asked; loads the tuned model."""
    chat = chat_format(session.tokenizer, config.chat_template, config.system_prompt)
    model = session.adapter().model
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    longest = min(context, USUAL_PROMPT + config.max_new_tokens)
    return Examiner(chat, min(config.max_new_tokens, context // 2), fitting_rows(model, longest, config.batch_size),
                    context, progress)


def _write(out: Path, report: Json, config: RestoreConfig, prepared: Prepared, session: Session, outcome: Outcome,
           clock: Clock, answers: Sequence[Shown]) -> None:
    """Write OUT whole: the adapter, re-read through PEFT and compared, then the report and what repeats the run."""
    with staged(out, force=config.force) as folder:
        write_adapter(folder, outcome.point.params, session.pair)
        probe = prepared.problem.drift.batches[-1].input_ids
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        written = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in files.items()}
        report["outputs"] = {**written, "roundtrip_max_abs_error": reload_error(folder, session, probe)}
        report["run"] = clock.run()
        write_bundle(folder, report, config, command_line(config), answers)
