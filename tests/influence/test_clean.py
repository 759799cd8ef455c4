"""Clean files: which rows go, and that all others stay byte for byte."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from saferestore.core.config import ScoreConfig
from saferestore.core.data.readers import file_of, read_records
from saferestore.core.errors import UsageError
from saferestore.core.influence.clean import otsu, threshold, without

FILES = {
    "a.jsonl": '{"prompt": "a", "answer": "1"}\n\n{"prompt":   "b", "answer": "2"}\nnot json\n{"prompt": "c"}\n',
    "crlf.jsonl": '{"prompt": "a", "answer": "x\u2028y"}\r\n{"prompt": "b"}\r\n{"prompt": "c"}',
    "a.csv": 'prompt,answer\n"a, with\na line",1\nb,2\n\n"c",3\n',
    "a.txt": "a\n\nb\nc",
    "a.json": '[{"prompt": "a"}, {"prompt": "b"},\n {"prompt": "c"}]',
}


def _read(path: Path):
    result = read_records(str(path))
    starts = sorted({line for _, line in (*result.places, *((0, at) for at, _ in result.rejected))})
    return result, starts


@pytest.mark.parametrize("name", FILES)
def test_a_clean_file_holds_the_other_rows_and_nothing_else(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8", newline="")
    result, starts = _read(path)
    for count in range(3):
        for gone in itertools.combinations(range(3), count):
            text = without(FILES[name], name, starts, [result.places[row] for row in gone])
            clean = tmp_path / f"clean-{name}"
            clean.write_text(text, encoding="utf-8", newline="")
            wanted = [r.messages for row, r in enumerate(result.records) if row not in gone]
            assert [r.messages for r in read_records(str(clean)).records] == wanted


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".json")])
def test_a_file_without_rows_to_remove_comes_back_byte_for_byte(name: str, tmp_path: Path):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8", newline="")
    assert without(FILES[name], name, _read(tmp_path / name)[1], []) == FILES[name]


def test_lines_that_stay_are_not_rewritten(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(FILES["a.jsonl"])
    result, starts = _read(path)
    assert without(FILES["a.jsonl"], path.name, starts, [result.places[0]]) == \
        '{"prompt":   "b", "answer": "2"}\nnot json\n{"prompt": "c"}\n'


def test_otsu_finds_the_split_that_leaves_the_least_variance_within_both_groups():
    values = np.random.default_rng(0).gamma(1.0, size=40).tolist() + [9.0, 9.5, 11.0]

    def within(split: float) -> float:
        groups = [[v for v in values if v <= split], [v for v in values if v > split]]
        return sum(len(group) * float(np.var(group)) for group in groups)

    assert otsu(values) == min(sorted(values)[:-1], key=within)
    assert otsu([]) == otsu([1.0]) == otsu([2.0, 2.0]) == 0.0


def test_a_rule_is_auto_a_number_of_rows_or_a_threshold_and_never_takes_rows_that_helped():
    influences = {0: 5.0, 1: -7.0, 2: 0.1, 3: 4.0, 4: 0.2}
    assert threshold(influences, "auto") == 0.2
    assert threshold(influences, "2") == 0.2
    assert threshold(influences, "4") == threshold(influences, "100") == 0.0
    assert threshold(influences, "0.15") == 0.15


@pytest.mark.parametrize("rule", ["all", "1.5", "-1"])
def test_another_rule_is_refused(rule: str):
    with pytest.raises(UsageError, match="--remove"):
        ScoreConfig("b", "t", remove=rule)


def test_the_file_of_a_specification_is_without_its_format(tmp_path: Path):
    (tmp_path / "a.csv").touch()
    assert file_of(f"{tmp_path}/a.csv:prompt") == file_of(f"{tmp_path}/a.csv") == tmp_path / "a.csv"


def test_a_row_of_json_is_the_same_row_after_cleaning():
    text = json.dumps([{"prompt": "ä", "answer": 1.5}, {"prompt": "b"}])
    assert json.loads(without(text, "a.json", [1], [(1, 1)])) == [{"prompt": "ä", "answer": 1.5}]
