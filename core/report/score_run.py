"""The stages of `score`, in order, from settings to files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checkpoint.pair import CheckpointPair, open_pair
from ..checkpoint.session import LiveModel, Session, open_session
from ..config import AUTO_WAY, Progress, RestoreConfig, ScoreConfig, no_progress, score_of
from ..curvature.kfac import factor_bytes
from ..data.readers import ReadResult, read_records
from ..data.selection import FoundRows, Selection, select
from ..errors import UsageError
from ..evaluation.preparation import REFUSAL_TOKENS, Prepared
from ..evaluation.room import with_room
from ..evaluation.scoring import prepare_score, score_examiner, score_modules, score_rows
from ..evaluation.systems import Examiner, known_answers
from ..evaluation.training_rows import TrainingRows, training_rows
from ..evaluation.unread import check_rows_use
from .clock import Clock
from .journal import Journal, digest, journal_folder, kept_until_done
from .score import rank, row_summary, row_warnings, score_document, score_lines
from .score_files import check_clean, write_clean, write_score
from .score_schema import validate
from .staging import check_out, staged

Json = dict[str, Any]


def score(config: ScoreConfig, out: Path | None = None, *, clean: Path | None = None, resume: bool = False,
          restart: bool = False, progress: Progress = no_progress) -> Json:
    """Find which modules, and which training rows, cost the model its safety.

    Args:
        config: What to read and how.
        out: The folder to write, whole or not at all; None writes nothing.
        clean: Where the training file goes without the rows over the threshold, with the list of them beside it.
        resume: Go on with the answers and rows of an interrupted run that wrote to `out`.
        restart: Throw them away.
        progress: Told of every long stage.

    Returns:
        The document (the contract of `saferestore schema score`). Errors are raised.
    """
    if out is not None:
        check_out(out, force=config.force, reads=config.reads)
    check_rows_use(config)
    check_clean(clean, config.train, force=config.force)
    clock = Clock()
    torch.manual_seed(config.seed)
    with clock.stage("open"):
        selection, pair, session, examiner, training = open_score(config, progress)
        if training is not None:
            config = dataclasses.replace(config, way=way_with_room(session.adapter(), config.way))
    with kept_until_done(_journal(config, session, training, out, resume=resume, restart=restart)) as journal:
        with clock.stage("prepare"):
            keeping = dataclasses.replace(examiner, known=known_answers(journal.entries), keep=journal.write)
            prepared = prepare_score(session, keeping, selection, config)
        with clock.stage("modules"):
            modules = score_modules(prepared.problem, config)
        rows = _rows(session, prepared, training, config, examiner, journal, clock, progress)
        warnings = [*pair.warnings, *selection.warnings, *prepared.warnings, *rows.warnings]
        found = score_document(config, pair, selection, modules, rows.summary, warnings)
        found["run"] = clock.run()
        validate(found)
        if out is not None:
            with staged(out, force=config.force) as folder:
                write_score(folder, found, rows.lines)
        rows.finish(clean)
    return found


class Opened(NamedTuple):
    """What a score starts from; `training` is None without a training file."""

    selection: Selection
    pair: CheckpointPair
    session: Session
    examiner: Examiner
    training: TrainingRows | None


def open_score(config: ScoreConfig, progress: Progress) -> Opened:
    """Read the rows and open the checkpoints; the errors are those of reading, `open_pair` and `with_room`."""
    selection = select(config.as_restore())
    result = read_records(config.train, offline=config.offline) if config.train is not None else None
    pair = open_pair(config.base, config.tuned, offline=config.offline, rank=config.rank, force=config.force,
                     progress=progress)
    session = open_session(pair, dtype=config.dtype, device=config.device, device_map=config.device_map,
                           max_memory=config.max_memory, load_in=config.load_in, seed=config.seed,
                           between=result is not None)
    examiner = score_examiner(session, config, progress)
    training = training_rows(result, examiner.chat, examiner.context) if result is not None else None
    asked = dataclasses.replace(selection, held_out=dict.fromkeys(selection.held_out, ()))  # not asked
    return Opened(with_room(asked, examiner.setting()), pair, session, examiner, training)


def found_rows(config: RestoreConfig, result: ReadResult, session: Session, journal: Journal,
               progress: Progress = no_progress) -> FoundRows:
    """Part the rows of the training file by their influence, for a restoration.

    Args:
        config: Of the restoration.
        result: The file that `config.train` names.
        session: Its models; the adapter's parameters are the same on return.
        journal: Of the run: answers and rows that stand in it are not asked or scored again, and new ones are kept.
        progress: Told of every long stage.

    Returns:
        The parts.
    """
    session.check_blend()
    settings = score_of(config)
    examiner = dataclasses.replace(score_examiner(session, settings, progress), known=known_answers(journal.entries),
                                   keep=journal.write)
    training = training_rows(result, examiner.chat, examiner.context)
    settings = dataclasses.replace(settings, way=way_with_room(session.adapter(), settings.way))
    selection = with_room(select(settings.as_restore()), examiner.setting())
    safety = prepare_score(session, examiner, selection, settings).problem.safety
    key = digest(_deciding(settings, session, training))
    scored = score_rows(session, safety, training, settings, pad_id=examiner.chat.pad_id, progress=progress,
                        done=[entry for entry in journal.entries if entry.get("scored_by") == key],
                        keep=lambda found: journal.write({**entry, "scored_by": key} for entry in found))
    blamed = rank(scored, settings.remove).removed
    records, brief = training.result.records, dataclasses.replace(
        examiner, max_new_tokens=min(examiner.max_new_tokens, REFUSAL_TOKENS))
    with session.base() as model:
        answers = brief.ask(model, [records[row] for row in blamed], "what the base model refuses")
    harmful = tuple(answer.record for answer in answers if answer.verdict.refused)
    others = tuple(records[row] for row in sorted(set(scored.influences) - set(blamed)))
    return FoundRows(training.result, harmful, others, len(blamed) - len(harmful))


def way_with_room(live: LiveModel, way: str, free_bytes: int | None = None) -> str:
    """Return the way that is taken: only `ekfac` may not fit the memory of the adapter's device.

    Args:
        live: The model.
        way: A row of `QUERIES`, or `auto`.
        free_bytes: Memory free; None asks the device, and where it cannot tell everything fits.

    Returns:
        A row of `QUERIES`; for `auto` `ekfac`, or `diagonal` where that does not fit.

    Raises:
        UsageError: `ekfac` was asked for and does not fit.
    """
    needed = factor_bytes(leaf.shape for leaf in live.leaves.values()) if way in (AUTO_WAY, "ekfac") else 0
    free = _free_bytes(live.device) if free_bytes is None else free_bytes
    too_large = free is not None and needed > free
    if way == AUTO_WAY:
        return "diagonal" if too_large else "ekfac"
    if free is not None and too_large:
        raise UsageError(f"its factors take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free - --way ekfac",
                         hint="use --way auto or --way diagonal")
    return way


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        # Pages that hold cached files are free, too: what the kernel counts as available.
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


@dataclass(frozen=True)
class _Rows:
    """What rows add to the document, and what is left to do once OUT stands."""

    summary: Json | None
    lines: list[Json]
    warnings: list[tuple[str, str]]
    finish: Callable[[Path | None], None]


def _rows(session: Session, prepared: Prepared, training: TrainingRows | None, config: ScoreConfig,
          examiner: Examiner, journal: Journal, clock: Clock, progress: Progress) -> _Rows:
    """Score the rows of the training file, where there is one."""
    if training is None:
        return _Rows(None, [], [], lambda _: None)
    with clock.stage("rows"):
        scored = score_rows(session, prepared.problem.safety, training, config, pad_id=examiner.chat.pad_id,
                            done=[entry for entry in journal.entries if "row" in entry], keep=journal.write,
                            progress=progress)
    ranked = rank(scored, config.remove)
    lines = score_lines(training, scored, ranked, examiner.chat, config.redact)
    summary = row_summary(config, training, scored, ranked, lines)

    def finish(clean: Path | None) -> None:
        if clean is not None:
            write_clean(clean, str(config.train), training, scored, ranked, offline=config.offline)

    return _Rows(summary, lines, row_warnings(training, scored, summary), finish)


def _journal(config: ScoreConfig, session: Session, training: TrainingRows | None, out: Path | None, *, resume: bool,
             restart: bool) -> Journal:
    """Open the journal of a score of rows that writes OUT; any other keeps nothing."""
    if training is None or out is None:
        return Journal(None, {})
    return Journal(journal_folder(out), _deciding(config, session, training), resume=resume, restart=restart)


def _deciding(config: ScoreConfig, session: Session, training: TrainingRows) -> Json:
    """Return what two runs must share for one to go on with the rows of the other."""
    free = {"top", "remove", "redact", "force", "offline"}
    plain = {key: value for key, value in dataclasses.asdict(config).items() if key not in free}
    return {"settings": plain, "train_sha256": training.result.sha256,
            "weights_sha256": [dict(facts.weights_sha256) for facts in (session.pair.base_facts,
                                                                        session.pair.tuned_facts)]}
