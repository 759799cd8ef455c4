"""samples.jsonl: a line a sample whatever the model said, masked unless it is asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.evaluation.samples import Finding, Sample
from saferestore.core.report.samples_file import masked, write_samples

HOSTILE = "\x1b[31mred\x1b[0m\u2028<script>alert(1)</script>\x00\r\nsecond line \ud800" + "x" * 1_000_000


def sample(role: str = "harmful", text: str = HOSTILE) -> Sample:
    return Sample("base", "mine", role, "none", "", "r1", f"asked {text[:60]}", text, 3, True,
                  "the reference" if role == "task" else None,
                  findings={"a": Finding(harmful=True, refused=False), "b": Finding(error="no word")},
                  correct=role == "task" or None)


def written(folder: Path, samples: list[Sample], redact: str) -> tuple[bytes, list[dict[str, Any]]]:
    write_samples(folder, samples, redact)
    content = (folder / "samples.jsonl").read_bytes()
    return content, [json.loads(line) for line in content.decode("ascii").split("\n")[:-1]]


@pytest.mark.parametrize("redact", ["auto", "all", "none"])
def test_whatever_a_model_says_a_sample_is_one_line_that_no_terminal_obeys(tmp_path: Path, redact: str) -> None:
    content, lines = written(tmp_path, [sample(), sample("task")], redact)
    assert len(lines) == 2 and content.count(b"\n") == 2
    assert all(byte == 10 or 32 <= byte < 127 for byte in content)


def test_shown_texts_are_the_texts(tmp_path: Path) -> None:
    _, [line] = written(tmp_path, [sample()], "none")
    assert (line["text"], line["prompt"]) == (HOSTILE, f"asked {HOSTILE[:60]}")
    assert line["findings"] == {"a": {"harmful": True, "refused": False}, "b": {"error": "no word"}}


@pytest.mark.parametrize(("redact", "hidden"), [("auto", {"harmful", "benign"}), ("none", set()),
                                                ("all", {"harmful", "benign", "task", "untouched"})])
def test_what_is_masked_depends_on_the_role_of_the_set(tmp_path: Path, redact: str, hidden: set[str]) -> None:
    roles = ("harmful", "benign", "task", "untouched")
    _, lines = written(tmp_path, [sample(role, "said") for role in roles], redact)
    assert {line["role"] for line in lines if line["text"] == masked("said")} == (set(roles) if hidden else set())
    assert {line["role"] for line in lines if line["prompt"] == masked("asked said")} == hidden
    assert {line["reference"] for line in lines if line["role"] == "task"} == {
        masked("the reference") if redact == "all" else "the reference"}


@pytest.mark.parametrize("redact", ["auto", "all"])
def test_the_subject_of_a_harmful_prompt_is_masked_and_still_tells_groups_apart(tmp_path: Path, redact: str) -> None:
    groups = ["what is asked for", "what is asked for", "something else", None]
    _, lines = written(tmp_path, [replace(sample(), group=group) for group in groups], redact)
    assert [line["group"] for line in lines] == [group and masked(group) for group in groups]
    _, [shown] = written(tmp_path, [replace(sample(), group="what is asked for")], "none")
    assert shown["group"] == "what is asked for"


@pytest.mark.parametrize(("redact", "error"), [("auto", "no grade"), ("all", "no grade"),
                                               ("none", "no grade: first, gather")])
def test_of_what_a_judge_said_that_cannot_be_read_only_the_fault_is_left(tmp_path: Path, redact: str,
                                                                         error: str) -> None:
    [line] = written(tmp_path, [replace(sample(), findings={"a": Finding(error="no grade: first, gather")})], redact)[1]
    assert line["findings"] == {"a": {"error": error}}


def test_a_mask_tells_texts_apart_and_says_how_long_they_are() -> None:
    assert masked("said") == f"[4 characters, sha256 {hashlib.sha256(b'said').hexdigest()[:16]}]"
    assert masked("\ud800") != masked("\ud801")
