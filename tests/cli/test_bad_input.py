"""Inputs that cannot work, through the real pipeline: an exit code, two lines on stderr, nothing at OUT."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from report_cases import ROOT
from saferestore.cli.app import run
from saferestore.core.report.schema import validate
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

SAMPLE = ROOT / "sample_data"
TASK = str(SAMPLE / "records" / "task.jsonl")
Break = Callable[[Path], list[str]]
"""Spoils the copies `base` and `tuned` in a folder and returns further arguments."""


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("base", "tuned"):
        shutil.copytree(SAMPLE / name, tmp_path / name)
    config = tmp_path / "tuned" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "base"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def edit_weights(path: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    save_file(dict(change(name, tensor) for name, tensor in load_file(path).items()), path, metadata={"format": "pt"})


def with_file(name: str, content: str) -> Break:
    def spoil(folder: Path) -> list[str]:
        (folder / name).write_text(content, encoding="utf-8")
        return ["--task", name]
    return spoil


def no_template(folder: Path) -> list[str]:
    (folder / "base" / "chat_template.jinja").unlink()
    return []


def another_base(folder: Path) -> list[str]:
    edit_json(folder / "tuned" / "adapter_config.json", base_model_name_or_path="someone/other-model")
    return []


def other_keys(folder: Path) -> list[str]:
    edit_weights(folder / "tuned" / "adapter_model.safetensors",
                 lambda name, tensor: (name.replace("base_model.model.", "wrong."), tensor))
    return []


def other_shapes(folder: Path) -> list[str]:
    edit_weights(folder / "tuned" / "adapter_model.safetensors",
                 lambda name, tensor: (name, tensor[:, :-1].contiguous() if "lora_A" in name else tensor))
    return []


def poisoned(where: str, value: float) -> Break:
    def spoil(folder: Path) -> list[str]:
        def change(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
            tensor = tensor.clone()
            tensor.view(-1)[-1] = value
            return name, tensor
        edit_weights(folder / where, change)
        return []
    return spoil


def truncated(where: str) -> Break:
    def spoil(folder: Path) -> list[str]:
        path = folder / where
        path.write_bytes(path.read_bytes()[:-1000])
        return []
    return spoil


def corrupted_header(folder: Path) -> list[str]:
    path = folder / "base" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"\xff" * 64 + content[72:])
    return []


def smaller_vocabulary(folder: Path) -> list[str]:
    """A tokenizer beside the adapter that is not the base's."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "base" / name, folder / "tuned" / name)
    path = folder / "tuned" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    merges = content["model"]["merges"][:-5]
    kept = dict(list(content["model"]["vocab"].items())[:-5])
    content["model"] |= {"vocab": kept, "merges": merges}
    path.write_text(json.dumps(content), encoding="utf-8")
    return []


def pickled(folder: Path) -> list[str]:
    (folder / "tuned" / "adapter_model.safetensors").rename(folder / "tuned" / "adapter_model.bin")
    return []


def unknown_key(folder: Path) -> list[str]:
    (folder / "c.yaml").write_text("max_drfit: 1\n", encoding="utf-8")
    return ["--config", "c.yaml"]


def occupied(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "mine").write_text("mine", encoding="utf-8")
    return []


def too_long(folder: Path) -> list[str]:
    (folder / "long.jsonl").write_text("".join(json.dumps({"prompt": f"{i} " + "bad thing " * 2000}) + "\n"
                                               for i in range(8)), encoding="utf-8")
    return ["--harmful", "long.jsonl"]


def with_setting(name: str, value: object) -> Break:
    def spoil(folder: Path) -> list[str]:
        edit_json(folder / "tuned" / "adapter_config.json", **{name: value})
        return []
    return spoil


def missing_shard(folder: Path) -> list[str]:
    (folder / "base" / "model.safetensors").unlink()
    (folder / "base" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}), encoding="utf-8")
    return []


def template_without_prompt(folder: Path) -> list[str]:
    (folder / "notes.txt").write_text("Answer kindly.", encoding="utf-8")
    return ["--chat-template", "notes.txt"]


