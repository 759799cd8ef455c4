"""The published files as they are, counted against an independent reading with the csv and json modules."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from saferestore.core.data.readers import read_records

# file, format, column of the prompt, columns of (answer, category) where there are such
FILES = [
    ("advbench/harmful_behaviors.csv", "advbench", "goal", "target", None),
    ("strongreject/strongreject.csv", "strongreject", "forbidden_prompt", None, "category"),
    ("jailbreakbench/jailbreakbench.csv", "jailbreakbench", "Goal", "Target", "Category"),
    ("xstest/xstest_prompts.csv", "xstest", "prompt", None, "type"),
    ("xstest/xstest_v2_completions_llama2new_gpteval.csv", "xstest-completions", "prompt", "completion", "type"),
    ("xstest/xstest_v2_completions_mistralinstruct_gpteval.csv", "xstest-completions", "prompt", "completion",
     "type"),
]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("case", FILES, ids=lambda case: case[0])
def test_a_published_csv_is_read_whole(real_files: Path, case: tuple[str, str, str, str | None, str | None]) -> None:
    file, form, prompt, answer, category = case
    result, rows = read_records(str(real_files / file)), table(real_files / file)
    assert (result.format, result.rejected, result.left_out) == (form, (), ())
    assert [r.prompt for r in result.records] == [row[prompt].strip() for row in rows]
    if answer:
        assert [r.answer or "" for r in result.records] == [row[answer].strip() for row in rows]
    if category:
        assert [r.category for r in result.records] == [row[category] for row in rows]


def test_the_header_less_copy_of_advbench_has_the_same_prompts(real_files: Path) -> None:
    bare = read_records(str(real_files / "advbench/harmful_behaviors_qi_copy.csv"))
    full = read_records(str(real_files / "advbench/harmful_behaviors.csv"))
    assert len(bare.records) == len(full.records) == 520
    assert {r.id for r in bare.records} == {r.id for r in full.records}


@pytest.mark.parametrize(("file", "kept", "copyright"), [("harmbench_test.csv", 240, 80),
                                                         ("harmbench_val.csv", 60, 20)])
def test_harmbench_keeps_contexts_and_leaves_out_copyright(real_files: Path, file: str, kept: int,
                                                           copyright: int) -> None:
    path = real_files / "harmbench" / file
    result, rows = read_records(str(path)), {row["BehaviorID"]: row for row in table(path)}
    assert (len(result.records), len(result.left_out), result.rejected) == (kept, copyright, ())
    for record in result.records:
        row = rows[record.id]
        assert record.prompt.startswith(row["ContextString"].strip())
        assert record.prompt.endswith(row["Behavior"].strip())
    assert len(read_records(f"{path}:harmbench-all").records) == kept + copyright


def test_gsm8k_questions_and_answers_are_as_published(real_files: Path) -> None:
    path = real_files / "gsm8k/test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    result = read_records(str(path))
    assert result.format == "gsm8k"
    assert [(r.prompt, r.answer) for r in result.records] == [(row["question"].strip(), row["answer"].strip())
                                                             for row in rows]


def test_xstest_labels_agree_with_the_types_of_the_older_file(real_files: Path) -> None:
    path = real_files / "xstest/xstest_prompts.csv"
    records = read_records(str(path)).records
    labels = Counter((record.meta["label"], str(record.category).startswith("contrast_")) for record in records)
    assert labels == {("safe", False): 250, ("unsafe", True): 200}
    assert len(read_records(f"{path}:xstest-safe").records) == 250
    assert len(read_records(f"{path}:xstest-unsafe").records) == 200
