"""What is found and checked before any weights are in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from saferestore.core.checkpoint import systems
from saferestore.core.config import EvalConfig, no_progress
from saferestore.core.errors import MismatchError, UsageError
from saferestore.core.evaluation.gate.rules import Rule
from saferestore.core.evaluation.planning import MEASURED_FLOPS, estimate_evaluation
from saferestore.core.evaluation.setup import Setup, inputs_of, rejected_rows, set_up, warnings_of
from safetensors.torch import load_file, save_file
from talk import CONTEXT, TEMPLATE, byte_tokenizer, save_pair
from tokenizers import Tokenizer


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "load_model", lambda *_: pytest.fail("a model was loaded"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    base, tuned = save_pair(tmp_path_factory.mktemp("pair"))
    return str(base), str(tuned)


def prompts(folder: Path, *texts: str) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def checked(model: str, folder: Path, *rules: Rule, **changes: Any) -> Setup:
    settings: dict[str, Any] = {"harmful": (prompts(folder, "How?", "Why?"),), "max_new_tokens": 8}
    return set_up(EvalConfig(model, **(settings | changes)), rules, has_baseline=False, progress=no_progress)


def names(found: Setup) -> list[str]:
    return [system.name for system in found.systems]


def test_systems_are_called_by_what_they_are(pair: tuple[str, str], tmp_path: Path) -> None:
    base, tuned = pair
    restored = shutil.copytree(tuned, tmp_path / "restored")
    (restored / "saferestore.json").write_text("{}", encoding="utf-8")
    assert names(checked(base, tmp_path)) == ["base"]
    assert names(checked(tuned, tmp_path)) == ["tuned"]
    assert names(checked(tuned, tmp_path, base=base)) == ["base", "tuned"]
    assert names(checked(str(restored), tmp_path, base=base)) == ["base", "restored"]
    assert names(checked(tuned, tmp_path, base=base, tuned=tuned)) == ["base", "tuned", "restored"]
    assert names(checked(base, tmp_path, base=base)) == ["base"]  # once
    full = shutil.copytree(base, tmp_path / "full")
    assert names(checked(str(full), tmp_path, base=base)) == ["base", "tuned"]
    assert names(checked(base, tmp_path, base=base, system="restored")) == ["base", "restored"]
    assert names(checked(tuned, tmp_path, system="restored")) == ["restored"]


def test_the_base_that_an_adapter_records_is_evaluated_beside_it(pair: tuple[str, str], tmp_path: Path) -> None:
    base, tuned = pair
    found = checked(tuned, tmp_path, base="-")
    assert names(found) == ["base", "tuned"]
    assert {system.folder for system in found.systems} == {Path(base).resolve()}
    assert found.systems[0].facts.ref == "base"  # an absolute path is cut to its last part
    with pytest.raises(MismatchError, match="no base is recorded"):
        checked(base, tmp_path, base="-")


def test_systems_of_different_vocabularies_are_not_asked_with_the_tokens_of_one(
        pair: tuple[str, str], tmp_path: Path) -> None:
    other, _ = save_pair(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    Tokenizer.from_str(json.dumps(content)).save(str(other / "tokenizer.json"))
    with pytest.raises(MismatchError, match="tokenizers of different vocabularies"):
        checked(str(other), tmp_path, tuned=pair[1])


def test_the_likelihood_judge_needs_the_base_and_answers_that_exist_have_none(
        pair: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the base's own answers - --judge base-likelihood"):
        checked(pair[1], tmp_path, judge=("base-likelihood",))
    assert checked(pair[1], tmp_path, judge=("base-likelihood",), base=pair[0]).judges[0].kind == "likelihood"
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "p", "response": "r"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="needs the base's own answers"):
        checked("", tmp_path, generations=(str(answers),), judge=("base-likelihood",), harmful=(), max_new_tokens=64)
    with pytest.raises(UsageError, match="nothing to evaluate"):
        checked("", tmp_path)


@pytest.mark.parametrize("changes", [
    {"model": "m"}, {"base": "b"}, {"harmful": ("p.txt",)}, {"attack": ("prefill:1",)}, {"limit": 3},
    {"shots": "0,1"}, {"lm_eval": "arc"}, {"system_prompt": "s"}, {"chat_template": "none"}, {"max_new_tokens": 9},
    {"dtype": "float32"}, {"load_in": "4bit"}, {"device_map": "auto"},
    {"baseline": "b.json", "gate": "g.yaml"}], ids=lambda changes: next(iter(changes)))
def test_answers_that_exist_are_not_asked_for_so_what_would_be_asked_is_refused(changes: dict[str, Any],
                                                                                tmp_path: Path) -> None:
    name = next(iter(changes)).replace("_", "-")
    config = EvalConfig(**{"model": "", "generations": ("a.jsonl",), **changes})
    with pytest.raises(UsageError, match=f"--generations does not read it - {'MODEL' if name == 'model' else name}"
                       .replace("- ", "- (--)?")):
        set_up(config, (), has_baseline=False, progress=no_progress)


def test_a_baseline_without_a_gate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rule compares with it - --baseline b.json"):
        checked("", tmp_path, baseline="b.json")


@pytest.mark.parametrize(("changes", "said"), [
    ({"attack": ("prefill:2",)}, "no set reads it - --attack"), ({"shots": "1"}, None),
    ({"judge": ("refusal-substrings",)}, "no set reads it - --judge"),
    ({"gate_mode": "advisory"}, "no gate gives a verdict - --gate-mode advisory"),
    ({"max_memory": "cpu=1GiB"}, "no --device-map reads it - --max-memory")])
def test_what_no_task_set_and_no_gate_reads_is_refused(pair: tuple[str, str], tmp_path: Path, changes: dict[str, Any],
                                                       said: str | None) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text("".join(json.dumps({"prompt": f"add {n}", "answer": str(n)}) + "\n" for n in range(4)),
                    encoding="utf-8")
    with contextlib.nullcontext() if said is None else pytest.raises(UsageError, match=said):
        checked(pair[1], tmp_path, harmful=(), task=(str(task),), **changes)


def test_what_only_other_sets_read_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no set reads it - --shots") as caught:
        checked(pair[1], tmp_path, shots="0,1")
    assert "task" in caught.value.hint
    benign: dict[str, Any] = {"benign": (prompts(tmp_path, "How?"),), "harmful": ()}
    assert checked(pair[1], tmp_path, judge=("refusal-substrings",), **benign).judges[0].name == "refusal-substrings"
    with pytest.raises(UsageError, match="no set reads it - --attack"):
        checked(pair[1], tmp_path, attack=("prefill:2",), **benign)


def test_a_judging_model_of_answers_that_exist_is_loaded_as_asked(pair: tuple[str, str], tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "p", "response": "r"}\n', encoding="utf-8")
    config = EvalConfig("", generations=(str(answers),), judge=(f"harmbench={pair[0]}",), dtype="float32")
    assert set_up(config, (), has_baseline=False, progress=no_progress).judges[0].name == "harmbench"


def test_a_judging_model_is_looked_at_before_anything_is_asked(pair: tuple[str, str], tmp_path: Path) -> None:
    """A wrong folder, and a guard whose template leaves out the answer, must not be found out after hours."""
    with pytest.raises(UsageError, match="no such folder"):
        checked(pair[1], tmp_path, judge=("harmbench=./nowhere",))
    guard = shutil.copytree(pair[0], tmp_path / "guard")
    (guard / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    with pytest.raises(MismatchError, match="does not show the answer"):
        checked(pair[1], tmp_path, judge=(f"llama-guard={guard}",))
    assert inputs_of(checked(pair[1], tmp_path, judge=(f"harmbench={guard}",)))["judges"]["harmbench"][
        "identity"].endswith("=guard")


def test_a_judging_model_is_known_by_what_is_in_its_folder(pair: tuple[str, str], tmp_path: Path) -> None:
    """Two checkpoints in folders of one name are not one judge: neither to a baseline nor to a run that goes on."""
    first, second = (shutil.copytree(pair[0], tmp_path / name / "guard") for name in "ab")

    def judge(folder: Path, **settings: Any) -> dict[str, str]:
        config = EvalConfig(pair[1], harmful=(prompts(tmp_path, "bad"),), judge=(f"harmbench={folder}",))
        found = set_up(config, (), has_baseline=False, progress=no_progress, **settings)
        return inputs_of(found)["judges"]["harmbench"]

    assert judge(first) == judge(second) and len(judge(first)["files_sha256"]) == 64
    assert "files_sha256" not in judge(first, read_weights=False)
    (second / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    template = judge(second)
    assert template["identity"] == judge(first)["identity"] and template != judge(first)
    weights = load_file(first / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, first / "model.safetensors", {"format": "pt"})
    assert judge(first)["files_sha256"] not in (template["files_sha256"], judge(Path(pair[0]))["files_sha256"])


def test_an_attack_that_only_a_rule_names_is_made(pair: tuple[str, str], tmp_path: Path) -> None:
    rule = Rule("attack_success_rate", attack="prefill:2", max_upper=0.5)
    found = checked(pair[0], tmp_path, rule)
    assert [attack.name for attack in found.attacks] == ["none", "prefill:2"]
    assert estimate_evaluation(found, 8, device="cpu")["rules"] == 1


def test_answers_have_at_most_half_the_context(pair: tuple[str, str], tmp_path: Path) -> None:
    found = checked(pair[0], tmp_path, max_new_tokens=10_000)
    assert found.setting is not None
    assert (found.setting.max_new_tokens, found.setting.context) == (CONTEXT // 2, CONTEXT)


def test_inputs_say_by_which_template_all_were_asked(pair: tuple[str, str], tmp_path: Path) -> None:
    def template(**changes: Any) -> set[str | None]:
        described = inputs_of(checked(pair[1], tmp_path, base=pair[0], **changes))
        return {system["chat_template_sha256"] for system in described["systems"].values()}

    (tmp_path / "other.jinja").write_text(TEMPLATE.replace("assistant", "model"), encoding="utf-8")
    text = str(byte_tokenizer().chat_template)
    assert template() == {hashlib.sha256(text.encode()).hexdigest()}
    one = template(chat_template=str(tmp_path / "other.jinja"))
    (tmp_path / "other.jinja").write_text(TEMPLATE.replace("assistant", "robot"), encoding="utf-8")
    assert len({*one, *template(chat_template=str(tmp_path / "other.jinja")), *template()}) == 3
    assert template(chat_template="none") == {None}


def test_a_restored_adapter_is_asked_in_the_template_of_the_tuned_one_that_brought_it(tmp_path: Path) -> None:
    base, restored = save_pair(tmp_path)
    tuned = tmp_path / "with-tokenizer"
    shutil.copytree(restored, tuned)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("assistant", "model")
    tokenizer.save_pretrained(tuned)
    for beside in ({"base": str(base), "tuned": str(tuned)}, {"tuned": str(tuned)}):
        found = checked(str(restored), tmp_path, **beside)
        assert found.setting is not None and found.setting.chat.template == tokenizer.chat_template
    full = tmp_path / "full"
    shutil.copytree(base, full)
    tokenizer.save_pretrained(full)
    found = checked(f"{full}+{restored}", tmp_path, base=str(base), force=True)  # it sits on the tuned checkpoint
    assert found.setting is not None and found.setting.chat.template == tokenizer.chat_template
    found = checked(str(restored), tmp_path, base=str(base))
    assert found.setting is not None and found.setting.chat.template == TEMPLATE


def test_rejected_rows_and_prompts_that_do_not_fit_are_told_once(pair: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\nno json\n' + json.dumps({"prompt": "x" * CONTEXT}) + "\n",
                    encoding="utf-8")
    found = checked(pair[1], tmp_path, harmful=(str(path),), base=pair[0])
    told = warnings_of(found)
    assert told[:3] == [("W_ROWS_REJECTED", "p.jsonl: 2 rows not used"),
                        ("W_ROW", "p.jsonl line 2: no text in a prompt column"),
                        ("W_ROW", "p.jsonl line 3: not JSON (Expecting value)")]
    assert [code for code, _ in told[3:]] == ["W_TOO_LONG"] and told[3][1].startswith("1 prompts leave no room")
    assert [(row["file"], row["line"]) for row in rejected_rows(found)] == [("p.jsonl", 2), ("p.jsonl", 3)]
    [described] = inputs_of(found)["sets"]
    assert (described["rows"] + described["rejected"], described["file"]) == (4, "p.jsonl")


def test_malformed_rows_are_told_of_where_another_file_of_that_name_has_none(pair: tuple[str, str],
                                                                             tmp_path: Path) -> None:
    for name, rows in (("a", '{"prompt": "a"}\nno json\n'), ("b", '{"prompt": "b"}\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.jsonl").write_text(rows, encoding="utf-8")
    found = checked(pair[1], tmp_path, harmful=(str(tmp_path / "a/p.jsonl"),), benign=(str(tmp_path / "b/p.jsonl"),))
    assert [(row["file"], row["line"]) for row in rejected_rows(found)] == [("p.jsonl", 2)]
    assert ("W_ROWS_REJECTED", "p.jsonl: 1 rows not used") in warnings_of(found)
    twice = checked(pair[1], tmp_path, harmful=(str(tmp_path / "a/p.jsonl"),), benign=(str(tmp_path / "a/p.jsonl"),))
    assert len(rejected_rows(twice)) == 1


def test_a_set_without_room_for_any_answer_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i} " + "x" * CONTEXT}) + "\n" for i in range(3)), encoding="utf-8")
    with pytest.raises(UsageError, match="no prompt leaves room for an answer - set harmful: each of 3") as caught:
        checked(pair[0], tmp_path, harmful=(str(path),))
    assert "--max-new-tokens" in caught.value.hint


def test_of_many_malformed_rows_the_first_are_shown_and_all_are_listed(pair: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' + "broken\n" * 30, encoding="utf-8")
    found = checked(pair[1], tmp_path, harmful=(str(path),), base=pair[0])
    assert [code for code, _ in warnings_of(found)] == ["W_ROWS_REJECTED", *["W_ROW"] * 10, "W_ROWS_REJECTED"]
    assert [row["line"] for row in rejected_rows(found)] == list(range(2, 32))


def test_the_plan_counts_questions_and_tokens_of_all_systems(pair: tuple[str, str], tmp_path: Path) -> None:
    found = checked(pair[1], tmp_path, base=pair[0], attack=("prefill:2",))
    plan = estimate_evaluation(found, 8, device="cpu")
    assert (plan["questions_a_system"], plan["generated_tokens_at_most"]) == (4, 2 * 4 * 8)
    assert plan["prompt_tokens"] == 2 * sum(len(q.attempt.prompt) for q in found.plan.questions)
    assert plan["systems"] == {"base": "base", "tuned": "tuned"} and plan["sets"] == {"harmful": "2 harmful rows"}
    folders = [Path(each) for each in pair]
    assert plan["bytes"]["weights_on_disk"] == sum(
        path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))


def test_the_time_of_a_plan_follows_parameters_and_tokens(pair: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a {i}"}) + "\n" for i in range(20_000)), encoding="utf-8")
    one = estimate_evaluation(checked(pair[1], tmp_path, harmful=(str(path),)), 8, device="cpu")
    both = estimate_evaluation(checked(pair[1], tmp_path, harmful=(str(path),), base=pair[0]), 8, device="cpu")
    weights = sum(t.numel() for t in load_file(Path(pair[0]) / "model.safetensors").values())
    tokens = one["prompt_tokens"] + one["generated_tokens_at_most"]
    assert one["seconds_about"] == pytest.approx(2 * weights * tokens / MEASURED_FLOPS["cpu"], abs=0.05) and one[
        "seconds_about"] > 0
    assert both["seconds_about"] == pytest.approx(2 * one["seconds_about"], abs=0.1)
    assert one["bytes"] == both["bytes"]  # an adapter is read with its base
