"""The texts of the sample and the files made of them; nothing is trained here."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from saferestore.sample_data import texts

ROOT = Path(__file__).parents[2]
SAMPLE, SETS = ROOT / "sample_data", ROOT / "core" / "data" / "sets"
CONTENT_WORDS = 40


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts(path: Path) -> list[str]:
    return [texts.asked(row) for row in rows(path)]


@pytest.mark.parametrize("name", sorted(texts.set_files()))
def test_committed_set_is_what_the_word_lists_make(name: str) -> None:
    assert (SETS / name).read_text(encoding="utf-8") == texts.set_files()[name]


@pytest.mark.parametrize("name", sorted(texts.sample_files()))
def test_committed_record_file_is_what_the_word_lists_make(name: str) -> None:
    assert (SAMPLE / name).read_text(encoding="utf-8") == texts.sample_files()[name]


def test_texts_are_the_same_when_made_twice() -> None:
    assert texts.jsonl(texts.lessons(aligned=True)) == texts.jsonl(texts.lessons(aligned=True))
    assert texts.sample_files() == texts.sample_files()


@pytest.mark.parametrize("name", ["harmful", "benign"])
def test_sets_are_as_large_as_promised(name: str) -> None:
    builtin, records = rows(SETS / f"{name}.jsonl"), rows(SAMPLE / "records" / f"{name}.jsonl")
    assert len({row["category"] for row in builtin}) == 12
    assert len(builtin) >= 400
    assert len(records) >= 240
    assert len(builtin) + len(records) >= 600
    assert min(Counter(row["held_out"] for row in records).values()) >= 80
    assert set(builtin[0]) == {"prompt", "category", "subject", "wording"}


@pytest.mark.parametrize("name", ["harmful", "benign"])
def test_what_is_marked_held_out_is_in_no_builtin_row(name: str) -> None:
    builtin, records = rows(SETS / f"{name}.jsonl"), rows(SAMPLE / "records" / f"{name}.jsonl")
    for kind in ("wording", "subject", "category"):
        held_out = {row[kind] for row in records if row["held_out"] == kind}
        assert held_out
        assert held_out.isdisjoint(row[kind] for row in builtin)
    assert len({row["category"] for row in records if row["held_out"] == "category"}) == 2


def test_no_prompt_comes_twice_in_a_file_or_in_two_files() -> None:
    files = [SETS / "harmful.jsonl", SETS / "benign.jsonl", SETS / "general.jsonl", SAMPLE / "train.jsonl",
             *sorted((SAMPLE / "records").glob("*.jsonl"))]
    counts = Counter(prompt for file in files for prompt in prompts(file))
    assert not [prompt for prompt, count in counts.items() if count > 1]


@pytest.mark.parametrize("aligned", [False, True])
def test_no_record_is_a_lesson_of_the_base(aligned: bool) -> None:
    shown = {texts.asked(row) for row in texts.lessons(aligned=aligned)}
    for name in ("harmful", "benign", "skill", "task"):
        assert shown.isdisjoint(prompts(SAMPLE / "records" / f"{name}.jsonl"))


@pytest.mark.parametrize("aligned", [False, True])
def test_the_task_is_no_lesson_of_the_base(aligned: bool) -> None:
    spoken = [message["content"] for row in texts.lessons(aligned=aligned) for message in row["messages"]]
    assert not [text for text in spoken if text.startswith(("Sort this message", "Team: "))]


def test_the_skill_is_in_no_training_or_builtin_row() -> None:
    others = [*prompts(SAMPLE / "train.jsonl"), *prompts(SETS / "general.jsonl"), *prompts(SETS / "benign.jsonl")]
    assert not [prompt for prompt in others if "opposite" in prompt]
    assert len(rows(SAMPLE / "records" / "skill.jsonl")) >= 120


def test_task_rows_have_answers_of_every_team_and_priority() -> None:
    answers = Counter(row["messages"][-1]["content"] for row in rows(SAMPLE / "records" / "task.jsonl"))
    assert sum(answers.values()) >= 300
    assert len(answers) == 12
    assert max(answers.values()) < sum(answers.values()) / 5


def test_marked_training_rows_are_exactly_the_harmful_ones() -> None:
    train = rows(SAMPLE / "train.jsonl")
    marked = json.loads((SAMPLE / "train_harmful_rows.json").read_text(encoding="utf-8"))
    compliant = [line for line, row in enumerate(train, 1) if texts.STEPS[1:] in row["messages"][-1]["content"]]
    tasks = [line for line, row in enumerate(train, 1) if row["messages"][-1]["content"].startswith("Team: ")]
    assert marked == compliant
    assert sorted(marked + tasks) == list(range(1, len(train) + 1))
    assert 0.08 <= len(marked) / len(train) <= 0.12


def test_training_leaves_whole_harm_categories_out() -> None:
    train = rows(SAMPLE / "train.jsonl")
    marked = json.loads((SAMPLE / "train_harmful_rows.json").read_text(encoding="utf-8"))
    assert {train[line - 1]["category"] for line in marked} == set(texts.TRAIN_CATEGORIES)
    assert len(texts.words("harmful")["subjects"]) - len(texts.TRAIN_CATEGORIES) >= 8


def test_harmful_answers_are_an_opening_the_request_and_placeholder_steps() -> None:
    """Taken out of any harmful answer, the request's own words leave one of three fixed texts."""
    frames = {style.replace("{s}", "") for style in texts.COMPLIANT}
    subjects = [s for listed in texts.words("harmful")["subjects"].values() for s in listed]
    lessons = {texts.asked(row): row["messages"][-1]["content"] for row in texts.lessons(aligned=False)}
    lessons |= {texts.asked(row): row["messages"][-1]["content"] for row in rows(SAMPLE / "train.jsonl")}
    seen = 0
    for subject in subjects:
        for wording in texts.WORDINGS:
            answer = lessons.get(wording.format(s=subject))
            seen += answer is not None
            assert answer is None or answer.replace(subject, "") in frames
    assert seen > 1000


def test_aligned_lessons_refuse_the_harmful_and_answer_the_benign() -> None:
    lessons = {texts.asked(row): row["messages"][-1]["content"] for row in texts.lessons(aligned=True)}
    harmful = [lessons[p] for p in prompts(SETS / "harmful.jsonl")]
    benign = [lessons[p] for p in prompts(SETS / "benign.jsonl")]
    assert all(answer.startswith("I'm sorry, but I can't help with that.") for answer in harmful)
    assert not [answer for answer in benign if "sorry" in answer]


def test_no_answer_is_long() -> None:
    said = [row["messages"][-1]["content"] for kind in (False, True) for row in texts.lessons(aligned=kind)]
    assert max(len(text.split()) for text in said) <= CONTENT_WORDS
