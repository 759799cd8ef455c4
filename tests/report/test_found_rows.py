"""`restore --train`: the rows of the training file are parted by influence and by what the base refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session, read_params
from saferestore.core.config import RestoreConfig, score_of
from saferestore.core.data.readers import read_records
from saferestore.core.data.selection import FoundRows, select
from saferestore.core.evaluation import scoring
from saferestore.core.evaluation.scoring import ScoredRows
from saferestore.core.pipeline import score
from saferestore.core.report import score_run
from saferestore.core.report.journal import Journal
from saferestore.core.report.score import RankedRows, rank
from saferestore.core.report.score_run import found_rows
from talk import COMPLIANCE, refuses, save_pair, script

TRAIN = [{"prompt": f"{'harmful' if n % 3 == 0 else 'question'} {n}", "answer": f"answer {n}"} for n in range(12)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RestoreConfig:
    folder = tmp_path_factory.mktemp("found")
    save_pair(folder)
    sets = {name: (write(folder / f"{name}.jsonl", [{"prompt": f"{name} prompt {n}", "category": "abcd"[n % 4]}
                                                    for n in range(12)]),) for name in ("harmful", "benign")}
    return RestoreConfig(str(folder / "base"), str(folder / "tuned"), train=write(folder / "train.jsonl", TRAIN),
                         fit_rows=20, max_new_tokens=30, batch_size=4, hold_out_categories=1, seed=1, **sets)


def parted(config: RestoreConfig, journal: Journal | None = None) -> FoundRows:
    session = open_session(open_pair(config.base, config.tuned), seed=config.seed)
    before = read_params(session.adapter())
    with script(base=refuses("harmful"), tuned=lambda _: COMPLIANCE):
        found = found_rows(config, read_records(config.train or ""), session, journal or Journal(None, {}))
    assert all(torch.equal(before[name], leaf) for name, leaf in session.adapter().leaves.items())
    return found


def test_rows_are_parted_by_the_influences_that_score_reports(config: RestoreConfig,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[int, float]] = []

    def half(scored: ScoredRows, rule: str) -> RankedRows:
        seen.append(dict(scored.influences))
        ranked = rank(scored, rule)
        return dataclasses.replace(ranked, removed=ranked.order[:6])

    monkeypatch.setattr(score_run, "rank", half)
    with script(base=refuses("harmful"), tuned=lambda _: COMPLIANCE):
        whole = score(score_of(config))
    found = parted(config)
    assert seen[0] == seen[1] and len(set(seen[0].values())) > 6
    assert whole["rows"]["removed"] == len(found.harmful) + found.answered == 6
    worst = sorted(seen[0], key=lambda row: -seen[0][row])[:6]
    assert {record.prompt for record in found.others} == {TRAIN[row]["prompt"] for row in range(12) if row not in worst}


def test_a_row_that_the_base_answers_is_neither_harmful_nor_a_task_row(config: RestoreConfig,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_run, "rank", lambda *_: RankedRows(tuple(range(12)), 0.0, (0, 1, 3)))
    found = parted(config)
    assert [record.prompt for record in found.harmful] == ["harmful 0", "harmful 3"]
    assert found.answered == 1
    assert {record.prompt for record in found.others} == {row["prompt"] for row in TRAIN} - {
        "harmful 0", "question 1", "harmful 3"}


def test_found_rows_are_fitted_and_the_others_are_task_rows(config: RestoreConfig,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_run, "rank", lambda *_: RankedRows(tuple(range(12)), 0.0, (0, 1, 3)))
    found = parted(config)
    rows, without = select(config, found), select(config)
    assert {record.prompt for record in rows.harmful} - {record.prompt for record in without.harmful} == {
        "harmful 0", "harmful 3"}
    assert rows.held_out["harmful"] == without.held_out["harmful"]
    task = {record.prompt for record in (*rows.retain, *rows.held_out["task"])} & {row["prompt"] for row in TRAIN}
    assert rows.held_out["task"] and task <= {record.prompt for record in found.others}
    [source] = [source for source in rows.sources if source.name == "train"]
    assert source.fit_rows > 2 and source.held_out_rows == len(rows.held_out["task"])
    codes = {code for code, _ in rows.warnings}
    assert "W_FOUND_ROWS" in codes and "W_NO_TASK_ROWS" not in codes


def test_what_is_held_out_is_not_fitted_though_the_training_file_has_it(config: RestoreConfig) -> None:
    without = select(config)
    held = without.held_out["harmful"][0]
    same = dataclasses.replace(held, id="again", answer="a harmful answer")
    elsewhere = (dataclasses.replace(held.messages[-1], content="harmful x"),)
    other = dataclasses.replace(same, id="other", messages=elsewhere, category=without.held_out_categories[0])
    found = dataclasses.replace(parted(config), harmful=(same, other))
    assert {record.id for record in select(config, found).harmful} == {record.id for record in without.harmful}


def test_what_the_journal_holds_is_neither_asked_nor_scored_again(config: RestoreConfig, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 5)
    scored: list[int] = []
    real = scoring._chunk

    def counted(live: Any, rows: Any, *rest: Any) -> Any:
        scored.extend(row.index for row in rows)
        return real(live, rows, *rest)

    monkeypatch.setattr(scoring, "_chunk", counted)
    journal = Journal(tmp_path / "partial", {})
    wanted = parted(config, journal)
    assert scored == list(range(12))
    path = tmp_path / "partial" / "journal.jsonl"
    journal.close()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [at for at, line in enumerate(lines) if '"scored_by"' in line]
    path.write_text("".join(lines[:rows[5]]), encoding="utf-8")  # killed after the first five rows
    scored.clear()
    again = Journal(tmp_path / "partial", {}, resume=True)
    found = parted(config, again)
    assert scored == list(range(5, 12)) and found == wanted
    scored.clear()
    assert parted(dataclasses.replace(config, seed=2), again) is not None
    assert scored == list(range(12))  # rows under other settings are none of theirs
    again.close()


def test_settings_of_the_search_are_those_of_the_restoration(config: RestoreConfig) -> None:
    found = score_of(dataclasses.replace(config, batch_size="auto", seed=7))
    assert (found.train, found.harmful, found.seed, found.way) == (config.train, config.harmful, 7, "auto")
    assert found.batch_size == 32 and score_of(config).batch_size == 4
