"""Systems are asked one at a time; a run that goes on asks nothing twice and finds the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from saferestore.core import losses
from saferestore.core.checkpoint.quiet import quiet
from saferestore.core.config import EvalConfig, no_progress
from saferestore.core.data.batches import Batch
from saferestore.core.evaluation import asking, examination
from saferestore.core.evaluation.examination import Examined, examine
from saferestore.core.evaluation.setup import Setup, set_up
from talk import save_pair
from transformers import AutoModelForCausalLM

Json = dict[str, Any]


def lines(path: Path, *rows: Json) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A base, its adapter as tuned and as restored, asked a little of everything."""
    folder = tmp_path_factory.mktemp("examined")
    base, tuned = map(str, save_pair(folder))
    config = EvalConfig(
        tuned, base=base, tuned=tuned, max_new_tokens=5, device="cpu", judge=("refusal-wording", "base-likelihood"),
        attack=("decode:t=1.0;n=2",), shots="0,1",
        harmful=(lines(folder / "h.jsonl", *({"prompt": f"do {i}"} for i in range(5))),),
        benign=(lines(folder / "b.jsonl", *({"prompt": f"be {i}"} for i in range(3))),),
        task=(lines(folder / "t.jsonl", *({"prompt": f"add {i}", "response": str(i)} for i in range(4)), ),
              "choice=" + lines(folder / "c.jsonl", *({"question": f"which {i}", "choices": ["a", "b"], "answer": 1}
                                                      for i in range(3)))))
    return set_up(config, (), has_baseline=False, progress=no_progress)


def run(setup: Setup, entries: Sequence[Json] = (), *, batch_size: int | str = 2) -> tuple[Examined, list[Json]]:
    """What was found, and the entries that were kept."""
    kept: list[Json] = []
    found = examine(setup, entries, batch_size=batch_size, limit=None, keep=kept.extend, progress=no_progress)
    return found, kept


