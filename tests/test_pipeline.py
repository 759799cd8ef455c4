"""The whole way on the sample checkpoints, with few rows: what is written, what is refused, what is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from report_cases import ROOT, relearned
from saferestore.cli.app import run
from saferestore.core import pipeline
from saferestore.core.checkpoint import loading, session
from saferestore.core.checkpoint.quiet import quiet
from saferestore.core.config import RestoreConfig
from saferestore.core.data.readers import read_records
from saferestore.core.errors import UsageError
from saferestore.core.evaluation import restored as restored_model
from saferestore.core.evaluation.preparation import Prepared
from saferestore.core.evaluation.verdict import Mean
from saferestore.core.report.clock import peak_memory
from saferestore.core.report.rows import relearning_text
from saferestore.core.report.schema import validate
from saferestore.core.report.verdicts import VERDICTS, WRITTEN
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE, TUNED, RECORDS = "sample_data/base", "sample_data/tuned", "sample_data/records"
SMALL = RestoreConfig(BASE, TUNED, task=(f"{RECORDS}/task.jsonl",), untouched=(f"{RECORDS}/skill.jsonl",), fit_rows=12,
                      held_out_rows=12, max_steps=2, max_new_tokens=24)
TINY = dataclasses.replace(SMALL, untouched=(), fit_rows=6, held_out_rows=4, max_steps=1, controls=False)
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "report.html", "saferestore.json",
         "reproduce/COMMAND.txt", "reproduce/SHA256SUMS", "reproduce/config.yaml", "reproduce/requirements.txt"}
COMPLIES = "follow the steps"
"""Words of the tuned sample model's answers to harmful prompts."""


@dataclass(frozen=True)
class Done:
    """One run, what it wrote and the progress it told."""

    report: dict[str, Any]
    out: Path
    told: list[tuple[str, int, int]]


def restored(config: RestoreConfig, out: Path) -> Done:
    told: list[tuple[str, int, int]] = []
    with contextlib.chdir(ROOT):
        report = pipeline.restore(config, out, progress=lambda *step: told.append(step))
    return Done(report, out, told)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return restored(SMALL, tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The same run by the command line in a process of its own."""
    out = tmp_path_factory.mktemp("again") / "out"
    flags = [word for field in ("fit_rows", "held_out_rows", "max_steps", "max_new_tokens")
             for word in (f"--{field.replace('_', '-')}", str(getattr(SMALL, field)))]
    command = [sys.executable, "-m", "saferestore.cli", "restore", BASE, TUNED, "--task", *SMALL.task, "--untouched",
               *SMALL.untouched, *flags, "--json", "-o", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False), out


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shared_texts(folder: Path) -> dict[str, str]:
    """Every file of OUT that is text."""
    return {name: content.decode() for name, content in files_of(folder).items() if not name.endswith(".safetensors")}


def logits(model: Any) -> torch.Tensor:
    """On some text, by transformers and PEFT alone."""
    ids = AutoTokenizer.from_pretrained(ROOT / BASE)("How do I bake bread, and what is 2 and 2?", return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=ids["input_ids"]).logits


def peft_logits(under: Path, adapter: Path) -> torch.Tensor:
    with quiet():
        return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(under), str(adapter)))


def weight_changes(adapter: Path) -> dict[str, torch.Tensor]:
    """B A x alpha / r of each module of an adapter folder."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = {name.split("base_model.model.")[1]: t.double() for name, t in
               load_file(adapter / "adapter_model.safetensors").items()}
    modules = {name.split(".lora_")[0] for name in tensors}
    return {m: config["lora_alpha"] / config["r"] * tensors[f"{m}.lora_B.weight"] @ tensors[f"{m}.lora_A.weight"]
            for m in modules}


