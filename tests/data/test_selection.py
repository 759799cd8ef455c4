"""Which rows fit and which measure: sizes, nothing of one side on the other, everything counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from saferestore.core.config import RestoreConfig
from saferestore.core.data.records import Message, Record, groups_of
from saferestore.core.data.selection import Selection, Source, sample, select
from saferestore.core.errors import UsageError

CATEGORIES, SUBJECTS, WORDINGS = 8, 6, 3
FILES = {"harmful": "harmful.jsonl", "benign": "benign.jsonl", "task": "task.jsonl", "untouched": "skill.jsonl"}


def write_rows(path: Path, rows: Iterable[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asked(kind: str) -> list[dict[str, object]]:
    """Prompts in three wordings of each subject of each category."""
    return [{"prompt": f"{kind} wording {w} of subject {s} of category {c}", "category": f"{kind} {c}",
             "subject": f"{kind} {c} {s}"} for c in range(CATEGORIES) for s in range(SUBJECTS) for w in range(WORDINGS)]


def answered(kind: str, count: int) -> list[dict[str, object]]:
    return [{"prompt": f"{kind} {i}", "response": f"answer {i}"} for i in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    rows = {"harmful": asked("harmful"), "benign": asked("benign"), "task": answered("task", 90),
            "untouched": answered("skill", 30)}
    return {name: (write_rows(tmp_path / FILES[name], part),) for name, part in rows.items()}


def chosen(files: dict[str, tuple[str, ...]], **settings: object) -> Selection:
    return select(RestoreConfig("b", "t", **({**files, "fit_rows": 20, "held_out_rows": 15} | settings)))


def named(rows: Iterable[Record], kind: str) -> list[Record]:
    return [row for row in rows if row.prompt.startswith(kind)]


def source(rows: Selection, name: str) -> Source:
    [found] = [each for each in rows.sources if each.name == name]
    return found


def test_sizes_are_those_asked_for(files: dict[str, tuple[str, ...]]) -> None:
    rows = chosen(files)
    assert len(rows.harmful) == 20 and len(rows.retain) == 30
    assert {name: len(part) for name, part in rows.held_out.items()} == {
        "harmful": 15, "benign": 15, "task": 15, "untouched": 15}


def test_a_quarter_of_the_retain_rows_is_task_and_four_fifths_of_the_rest_benign(
        files: dict[str, tuple[str, ...]]) -> None:
    rows = chosen(files).retain
    assert (len(named(rows, "task")), len(named(rows, "benign"))) == (7, 18)
    without = chosen(files, task=()).retain
    assert len(without) == 30 and len(named(without, "benign")) == 24


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_measures_is_fitted(files: dict[str, tuple[str, ...]], seed: int) -> None:
    rows = chosen(files, seed=seed, fit_rows=500, held_out_rows=500)
    fit, held = rows.harmful, rows.held_out["harmful"]
    assert len(fit) + len(held) == CATEGORIES * SUBJECTS * WORDINGS
    assert not {row.group for row in fit} & {row.group for row in held}
    assert not {row.category for row in fit} & set(rows.held_out_categories)
    assert len(rows.held_out_categories) == 2
    for name in ("benign", "task"):
        assert not {row.prompt for row in rows.retain} & {row.prompt for row in rows.held_out[name]}
    assert not {row.prompt for row in rows.retain} & {row.prompt for row in rows.held_out["untouched"]}


def test_a_file_of_few_categories_keeps_most_of_them(tmp_path: Path, files: dict[str, tuple[str, ...]]) -> None:
    few = [row for row in asked("harmful") if str(row["category"]) in ("harmful 0", "harmful 1", "harmful 2")]
    rows = chosen(files | {"harmful": (write_rows(tmp_path / "few.jsonl", few),)})
    assert rows.held_out_categories == ()
    assert chosen(files, hold_out_categories=0).held_out_categories == ()


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(files: dict[str, tuple[str, ...]]) -> None:
    assert chosen(files, seed=1) == chosen(files, seed=1)
    assert chosen(files, seed=1).harmful != chosen(files, seed=2).harmful


@pytest.mark.parametrize(("limit", "harmful", "task"), [
    (40.0, 40, 40), (0.5, CATEGORIES * SUBJECTS * WORDINGS // 2, 45)])
def test_a_limit_is_a_number_or_a_share_of_each_set_by_seed(
        files: dict[str, tuple[str, ...]], limit: float, harmful: int, task: int) -> None:
    rows = chosen(files, limit=limit, fit_rows=10_000, held_out_rows=10_000)
    assert len(rows.harmful) + len(rows.held_out["harmful"]) == harmful
    assert len(named(rows.retain, "task")) + len(rows.held_out["task"]) == task
    assert rows.harmful == chosen(files, limit=limit, fit_rows=10_000, held_out_rows=10_000).harmful
    assert rows.harmful != chosen(files, limit=limit, seed=1, fit_rows=10_000, held_out_rows=10_000).harmful


def test_more_rows_keep_those_chosen_before() -> None:
    rows = [Record(str(i), (Message("user", str(i)),)) for i in range(50)]
    few, many = sample(rows, 10, seed=3), sample(rows, 20, seed=3)
    assert len(few) == 10 and all(row in many for row in few)
    assert [int(row.id) for row in many] == sorted(int(row.id) for row in many)
    assert sample(rows, 99, seed=3) == tuple(rows)


def test_safe_answers_are_known_by_their_prompts_and_bring_prompts_of_their_own(
        tmp_path: Path, files: dict[str, tuple[str, ...]]) -> None:
    known = str(asked("harmful")[0]["prompt"])
    given = [{"prompt": known, "response": "No."}, {"prompt": "harmful and new", "response": "Never."}]
    rows = chosen(files | {"safe": (write_rows(tmp_path / "safe.jsonl", given),)}, fit_rows=500, held_out_rows=500)
    assert rows.safe_answers == {known: "No.", "harmful and new": "Never."}
    new = [row for row in (*rows.harmful, *rows.held_out["harmful"]) if row.prompt == "harmful and new"]
    assert [row.answer for row in new] == [None]  # the safe answer is none of the harmful ones
    used = sum(row.prompt in rows.safe_answers for row in rows.harmful)
    assert (source(rows, "safe").fit_rows, source(rows, "safe").held_out_rows) == (used, 0)


@pytest.mark.parametrize("name", ["safe", "task", "untouched"])
def test_a_row_without_its_answer_is_refused_by_name(
        tmp_path: Path, files: dict[str, tuple[str, ...]], name: str) -> None:
    rows = [{"id": "row-1", "prompt": "one", "response": "yes"}, {"id": "row-2", "prompt": "two"}]
    with pytest.raises(UsageError, match=f"without an answer - --{name}: bad.jsonl, line 2") as caught:
        chosen(files | {name: (write_rows(tmp_path / "bad.jsonl", rows),)})
    assert f"--{name}" in caught.value.hint


@pytest.mark.parametrize("name", ["harmful", "benign", "task"])
def test_a_set_of_one_row_cannot_be_split_and_is_named(
        tmp_path: Path, files: dict[str, tuple[str, ...]], name: str) -> None:
    one = write_rows(tmp_path / "one.jsonl", [{"prompt": "one", "response": "yes"}])
    with pytest.raises(UsageError, match=f"too few rows.* - --{name}$"):
        chosen(files | {name: (one,)})


def test_sources_name_files_by_digest_and_count_what_is_used(
        tmp_path: Path, files: dict[str, tuple[str, ...]]) -> None:
    more = write_rows(tmp_path / "more.jsonl", answered("task more", 30))
    rows = chosen(files | {"task": (*files["task"], more)})
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in (*files["task"], more)]
    assert source(rows, "task") == Source("task", ("task.jsonl", "more.jsonl"),
                                          hashlib.sha256("".join(digests).encode()).hexdigest(), 7, 15, 0, 0)
    [path] = files["harmful"]
    assert source(rows, "harmful") == Source("harmful", ("harmful.jsonl",),
                                             hashlib.sha256(Path(path).read_bytes()).hexdigest(), 20, 15, 0, 0)
    retained = sum(source(rows, name).fit_rows for name in ("task", "benign", "general"))
    assert retained == len(rows.retain) and source(rows, "untouched").fit_rows == 0


def test_the_built_in_sets_stand_in_for_what_is_not_given() -> None:
    rows = select(RestoreConfig("b", "t", fit_rows=30, held_out_rows=40))
    assert {each.name: each.files for each in rows.sources} == {
        name: (f"builtin:{name}",) for name in ("harmful", "benign", "general")}
    assert len(rows.harmful) == 30 and len(rows.retain) == 45 and len(rows.held_out["harmful"]) == 40
    assert rows.held_out["task"] == rows.held_out["untouched"] == ()
    assert [code for code, _ in rows.warnings] == ["W_NO_TASK_ROWS"]


def test_rejected_rows_are_counted_and_warned_of(tmp_path: Path, files: dict[str, tuple[str, ...]]) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [*answered("task", 30), {"response": "of nothing"}])
    rows = chosen(files | {"task": (path,)})
    assert source(rows, "task").rejected_rows == 1
    [(code, message)] = rows.warnings
    assert code == "W_ROWS_REJECTED" and "rows.jsonl: 1 rows" in message and "line 31" in message


def test_a_second_wording_of_a_subject_is_taken_only_when_every_subject_has_one() -> None:
    records = [Record(f"{subject}-{wording}", (Message("user", f"{subject} {wording}"),), group=str(subject))
               for subject in range(10) for wording in range(4)]
    for seed in range(5):
        assert len({record.group for record in sample(records, 10, seed)}) == 10
        counts = Counter(record.group for record in sample(records, 25, seed))
        assert sorted(counts.values()) == [2] * 5 + [3] * 5
    assert sample(records, 100, 0) == tuple(records)


def test_files_that_count_their_rows_alike_are_sampled_alike() -> None:
    files = [[Record(str(i), (Message("user", f"{name} {i}"),)) for i in range(40)] for name in ("one", "other")]
    counts = Counter(record.prompt.partition(" ")[0] for record in sample([*files[0], *files[1]], 40, seed=0))
    assert counts == {"one": 20, "other": 20}


def test_prompts_of_one_id_are_no_variants_but_one_prompt_under_two_ids_is() -> None:
    records = [Record(name, (Message("user", text),), group=group) for name, text, group in (
        ("1", "a", None), ("1", "b", None), ("2", "a", None), ("1", "c", "1"), ("3", "d", "1"))]
    first, second, again, *grouped = groups_of(records)
    assert first == again != second and grouped == ["1", "1"]
