"""Data sets of the hub: what their names mean, and the rows that `datasets` reads of a folder on this disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.data.hub import HubSet, as_json_lines, hub_set, rows_of
from saferestore.core.data.readers import read_records
from saferestore.core.errors import UsageError

ROWS = [{"goal": f"please do {i}", "target": "Sure", "category": "a" if i % 2 else "b"} for i in range(5)]


@pytest.fixture(autouse=True)
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`datasets` takes a folder of this name for the data set, so no network is needed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("spec", "expected"), [
    ("owner/name[train]", HubSet("owner/name", None, "train", None)),
    ("name[test]@main", HubSet("name", None, "test", "main")),
    ("owner/na.me-2[hard-1k/train]@refs/pr/1", HubSet("owner/na.me-2", "hard-1k", "train", "refs/pr/1")),
    ("rows.jsonl", None), ("owner/name", None), ("./owner/name[train]", None), ("/abs/name[train]", None),
    ("../x[y]", None), ("a/b/c[train]", None), ("name[]", None)])
def test_only_an_id_with_a_split_is_a_data_set(spec: str, expected: HubSet | None) -> None:
    assert hub_set(spec) == expected


@pytest.mark.parametrize(("spec", "count"), [("owner/name[train]", 5), ("owner/name[test]", 2),
                                             ("owner/name[train]:prompt", 5)])
def test_rows_are_read_as_those_of_a_file_with_the_same_columns(spec: str, count: int) -> None:
    found, same = read_records(spec), read_records(f"owner/name/{'test' if count == 2 else 'train'}.jsonl:prompt")
    assert [record.messages for record in found.records] == [record.messages for record in same.records]
    assert len(found.records) == count and found.name.startswith("owner/name[")
    assert found.records[0].category == "b"


def test_the_same_rows_have_the_same_digest(published: Path) -> None:
    found = read_records("owner/name[train]").sha256
    assert found == read_records("owner/name[train]").sha256 != read_records("owner/name[test]").sha256


def test_rows_come_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(*names: Any, **settings: Any) -> Any:
        asked.append(settings)
        return iter([*ROWS, RuntimeError("never reached")])

    monkeypatch.setattr("datasets.load_dataset", load)
    rows = rows_of(HubSet("owner/name", None, "train", "abc"))
    assert next(rows) == ROWS[0] and next(rows) == ROWS[1]
    assert asked[0]["streaming"] is False  # these tests are offline: from the cache, which is not streamed
    assert (asked[0]["revision"], asked[0]["download_config"].local_files_only) == ("abc", True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    next(rows_of(HubSet("owner/name", None, "train", None)))
    assert asked[1]["streaming"] is True and not asked[1]["download_config"].local_files_only
    next(rows_of(HubSet("owner/name", None, "train", None), offline=True))
    assert asked[2]["streaming"] is False


@pytest.mark.parametrize("spec", ["owner/none[train]", "owner/name[dev]", "owner/name[other/train]"])
def test_what_is_not_there_is_refused_by_name(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_records(spec)
    assert caught.value.what.startswith("cannot read the data set - owner/n") and "ID[SPLIT]" in caught.value.hint
    assert "\n" not in caught.value.what


def test_a_file_of_that_name_wins_and_a_wrong_format_is_named() -> None:
    Path("name[train]").write_text("a prompt\n", encoding="utf-8")
    assert read_records("name[train]").records[0].prompt == "a prompt"
    with pytest.raises(UsageError, match="unknown format `promt`"):
        read_records("owner/name[train]:promt")


def test_odd_values_are_text() -> None:
    class Rows:
        def __iter__(self) -> Any:
            return iter([{"prompt": "x\ud800", "when": Path("y")}])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.load_dataset", lambda *_, **__: Rows())
        [line] = as_json_lines(HubSet("n", None, "s", None)).decode("utf-8").splitlines()
    assert json.loads(line.replace("\\ud800", ""))["when"] == "y"