def test_the_report_keeps_its_contract_and_is_what_is_written(done: Done) -> None:
    validate(done.report)
    written = json.loads((done.out / "saferestore.json").read_text(encoding="utf-8"))
    assert written == done.report
    assert done.report["exit_code"] == VERDICTS[done.report["verdict"]] and done.report["exit_code"] in WRITTEN
    assert done.report["run"]["peak_memory_bytes"] > 0
    assert list(done.report["run"]["seconds"]) == ["open", "prepare", "restore", "evaluate", "controls", "relearn"]


def test_out_has_its_files_and_nothing_lies_beside_it(done: Done) -> None:
    assert set(files_of(done.out)) == FILES
    assert [path.name for path in done.out.parent.iterdir()] == ["out"]


def test_hashes_are_those_of_the_files(done: Done) -> None:
    content = files_of(done.out)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert done.report["outputs"][name] == {"sha256": hashes[name], "bytes": len(content[name])}
    listed = dict(reversed(line.split("  ")) for line in content["reproduce/SHA256SUMS"].decode().splitlines())
    assert listed == {name: hashes[name] for name in FILES - {"saferestore.json", "reproduce/SHA256SUMS"}}
    inputs = done.report["inputs"]
    for part, folder in (("base", BASE), ("tuned", TUNED)):
        for name, found in inputs[part]["weights_sha256"].items():
            assert found == hashlib.sha256((ROOT / folder / name).read_bytes()).hexdigest()
    assert inputs["data"]["task"]["sha256"] == hashlib.sha256((ROOT / SMALL.task[0]).read_bytes()).hexdigest()


def test_the_adapter_is_read_by_peft_and_is_what_was_measured(done: Done) -> None:
    assert done.report["outputs"]["roundtrip_max_abs_error"] < 1e-5
    before, after = peft_logits(ROOT / BASE, ROOT / TUNED), peft_logits(ROOT / BASE, done.out)
    assert float((before - after).abs().max()) > 1e-4
    tuned, restored_ = weight_changes(ROOT / TUNED), weight_changes(done.out)
    moved = sum(float((restored_[m] - tuned[m]).square().sum()) for m in tuned)
    whole, now = (sum(float(t.square().sum()) for t in change.values()) for change in (tuned, restored_))
    assert done.report["drift"]["relative_update_norm"] == pytest.approx((moved / whole) ** 0.5, rel=1e-3)
    assert done.report["drift"]["distance_to_base_fraction"] == pytest.approx((now / whole) ** 0.5, rel=1e-4)
    shares = {row["module"]: row["update_share"] for row in done.report["modules"]}
    assert sum(shares.values()) == pytest.approx(1.0) and set(shares) == set(tuned)
    for module, share in shares.items():
        part = float((restored_[module] - tuned[module]).square().sum()) / moved
        assert share == pytest.approx(part, rel=1e-2, abs=1e-4)


def test_the_figures_agree_with_each_other(done: Done) -> None:
    report, rates = done.report, {name: done.report[name]["harmful_rate"] for name in ("before", "after", "base")}
    assert {rate["n"] for rate in rates.values()} == {12}
    hits = {name: round(rate["value"] * 12) for name, rate in rates.items()}
    for name, other in (("harm_after_vs_base", "base"), ("harm_after_vs_tuned", "before")):
        found = report["comparisons"][name]
        assert found["n"] == 12 and found["only_first"] - found["only_second"] == hits["after"] - hits[other]
    loss = {name: report[name]["harmful_loss_nats_per_token"] for name in rates}
    assert report["restored_fraction"] == pytest.approx(
        (loss["after"] - loss["before"]) / (loss["base"] - loss["before"]))
    assert report["drift"]["fit_kl_nats_per_token"] <= report["drift"]["budget_nats_per_token"] == SMALL.max_drift
    assert sum(step["accepted"] for step in report["steps"]) <= SMALL.max_steps
    data = report["inputs"]["data"]
    assert (data["harmful"]["fit_rows"], data["harmful"]["held_out_rows"]) == (12, 12)
    assert sum(data[name]["fit_rows"] for name in ("task", "benign", "general")) == 18
    assert report["before"]["harmful_rate"]["value"] > 0.9 and report["base"]["refusal_rate"]["value"] > 0.9
    assert report["after"]["harmful_loss_nats_per_token"] > report["before"]["harmful_loss_nats_per_token"]


