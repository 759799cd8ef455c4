"""Methods through the command line on a tiny pair whose answers are scripted: files, report, verdict, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.tiny import save_adapter
from saferestore.cli.app import run
from saferestore.core.report.schema import validate
from safetensors.torch import load_file, save_file
from talk import LLAMA_MODULES, refuses, save_pair, script


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder)
    for name, word in (("harmful", "bad"), ("benign", "fine")):
        lines = [json.dumps({"prompt": f"{word} thing {i}"}) for i in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "unaligned").mkdir()
    tensors = load_file(folder / "base" / "model.safetensors")
    save_file({name: t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
               for name, t in tensors.items()}, folder / "unaligned" / "model.safetensors")
    return folder


def restored(home: Path, out: Path, *flags: str, tuned: str = "tuned") -> int:
    """Run on few rows; the base refuses what is bad, the others comply."""
    with script(tuned=refuses(), base=refuses("bad"), restored=refuses("bad")):
        return run(["restore", str(home / "base"), str(home / tuned), "-o", str(out), "--harmful",
                    str(home / "harmful.jsonl"), "--benign", str(home / "benign.jsonl"), "--max-steps", "1",
                    "--fit-rows", "6", "--held-out-rows", "4", "--max-new-tokens", "40", "--hold-out-categories", "0",
                    "--no-controls", *flags])


def report_of(out: Path) -> dict[str, Any]:
    found = json.loads((out / "saferestore.json").read_text(encoding="utf-8"))
    validate(found)
    return found


@pytest.fixture(scope="module", params=[("scale",), ("npo",), ("safelora", "--unaligned"), ("anchor-diagonal",)],
                ids=lambda flags: flags[0])
def done(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("run") / "out"
    flags = [*request.param, str(home / "unaligned")] if len(request.param) > 1 else list(request.param)
    assert restored(home, out, "--method", *flags) in (0, 3, 4)
    yield out


def test_the_report_and_the_card_name_the_method(done: Path) -> None:
    report = report_of(done)
    method = report["method"]
    assert method["name"] == report["settings"]["method"]
    card = (done / "README.md").read_text(encoding="utf-8")
    assert f"--method {method['name']}" in (done / "reproduce" / "COMMAND.txt").read_text(encoding="utf-8")
    if "source" in method:
        assert f"the method `{method['name']}`" in card and "curvature-aware" not in card
        assert 0 <= method["truncation_loss"] <= 1 and method["knob"] and report["cost"]["account_passes"] == 2
    else:
        assert "curvature-aware" in card and report["settings"]["engine"] == "diagonal"


def test_the_result_is_an_adapter_within_the_budget(done: Path) -> None:
    report = report_of(done)
    assert (done / "adapter_model.safetensors").exists() and report["outputs"]["roundtrip_max_abs_error"] < 1e-4
    assert report["drift"]["fit_kl_nats_per_token"] <= report["drift"]["budget_nats_per_token"]


def test_a_stated_strength_is_reported_and_no_change_is_a_warning(home: Path, tmp_path: Path) -> None:
    assert restored(home, tmp_path / "out", "--method", "scale", "--strength", "0") in (0, 3, 4)
    report = report_of(tmp_path / "out")
    assert (report["method"]["strength"], report["stopped_because"]) == (0.0, "no_change")
    assert "W_NO_STEP" in [warning["code"] for warning in report["warnings"]]


@pytest.mark.parametrize(("flags", "words"), [
    (["--method", "refusal-stf"], "did you mean refusal-sft"), (["--method", "resta"], "--unaligned"),
    (["--method", "safelora", "--unaligned", "/nowhere/at/all"], "no such folder"),
    (["--method", "scale", "--engine", "cg"], "--engine cg"),
])
def test_what_cannot_be_run_is_two_lines_and_exit_two(
        home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    assert restored(home, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert words in error and [line.split(": ")[0] for line in error.splitlines()] == ["error", "hint"]
    assert not (tmp_path / "out").exists()


def test_an_unaligned_model_of_another_shape_is_exit_five(
        home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(home / "base" / "model.safetensors")
    save_file({name: t[..., :-1].contiguous() for name, t in tensors.items()}, other / "model.safetensors")
    assert restored(home, tmp_path / "out", "--method", "resta", "--unaligned", str(other)) == 5
    assert "same architecture" in capsys.readouterr().err


def test_full_checkpoints_take_scale_at_the_adapters_rank(home: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from saferestore.core.checkpoint.quiet import quiet
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = save_adapter(tmp_path / "adapter", home / "base", target_modules=LLAMA_MODULES)
    with quiet():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(home / "base"), str(adapter))
        model.merge_and_unload().save_pretrained(home / "full")
        AutoTokenizer.from_pretrained(home / "base").save_pretrained(home / "full")
    assert restored(home, tmp_path / "out", "--method", "scale", "--strength", "1", tuned="full") in (0, 3, 4)
    report = report_of(tmp_path / "out")
    assert report["method"]["truncation_loss"] < 1e-6  # the change has rank 4, the adapter 16
    changed = load_file(tmp_path / "out" / "adapter_model.safetensors")
    theirs = load_file(adapter / "adapter_model.safetensors")
    for name in theirs:
        if ".lora_A." in name:
            b, a = (t[name.replace("lora_A", f)] for t, f in ((theirs, "lora_B"), (theirs, "lora_A")))
            mine = changed[name.replace("lora_A", "lora_B")] @ changed[name]
            torch.testing.assert_close(mine, -2 * b @ a, rtol=1e-3, atol=1e-4)  # lora_alpha / r is 2 there