CASES: dict[str, tuple[Break, int, str]] = {
    "a task file that is missing": (lambda folder: ["--task", "none.jsonl"], 2, "none.jsonl"),
    "an empty set": (with_file("rows.jsonl", ""), 2, "rows.jsonl"),
    "a set with no usable row": (with_file("rows.jsonl", '{"prompt": ""}\n'), 2, "rows.jsonl"),
    "columns of no known format": (with_file("rows.jsonl", '{"colour": "red"}\n'), 2, "colour"),
    "an unknown format": (lambda folder: ["--task", f"{TASK}:alpacca"], 2, "alpacca"),
    "an unknown built-in set": (lambda folder: ["--benign", "builtin:bening"], 2, "bening"),
    "an unknown key of the configuration": (unknown_key, 2, "max_drfit"),
    "a folder to write that is not empty": (occupied, 2, "not empty"),
    "a place where nothing can be written": (lambda folder: ["-o", "/proc/nowhere/out"], 2, "cannot write"),
    "a chat template that is absent": (no_template, 5, "chat template"),
    "a tokenizer of another vocabulary": (smaller_vocabulary, 5, "vocabular"),
    "an adapter of another base": (another_base, 5, "someone/other-model"),
    "keys that do not match": (other_keys, 5, "wrong."),
    "shapes that do not match": (other_shapes, 5, "(383, 128) in the adapter"),
    "NaN in the adapter": (poisoned("tuned/adapter_model.safetensors", float("nan")), 5, "NaN"),
    "infinity in the base": (poisoned("base/model.safetensors", float("inf")), 5, "model.safetensors"),
    "a truncated base": (truncated("base/model.safetensors"), 5, "model.safetensors"),
    "a truncated adapter": (truncated("tuned/adapter_model.safetensors"), 5, "adapter_model.safetensors"),
    "a corrupted header": (corrupted_header, 5, "model.safetensors"),
    "DoRA": (with_setting("use_dora", True), 5, "use_dora"),
    "replaced modules": (with_setting("modules_to_save", ["lm_head"]), 5, "modules_to_save"),
    "a start that changed the base": (with_setting("init_lora_weights", "pissa"), 5, "pissa"),
    "prompts longer than the context": (too_long, 2, "no prompt leaves room for an answer - harmful rows to fit"),
    "a shard that is missing": (missing_shard, 5, "model-00001-of-00002"),
    "a template that leaves out the prompt": (template_without_prompt, 5, "notes.txt"),
    "a device that is not here": (lambda folder: ["--device", "cuda:97"], 2, "cuda:97"),
    "an unknown quantisation": (lambda folder: ["--load-in", "2bit"], 2, "2bit"),
    "a gate that is missing": (lambda folder: ["--gate", "gate.yaml"], 2, "gate.yaml"),
    "an input in the place of OUT": (lambda folder: ["-o", "tuned", "--force"], 2, "would replace tuned"),
    "the working folder in the place of OUT": (lambda folder: ["-o", ".", "--force"], 2, "would replace"),
    "pickled weights": (pickled, 5, "adapter_model.bin"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_has_its_exit_code_and_leaves_nothing(
        copies: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spoil, code, expected = CASES[name]
    extra = spoil(copies)
    before = {path for path in copies.rglob("*") if "out" in path.name}
    assert run(["restore", "base", "tuned", "-o", "out", "--json", *extra]) == code
    captured = capsys.readouterr()
    error, hint = captured.err.splitlines()
    assert error.startswith("error: ") and expected.lower() in error.lower()
    assert hint.startswith("hint: ") and len(hint) > 10
    document = json.loads(captured.out)
    validate(document)
    assert (document["verdict"], document["exit_code"]) == ("refused", code)
    assert {path for path in copies.rglob("*") if "out" in path.name} == before


@pytest.mark.parametrize("arguments", [["nowhere", "tuned"], ["base", "./nowhere"], ["base", "owner/not-in-the-cache"]])
def test_a_model_that_is_not_there_is_wrong_usage(
        copies: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(["restore", *arguments, "-o", "out", "--offline"]) == 2
    error, _ = capsys.readouterr().err.splitlines()
    assert arguments[1] in error or arguments[0] in error
    assert not (copies / "out").exists()


def test_a_disk_that_is_full_at_the_end_costs_no_answer(
        copies: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from saferestore.core.checkpoint import writer

    def full(tensors: dict[str, torch.Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    command = ["restore", "base", "tuned", "-o", "out", "--fit-rows", "4", "--held-out-rows", "2", "--max-steps", "1",
               "--max-new-tokens", "24", "--no-controls", "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(writer, "save_file", full)
        assert run(command) == 1
    captured = capsys.readouterr()
    error, hint = captured.err.splitlines()
    assert error == "error: no space left on the disk - out" and "free some space" in hint and captured.out == ""
    assert [path.name for path in copies.iterdir() if "out" in path.name] == ["out.partial"]
    assert run([*command, "--resume"]) in (0, 3, 4)
    assert [path.name for path in copies.iterdir() if "out" in path.name] == ["out"]


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it
import saferestore.core.pipeline as pipeline
from saferestore.cli.app import app

def slow(*arguments, **keywords):
    print("ready", flush=True)
    time.sleep(60)

pipeline.open_pair = slow
sys.argv = ["saferestore", "restore", "base", "tuned", "-o", "out"]
app()
"""


def test_ctrl_c_ends_with_130_and_leaves_nothing(copies: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, cwd=copies)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line.split(":")[0] for line in errors.splitlines()] == ["error", "hint"]
    assert not [path for path in copies.iterdir() if "out" in path.name]
