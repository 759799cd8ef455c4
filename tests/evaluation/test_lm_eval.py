"""The harness gets the loaded model and its results become rows; a stand-in takes its place, and the real one if it
is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import talk
import torch
from saferestore.core.data.chat import ChatFormat
from saferestore.core.errors import SaferestoreError, UsageError
from saferestore.core.evaluation.intervals import wilson
from saferestore.core.evaluation.lm_eval import fold, parse_tasks, run_lm_eval
from transformers import LlamaConfig, LlamaForCausalLM

CHAT = ChatFormat(talk.byte_tokenizer(), talk.TEMPLATE, system="Be brief.")
FOUND: dict[str, Any] = {
    "results": {
        "arc": {"alias": "arc", "name": "arc", "sample_len": 8, "acc,none": 0.75, "acc_stderr,none": 0.16,
                "acc_norm,none": 0.5, "acc_norm_stderr,none": "N/A"},
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.2,
                  "exact_match,flexible-extract": 0.3, "exact_match_stderr,flexible-extract": 0.1},
        "wiki": {"alias": "wiki", "word_perplexity,none": 20.0, "word_perplexity_stderr,none": 2.0,
                 "byte_perplexity,none": 2.0, "byte_perplexity_stderr,none": "N/A", "bits,none": float("nan")},
        "group": {"alias": "group", "acc,none": 0.5, "acc_stderr,none": 0.1},
    },
    "n-samples": {"arc": {"original": 100, "effective": 8}, "gsm8k": {"original": 4, "effective": 4},
                  "wiki": {"original": 5, "effective": 5}},
    "group_subtasks": {"group": ["arc", "inner"], "inner": ["gsm8k"], "arc": []},
}


def tiny() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=len(CHAT.tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=256)
    return LlamaForCausalLM(shape).train()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in with the four names that are used; the list holds what it was called with."""
    calls: list[dict[str, Any]] = []

    def simple_evaluate(**inputs: Any) -> dict[str, Any]:
        print("a table")
        calls.append(inputs | {"training": inputs["model"].pretrained.training})
        if "broken" in inputs["tasks"]:
            raise KeyError("no such column")
        return FOUND

    parts = {"lm_eval": {"simple_evaluate": simple_evaluate}, "lm_eval.models": {},
             "lm_eval.models.huggingface": {"HFLM": SimpleNamespace},
             "lm_eval.tasks": {"TaskManager": lambda: SimpleNamespace(all_tasks=["arc_easy", "mmlu_law", "broken"])}}
    for name, members in parts.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_tasks_are_known_names_patterns_or_files(harness: object, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: mine")
    assert parse_tasks(f"arc_easy, mmlu_*,arc_easy,{path}") == ("arc_easy", "mmlu_*", str(path))


@pytest.mark.parametrize(("text", "what", "hint"), [
    (" ,", "no task", "give for example"), ("arc_esay", "unknown task - --lm-eval arc_esay", "did you mean arc_easy?"),
    ("zzz*", "unknown task - --lm-eval zzz", "`lm-eval ls tasks` lists them"),
])
def test_other_tasks_are_refused(harness: object, text: str, what: str, hint: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        parse_tasks(text)
    assert error.value.hint.startswith(hint)


def test_without_the_harness_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="lm-evaluation-harness is not installed") as error:
        parse_tasks("arc_easy")
    assert error.value.hint == "pip install 'saferestore[lm-eval]'"


def test_the_harness_gets_the_model_and_its_format_and_leaves_both_alone(harness: list[dict[str, Any]],
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    rows = run_lm_eval(model, CHAT, ("arc_easy",), system="tuned", batch_size=2, context=128, seed=3, limit=8)
    [call] = harness
    assert call["model"].pretrained is model
    assert not call["training"]
    assert model.training
    assert call["model"].tokenizer is not CHAT.tokenizer
    assert (call["model"].tokenizer.chat_template, call["system_instruction"]) == (talk.TEMPLATE, "Be brief.")
    assert (call["tasks"], call["limit"], call["apply_chat_template"]) == (["arc_easy"], 8, True)
    assert {value for name, value in call.items() if name.endswith("_seed")} == {3}
    assert rows == fold(FOUND, "tuned")
    assert capsys.readouterr().out == ""


def test_a_task_that_fails_is_an_error_in_its_own_words(harness: object) -> None:
    with pytest.raises(SaferestoreError, match="--lm-eval broken: KeyError: 'no such column'") as error:
        run_lm_eval(tiny(), CHAT, ("broken",), system="tuned", batch_size=2, context=128, seed=0)
    assert error.value.exit_code == 1


def test_results_become_rows_with_wilson_intervals_where_they_are_shares() -> None:
    rows = {(row["set"].removeprefix("lm-eval:"), row["metric"].removeprefix("lm-eval:")): row
            for row in fold(FOUND, "tuned")}
    six_of_eight, two_of_four = wilson(6, 8), wilson(1, 4)
    expected = {("arc", "acc"): (0.75, 8, six_of_eight.ci_low, six_of_eight.ci_high),
                ("gsm8k", "exact_match,strict-match"): (0.25, 4, two_of_four.ci_low, two_of_four.ci_high),
                ("gsm8k", "exact_match,flexible-extract"): (0.3, 4, 0.3 - 0.196, 0.3 + 0.196),  # 1.2 of 4 is no count
                ("wiki", "word_perplexity"): (20, 5, 20 - 3.92, 20 + 3.92),
                ("wiki", "byte_perplexity"): (2, 5, None, None),
                ("group", "acc"): (0.5, 12, wilson(6, 12).ci_low, wilson(6, 12).ci_high)}
    for place, (value, n, low, high) in expected.items():
        row = rows[place]
        assert (row["value"], row["n"]) == (value, n)
        assert (row["ci_low"], row["ci_high"]) == (low and pytest.approx(low, abs=1e-4),
                                                   high and pytest.approx(high, abs=1e-4))
    assert set(rows) == set(expected) | {("arc", "acc_norm")}
    json.dumps(list(rows.values()), allow_nan=False)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra")
def test_the_real_harness_scores_a_task_of_four_questions(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"q": f"Is {i} odd?", "a": i % 2}) + "\n"
                                                 for i in range(4)))
    task = tmp_path / "odd.yaml"
    task.write_text(json.dumps({
        "task": "odd", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q}}", "doc_to_choice": ["yes", "no"],
        "doc_to_target": "a", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}))
    [row] = run_lm_eval(tiny(), CHAT, parse_tasks(str(task)), system="base", batch_size=2, context=128, seed=0)
    assert (row["set"], row["metric"], row["n"]) == ("lm-eval:odd", "lm-eval:acc", 4)
    assert row["value"] in (0, 0.25, 0.5, 0.75, 1)