def test_losses_step_down_when_memory_runs_out_and_find_the_same(
        setup: Setup, whole: tuple[Examined, list[Json]], monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch of losses may hold more than one row, and the tuned model's more than two."""
    whole_logits, tried = losses.answer_logits, []

    def limited(model: Any, batch: Batch) -> Any:
        tried.append(len(batch.rows))
        if tried[-1] > (1 if isinstance(model, PeftModel) else 2):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
        return whole_logits(model, batch)

    monkeypatch.setattr(losses, "answer_logits", limited)
    found, kept = run(setup, batch_size="auto")
    assert {4, 2, 1} <= set(tried)
    expected = {(row["system"], row["set"], row["metric"], row["judge"]): row["value"] for row in whole[0].rows}
    assert {(row["system"], row["set"], row["metric"], row["judge"]): row["value"] for row in found.rows} == {
        key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}
    assert len(kept) > len(setup.systems)


def test_an_error_that_is_not_about_memory_is_raised(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(losses, "answer_logits", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(setup)


@pytest.fixture(autouse=True)
def _every_answer_of_the_base_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "refusal_wording", lambda text: True)


@pytest.fixture(scope="module")
def whole(setup: Setup) -> tuple[Examined, list[Json]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examination, "refusal_wording", lambda text: True)
        return run(setup)


def test_every_system_answers_every_question_in_one_order(setup: Setup, whole: tuple[Examined, list[Json]]) -> None:
    found, kept = whole
    assert len(found.samples) == 3 * len(setup.plan.questions)
    assert list(dict.fromkeys(s.system for s in found.samples)) == ["base", "tuned", "restored"]
    asked = [[(s.set, s.attack, s.variant, s.id, s.shots) for s in found.samples if s.system == name]
             for name in ("base", "tuned", "restored")]
    assert asked[0] == asked[1] == asked[2]
    assert [s.text for s in found.samples if s.system == "tuned"] == [
        s.text for s in found.samples if s.system == "restored"]  # the same adapter under two names
    assert [e for e in kept if "batch_size" in e] == [{"batch_size": 2}]


def test_numbers_are_measured_on_the_systems_that_have_them(whole: tuple[Examined, list[Json]]) -> None:
    found = {(row["system"], row["set"], row["metric"]) for row in whole[0].rows}
    drift = {(system, of) for system, of, metric in found if metric == "kl_to_tuned_nats_per_token"}
    assert {system for system, _ in drift} == {"restored"}
    assert {system for system, _, metric in found if metric == "perplexity"} == {"base", "tuned", "restored"}
    assert {(system, metric) for system, of, metric in found if of == "choice"} >= {
        ("base", "task_accuracy"), ("tuned", "task_accuracy@1")}
    near = [row["value"] for row in whole[0].rows if row["metric"] == "kl_to_tuned_nats_per_token"]
    assert near == pytest.approx([0] * len(near), abs=1e-6)


def test_a_run_that_goes_on_from_any_entry_asks_only_what_is_missing_and_finds_the_same(
        setup: Setup, whole: tuple[Examined, list[Json]], monkeypatch: pytest.MonkeyPatch) -> None:
    found, kept = whole
    entries = json.loads(json.dumps(kept))  # as a journal gives them back
    asked: list[list[int]] = []
    generate = asking.generate_batches

    def counted(model: Any, prompts: Any, batches: Sequence[Sequence[int]], **settings: Any) -> Any:
        asked.extend(map(list, batches))
        return generate(model, prompts, batches, **settings)

    monkeypatch.setattr(asking, "generate_batches", counted)
    numbers = [i for i, entry in enumerate(kept) if "numbers" in entry]
    for cut in (4, numbers[0] - 1, numbers[1], numbers[2]):
        asked.clear()
        again, more = run(setup, entries[:cut])
        assert asdict(again) == asdict(found)
        answers = sum("question" in entry for entry in entries[cut:])
        assert sum("question" in entry for entry in more) == answers
        assert len(asked) <= answers // 2 + 3  # batches of two; at most one torn in each system
        assert cut < numbers[0] or not any(entry.get("system") == "base" and "question" in entry for entry in more)


def test_a_finished_run_loads_no_model(setup: Setup, whole: tuple[Examined, list[Json]],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "Shelf", lambda placement: type("Empty", (), {"clear": lambda self: None})())
    again, more = run(setup, whole[1])
    assert asdict(again) == asdict(whole[0]) and more == []


def test_all_systems_have_the_batches_of_the_first_whatever_memory_is_left(
        setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter((3, 1, 2))
    monkeypatch.setattr(examination, "fitting_batch_size", lambda *_: next(sizes))
    seen: list[int] = []
    ask = examination.ask

    def noted(*arguments: Any, batch_size: int, **settings: Any) -> Any:
        seen.append(batch_size)
        return ask(*arguments, batch_size=batch_size, **settings)

    monkeypatch.setattr(examination, "ask", noted)
    _, kept = run(setup, batch_size="auto")
    assert set(seen) == {3} and [e for e in kept if "batch_size" in e] == [{"batch_size": 3}]


def mean_log_p(model: Any, setup: Setup, record: Any, text: str) -> float:
    """Of the tokens of an answer and its end, one row alone."""
    chat = setup.setting.chat  # type: ignore[union-attr]
    prompt, answer = chat.prompt_ids(record), chat.answer_ids(record, text)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1].double()
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).mean())


def test_all_systems_weigh_the_same_two_answers_the_base_s_refusal_and_what_the_tuned_model_said(
        setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which they are asked; a refusal of the tuned model is no harmful answer."""
    said: dict[tuple[str, str], str] = {}
    samples = run(setup)[0].samples
    for sample in samples:
        if sample.role == "harmful" and sample.attack == "none":
            said[sample.system, sample.id] = sample.text
    with quiet():
        models = {"base": AutoModelForCausalLM.from_pretrained(setup.systems[0].folder)}
        models["tuned"] = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(setup.systems[0].folder), str(setup.systems[1].pair.tuned_dir)).eval()  # type: ignore[union-attr]
    records = {record.id: record for each in setup.sets if each.role == "harmful" for record in each.records}
    told = [s for s in samples if "base-likelihood" in s.findings]
    assert {(s.system, s.attack) for s in told} == {(name, "none") for name in ("base", "tuned", "restored")}
    compared = 0
    for sample in (s for s in told if s.system in models and said["tuned", s.id] and said["base", s.id]):
        safe, harmful = (mean_log_p(models[sample.system], setup, records[sample.id], said[name, sample.id])
                         for name in ("base", "tuned"))
        assert sample.findings["base-likelihood"].score == pytest.approx(harmful - safe, abs=1e-4)
        compared += 1
    assert compared >= 6