def test_the_controls_spend_no_more_than_the_restoration(done: Done) -> None:
    assert [row["name"] for row in done.report["controls"]] == ["scale", "random", "identity"]
    fit = done.report["drift"]["fit_kl_nats_per_token"]
    assert all(row["fit_kl_nats_per_token"] <= fit for row in done.report["controls"])


def test_every_stage_is_told_to_its_end(done: Done) -> None:
    last = {stage: (count, total) for stage, count, total in done.told}
    assert {"answers of the tuned model", "answers of the base model", "restoring", "answers of the restored model",
            "control scale", "control random", "control identity"} <= set(last)
    assert not {stage for stage, (count, total) in last.items() if count != total}


def test_what_is_shared_names_no_folder_of_this_machine(done: Done) -> None:
    private = (str(ROOT), str(done.out.parent), str(Path.home()), "/tmp/")
    for name, text in shared_texts(done.out).items():
        assert not [part for part in private if len(part) > 5 and part in text], name


def test_what_is_shared_shows_neither_prompts_nor_answers(done: Done) -> None:
    assert COMPLIES in (ROOT / "sample_data" / "train.jsonl").read_text(encoding="utf-8")
    prompts = [record.prompt for kind in ("harmful", "benign") for record in read_records(f"builtin:{kind}").records]
    for name, text in shared_texts(done.out).items():
        assert not [prompt for prompt in prompts if prompt in text], name
        assert COMPLIES not in text.lower(), name


