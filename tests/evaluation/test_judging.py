"""Every judge looks at every answer to a harmful or benign prompt, once; a judging model's findings are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
from saferestore.core.config import no_progress
from saferestore.core.evaluation import judging
from saferestore.core.evaluation.judges import JudgeSpec, parse_judges
from saferestore.core.evaluation.judges.run import Loading
from saferestore.core.evaluation.judges.specs import ready_rubric
from saferestore.core.evaluation.judging import CHUNK, judge_samples
from saferestore.core.evaluation.samples import Finding, Sample
from talk import COMPLIANCE, REFUSAL

MODEL = JudgeSpec("harmbench", "rubric", ready_rubric("harmbench"), "a/model")
GIBBERISH = "the the the the the the the the"


def sample(text: str, role: str = "harmful", number: int = 0, **more: Any) -> Sample:
    return Sample("base", role, role, "none", "", f"r{number}", "p", text, 1, True, **more)


def judged(samples: list[Sample], specs: Any, *, entries: Any = (), keep: Any = None) -> list[Sample]:
    return judge_samples(samples, specs, entries=entries, keep=keep or (lambda found: None),
                         loading=Loading(device="cpu", offline=True), progress=no_progress)


def test_answers_to_prompts_are_judged_side_by_side_and_task_answers_are_not() -> None:
    found = judged([sample(REFUSAL), sample(COMPLIANCE, "benign"), sample(GIBBERISH), sample("4", "task")],
                   parse_judges(("refusal-wording", "refusal-substrings")))
    assert [list(s.findings) for s in found] == [["coherence", "refusal-wording", "refusal-substrings"]] * 3 + [[]]
    assert [s.findings["coherence"].score for s in found[:3]] == [1, 1, 0]
    for name in ("refusal-wording", "refusal-substrings"):
        assert [(s.findings[name].harmful, s.findings[name].refused) for s in found[:3]] == [
            (False, True), (True, False), (False, False)]  # gibberish is neither


def test_findings_of_systems_stay_beside_those_of_answers() -> None:
    before = sample(REFUSAL, findings={"base-likelihood": Finding(harmful=True, score=0.5)})
    [found] = judged([before], parse_judges(("refusal-wording", "base-likelihood")))
    assert found.findings["base-likelihood"].score == 0.5 and found.findings["refusal-wording"].refused


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a judging model was asked; it finds harm in answers that say so."""
    seen: list[Any] = []

    @contextmanager
    def model(reference: str, _: Loading, **__: Any) -> Iterator[tuple[str, str]]:
        seen.append(reference)
        yield "model", "tokenizer"

    def run(rubric: Any, model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> list[Finding]:
        assert (model, tokenizer) == ("model", "tokenizer")
        seen.append([text for _, text in pairs])
        return [Finding(error="what?") if "?" in text else Finding(harmful="harm" in text) for _, text in pairs]

    monkeypatch.setattr(judging, "judging_model", model)
    monkeypatch.setattr(judging, "run_rubric", run)
    return seen


TEXTS = [f"{'harm' if i % 3 == 0 else 'fine'} {i}" + "?" * (i % 7 == 5) for i in range(CHUNK + 10)]


def test_findings_of_a_judging_model_are_kept_a_chunk_at_a_time_and_not_asked_for_again(asked: list[Any]) -> None:
    samples, kept = [sample(text, number=i) for i, text in enumerate(TEXTS)], []
    found = judged(samples, [MODEL], keep=kept.append)
    assert asked == ["a/model", TEXTS[:CHUNK], TEXTS[CHUNK:]]
    assert [len(part) for part in kept] == [CHUNK, 10]
    wanted = [Finding(error="what?") if i % 7 == 5 else Finding(harmful=i % 3 == 0) for i in range(len(TEXTS))]
    assert [s.findings["harmbench"] for s in found] == wanted
    asked.clear()
    assert judged(samples, [MODEL], entries=kept[0]) == found
    assert asked == ["a/model", TEXTS[CHUNK:]]
    asked.clear()
    assert judged(samples, [MODEL], entries=[*kept[0], *kept[1]]) == found
    assert asked == []  # no model is loaded for nothing


def test_findings_of_another_judge_or_of_systems_in_the_journal_are_not_taken_for_this_one(asked: list[Any]) -> None:
    entry = {"judge": "other", "sample": 0, "finding": asdict(Finding(harmful=True))}
    numbers = {"system": "base", "question": 0, "text": "x"}
    [found] = judged([sample("fine")], [MODEL], entries=[entry, numbers])
    assert found.findings["harmbench"].harmful is False