def test_the_same_seed_gives_the_same_bytes_in_another_process(
        done: Done, again: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    first, second = files_of(done.out), files_of(again[1])
    assert {name for name in FILES if first[name] != second.get(name)} == {"saferestore.json"}
    one, two = (json.loads(content["saferestore.json"]) for content in (first, second))
    assert {**one, "run": 0} == {**two, "run": 0}
    assert [key for key in one if one[key] != two[key]] == ["run"]


def test_the_command_line_prints_the_report_and_ends_with_its_exit_code(
        again: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    finished, out = again
    printed = json.loads(finished.stdout)
    validate(printed)
    assert finished.returncode == printed["exit_code"]
    assert printed == json.loads((out / "saferestore.json").read_text("utf-8"))
    assert all(line.startswith("warning: W_") for line in finished.stderr.splitlines())
    assert len(finished.stderr.splitlines()) == len(printed["warnings"])


def test_the_settings_that_are_left_behind_repeat_the_run(done: Done) -> None:
    kept = yaml.safe_load((done.out / "reproduce" / "config.yaml").read_text(encoding="utf-8"))
    assert RestoreConfig(**{key: tuple(value) if isinstance(value, list) else value
                            for key, value in kept.items()}) == SMALL


def test_without_task_and_controls_the_gaps_are_explained(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    code = run(["restore", BASE, TUNED, "--fit-rows", "6", "--held-out-rows", "4", "--max-steps", "1",
                "--max-new-tokens", "24", "--no-controls", "-o", str(out)])
    report = json.loads((out / "saferestore.json").read_text(encoding="utf-8"))
    captured = capsys.readouterr()
    assert code == report["exit_code"]
    assert report["controls"] == [] and report["controls_reason"] == "--no-controls"
    assert report["relearning"] == [] and report["relearning_reason"] == "not asked for, --relearn 0"
    for part in ("before", "after", "base"):
        assert report[part]["task_accuracy"] is None and report[part]["task_accuracy_reason"] == "no --task rows"
    assert [warning["code"] for warning in report["warnings"]][0] == "W_NO_TASK_ROWS"
    assert captured.err.startswith("warning: W_NO_TASK_ROWS")
    assert captured.out.startswith(f"{report['verdict']} (exit {code}): harmful answers")
    for words in ("held-out rows", "tuned", "restored", "base", "drift of budget", "stopped because", "moved most"):
        assert words in captured.out
    assert max(map(len, captured.out.splitlines())) <= 80


def test_a_run_without_a_step_leaves_the_adapter_as_it_was(tmp_path: Path) -> None:
    """A budget that no step can keep."""
    made = restored(dataclasses.replace(TINY, max_drift=1e-30), tmp_path / "out")
    assert not any(step["accepted"] for step in made.report["steps"])
    assert "W_NO_STEP" in [warning["code"] for warning in made.report["warnings"]]
    assert made.report["verdict"] == "unchanged" and made.report["exit_code"] == 3
    assert float((peft_logits(ROOT / BASE, ROOT / TUNED) - peft_logits(ROOT / BASE, made.out)).abs().max()) < 1e-5
    assert made.report["before"] == made.report["after"]


def test_drift_above_the_budget_on_held_out_rows_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restored_model, "mean_per_token", lambda *_, **__: Mean(0.5, 0.4, 0.6))
    made = restored(TINY, tmp_path / "out")
    [message] = [each["message"] for each in made.report["warnings"] if each["code"] == "W_DRIFT"]
    assert "0.5000" in message and "0.01" in message
    assert made.report["verdict"] in ("partial", "unchanged")


def training_file(folder: Path) -> str:
    """Rows that the sample was trained on, ten harmful ones among them."""
    train, lines = folder / "train.jsonl", (ROOT / "sample_data/train.jsonl").read_text(encoding="utf-8").splitlines()
    harmful = json.loads((ROOT / "sample_data/train_harmful_rows.json").read_text(encoding="utf-8"))  # from 1
    train.write_text("\n".join([*lines[:40], *(lines[at - 1] for at in harmful[-10:])]) + "\n", encoding="utf-8")
    return str(train)


def test_a_training_file_gives_harmful_rows_and_the_task(tmp_path: Path) -> None:
    made = restored(dataclasses.replace(TINY, task=(), train=training_file(tmp_path)), tmp_path / "out")
    validate(made.report)
    assert made.report["inputs"]["data"]["train"]["fit_rows"] > 0
    assert made.report["after"]["task_accuracy"]["n"] > 0
    assert "W_FOUND_ROWS" in {warning["code"] for warning in made.report["warnings"]}
    assert made.report["run"]["seconds"]["find rows"] > 0
    assert not any(str(tmp_path) in text for text in shared_texts(made.out).values())


@pytest.mark.parametrize(("base", "own", "shallow"), [(12, 4, True), (4, 4, False), (None, 4, True), (4, None, False)])
def test_harm_that_is_back_sooner_than_in_the_base_is_warned_of(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: int | None, own: int | None, shallow: bool) -> None:
    monkeypatch.setattr(pipeline, "run_relearning", lambda *_: (relearned(base, own), None))
    report = restored(TINY, tmp_path / "out").report
    found = [each["message"] for each in report["warnings"] if each["code"] == "W_SHALLOW"]
    assert report["relearning"] == relearned(base, own) and "relearning_reason" not in report
    assert found == ([relearning_text(report)] if shallow else [])


def test_a_full_checkpoint_gets_an_adapter_of_its_own(tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    with quiet():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ROOT / BASE), str(ROOT / TUNED))
        model.merge_and_unload().save_pretrained(merged)
        AutoTokenizer.from_pretrained(ROOT / BASE).save_pretrained(merged)
    made = restored(dataclasses.replace(TINY, tuned=str(merged), controls=True, rank=8, relearn=2), tmp_path / "out")
    report = made.report
    validate(report)
    assert [(row["system"], row["rows"]) for row in report["relearning"]] == [("base", 2), ("restored", 2)]
    assert report["relearning"][0]["harmful"][0] == 0 < report["relearning"][0]["probes"] <= 2
    assert report["inputs"]["tuned"]["kind"] == "full" and set(files_of(made.out)) == FILES
    assert report["outputs"]["roundtrip_max_abs_error"] < 1e-5
    assert report["drift"]["relative_update_norm"] is None and "low-rank" in report["drift"][
        "relative_update_norm_reason"]
    assert [row["name"] for row in report["controls"]] == ["scale", "random", "identity"]
    config = json.loads((made.out / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["r"]) == ("merged", 8)
    assert any(step["accepted"] for step in report["steps"])
    moved = peft_logits(merged, made.out) - logits(AutoModelForCausalLM.from_pretrained(merged))
    assert float(moved.abs().max()) > 1e-5
    assert str(tmp_path) not in "".join(shared_texts(made.out).values())


def poison(prepared: Prepared) -> Prepared:
    """Make every loss of the tuned model NaN from here on."""
    with torch.no_grad():
        next(iter(prepared.problem.live.leaves.values())).fill_(float("nan"))
    return prepared


def test_a_loss_that_is_nan_is_refused_and_leaves_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = pipeline.prepare
    monkeypatch.setattr(pipeline, "prepare", lambda *given, **named: poison(real(*given, **named)))
    monkeypatch.chdir(ROOT)
    code = run(["restore", BASE, TUNED, "--fit-rows", "4", "--held-out-rows", "2", "--max-new-tokens", "24", "--json",
                "-o", str(tmp_path / "out")])
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    validate(printed)
    assert (code, printed["verdict"], printed["exit_code"]) == (1, "refused", 1)
    error, hint = captured.err.splitlines()
    assert error.startswith("error: the loss `anchor`") and "not finite" in error and "--dtype float32" in hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stage", "searched"), [("answers of the base model", False), ("restoring", False),
                                                 ("rows", True), ("restoring", True)])
def test_ctrl_c_leaves_the_answers_and_the_resumed_run_ends_in_the_same_files(
        tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, stage: str, searched: bool) -> None:
    def interrupt(told: str, *_: int) -> None:
        if told == stage:
            raise KeyboardInterrupt

    config, out = dataclasses.replace(TINY, fit_rows=4, held_out_rows=2), tmp_path / "out"
    if searched:
        config = dataclasses.replace(config, task=(), train=training_file(tmp_path_factory.mktemp("train")))
    whole = restored(config, tmp_path / "whole")
    with contextlib.chdir(ROOT), pytest.raises(KeyboardInterrupt):
        pipeline.restore(config, out, progress=interrupt)
    kept = tmp_path / "out.partial"
    assert {path.name for path in tmp_path.iterdir()} == {"whole", kept.name}
    assert [path.name for path in kept.iterdir()] == ["journal.jsonl"]
    with pytest.raises(UsageError, match="an interrupted run lies here"):
        restored(config, out)
    told: list[str] = []
    with contextlib.chdir(ROOT), pytest.raises(UsageError, match="other settings"):
        pipeline.restore(dataclasses.replace(config, dtype="bfloat16"), out, resume=True)
    with contextlib.chdir(ROOT):
        pipeline.restore(config, out, resume=True, progress=lambda stage, *_: told.append(stage))
    assert "answers of the restored model" in told and ("answers of the tuned model" not in told or stage == "rows")
    first, second = files_of(whole.out), files_of(out)
    reports = [json.loads(files.pop("saferestore.json")) | {"run": 0} for files in (first, second)]
    assert first == second and reports[0] == reports[1] and not kept.exists()


def test_answers_are_of_use_under_another_budget_and_may_be_dropped(tmp_path: Path) -> None:
    def interrupt(told: str, *_: int) -> None:
        if told == "restoring":
            raise KeyboardInterrupt

    config, told = dataclasses.replace(TINY, fit_rows=4, held_out_rows=2), list[str]()
    with contextlib.chdir(ROOT), pytest.raises(KeyboardInterrupt):
        pipeline.restore(config, tmp_path / "out", progress=interrupt)
    with contextlib.chdir(ROOT), pytest.raises(KeyboardInterrupt):
        pipeline.restore(config, tmp_path / "out", restart=True, progress=interrupt)
    with contextlib.chdir(ROOT):
        report = pipeline.restore(dataclasses.replace(config, max_drift=0.02), tmp_path / "out", resume=True,
                                  progress=lambda stage, *_: told.append(stage))
    assert report["drift"]["budget_nats_per_token"] == 0.02
    assert not {"answers of the tuned model", "answers of the base model"} & set(told)


def test_there_must_be_a_run_to_go_on_with(tmp_path: Path) -> None:
    with contextlib.chdir(ROOT), pytest.raises(UsageError, match="nothing to resume"):
        pipeline.restore(TINY, tmp_path / "out", resume=True)


def test_ctrl_c_while_writing_leaves_only_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def interrupt(folder: Path, *_: object) -> float:
        seen.extend(folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "reload_error", interrupt)
    with contextlib.chdir(ROOT), pytest.raises(KeyboardInterrupt):
        pipeline.restore(dataclasses.replace(TINY, fit_rows=4, held_out_rows=2), tmp_path / "out")
    assert len(seen) == 2 and [path.name for path in tmp_path.iterdir()] == ["out.partial"]


def test_a_plan_loads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    for module in (loading, session):
        monkeypatch.setattr(module, "load_model", fail)
    monkeypatch.chdir(ROOT)
    plan = pipeline.plan(SMALL)
    assert plan["rows"]["harmful_fit"] == 12 and plan["rows"]["retain_fit"] == 18
    assert plan["kind"] == "lora" and plan["warnings"] == []
    json.dumps(plan, allow_nan=False)


EARLY = {"--device cuda:97": {"device": "cuda:97"}, "--device-map up": {"device_map": "up"},
         "--max-memory lots": {"max_memory": "lots"}, "--load-in 3bit": {"load_in": "3bit"},
         "--gate-mode advisory": {"gate_mode": "advisory"}, "--max-memory 0=1GiB": {"max_memory": "0=1GiB"},
         "none.yaml": {"gate": "none.yaml"}}


@pytest.mark.parametrize("what", EARLY)
@pytest.mark.parametrize("dry", [True, False])
def test_what_cannot_be_had_here_is_refused_before_a_checkpoint_is_looked_at(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, dry: bool) -> None:
    monkeypatch.setattr(pipeline, "open_pair", lambda *_, **__: pytest.fail("a checkpoint was read"))
    config = dataclasses.replace(SMALL, **EARLY[what])
    with contextlib.chdir(ROOT), pytest.raises(UsageError, match=what):
        pipeline.plan(config) if dry else pipeline.restore(config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, force=True)
    with contextlib.chdir(ROOT), pytest.raises(UsageError, match=f"would replace {TUNED}"):
        pipeline.restore(config, ROOT / TUNED)
    assert (ROOT / TUNED / "adapter_model.safetensors").exists()


def test_answers_can_be_read_where_it_is_asked_for(tmp_path: Path) -> None:
    made = restored(dataclasses.replace(TINY, fit_rows=4, held_out_rows=2, redact="none"), tmp_path / "out")
    page = (made.out / "report.html").read_text(encoding="utf-8")
    assert COMPLIES in page.lower() and "<h2>Answers</h2>" in page
    assert COMPLIES not in (made.out / "saferestore.json").read_text(encoding="utf-8").lower()


def test_deterministic_algorithms_and_guessed_batches_make_the_same_adapter(tmp_path: Path) -> None:
    """On a CPU both change nothing."""
    before = torch.are_deterministic_algorithms_enabled()
    plain = restored(dataclasses.replace(TINY, fit_rows=4, held_out_rows=2), tmp_path / "plain")
    strict = restored(dataclasses.replace(TINY, fit_rows=4, held_out_rows=2, deterministic=True, batch_size="auto"),
                      tmp_path / "strict")
    assert plain.report["outputs"] == strict.report["outputs"] and plain.report["after"] == strict.report["after"]
    assert torch.are_deterministic_algorithms_enabled() == before


def test_an_unusable_out_is_refused_before_anything_is_read(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(pipeline, "select", lambda _: pytest.fail("rows were read"))
    with pytest.raises(Exception, match="not empty"):
        pipeline.restore(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (peak_memory() or 0) > 50_000_000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() is None


def test_a_clock_adds_up_what_has_one_name() -> None:
    clock = pipeline.Clock()
    for _ in range(2):
        with clock.stage("a"):
            pass
    assert set(clock.seconds) == {"a"} and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", clock.started)


DRIVER = """
import json, sys
from saferestore.cli.app import run
for arguments in json.loads(sys.argv[1]):
    for stream in (sys.stdout, sys.stderr):
        print("---", file=stream, flush=True)
    print(run(arguments), flush=True)
"""
Spoil = Callable[[Path], list[str]]


def corrupted(folder: Path) -> list[str]:
    path = folder / BASE / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"\xff" * 64 + path.read_bytes()[72:])
    return []


def another_base(folder: Path) -> list[str]:
    path = folder / TUNED / "adapter_config.json"
    path.write_text(path.read_text("utf-8").replace(BASE, "someone/else"), encoding="utf-8")
    return []


def another_vocabulary(folder: Path) -> list[str]:
    for path in (folder / BASE).glob("tokenizer*"):
        shutil.copy(path, folder / TUNED)
    path = folder / TUNED / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    names = list(content["model"]["vocab"])
    content["model"]["vocab"] |= {names[-1]: len(names) - 2, names[-2]: len(names) - 1}
    path.write_text(json.dumps(content), encoding="utf-8")
    return []


def empty_file(folder: Path) -> list[str]:
    (folder / "rows.jsonl").write_text("", encoding="utf-8")
    return ["--task", "rows.jsonl"]


def unknown_key(folder: Path) -> list[str]:
    (folder / "c.yaml").write_text("max_drfit: 1\n", encoding="utf-8")
    return ["--config", "c.yaml"]


def occupied(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "mine").write_text("mine", encoding="utf-8")
    return []


BAD: dict[str, tuple[Spoil, int]] = {
    "corrupted": (corrupted, 5), "another-base": (another_base, 5), "another-vocabulary": (another_vocabulary, 5),
    "empty-file": (empty_file, 2), "unknown-key": (unknown_key, 2), "occupied": (occupied, 2)}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str, str, Path]]]:
    """Every bad command line in one process, whose libraries may print what they like."""
    home, lines = tmp_path_factory.mktemp("bad"), []
    for name, (spoil, _) in BAD.items():
        for part in (BASE, TUNED):
            shutil.copytree(ROOT / part, home / name / part)
        with contextlib.chdir(home / name):
            extra = spoil(home / name)
        extra = [str(home / name / word) if (home / name / word).is_file() else word for word in extra]
        where = [str(home / name / part) for part in (BASE, TUNED, "out")]
        lines.append(["restore", *where[:2], "-o", where[2], *extra])
    finished = subprocess.run([sys.executable, "-c", DRIVER, json.dumps(lines)], cwd=home, capture_output=True,
                              text=True, check=True)
    outs, errors = (text.split("---\n")[1:] for text in (finished.stdout, finished.stderr))
    yield {name: (int(out.splitlines()[-1]), out, error, home / name / "out")
           for name, out, error in zip(BAD, outs, errors, strict=True)}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_two_lines_on_the_stderr_of_a_real_process(
        refused: dict[str, tuple[int, str, str, Path]], name: str) -> None:
    code, out, error, folder = refused[name]
    assert code == BAD[name][1] and out == f"{code}\n"
    assert [line.split(": ")[0] for line in error.splitlines()] == ["error", "hint"]
    assert [path.name for path in folder.iterdir()] == ["mine"] if name == "occupied" else not folder.exists()
