"""A probe of tiny checkpoints from their folders to the document."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint.tiny import LLAMA_MODULES, edit_json, save_adapter
from saferestore.core import pipeline
from saferestore.core.checkpoint.systems import find_system
from saferestore.core.config import ProbeConfig, no_progress
from saferestore.core.errors import NumericalError, UsageError
from saferestore.core.evaluation import probing
from saferestore.core.evaluation.probing import probe_system, read_probe_sets
from talk import save_pair

SMALL: dict[str, Any] = {"rows": 3, "points": 3, "products": 10, "probes": 2, "eigenvalues": 2, "direction_rank": 2,
                         "rank": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("probing")
    save_pair(made)
    rows = ('{"prompt": "two and two", "answer": "four"}', '{"prompt": "three and one", "answer": "four"}',
            '{"prompt": "one", "answer": "one"}')
    (made / "task.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return made


def config(folder: Path, model: str = "tuned", **changes: Any) -> ProbeConfig:
    base = str(folder / "base") if model == "tuned" else None
    return ProbeConfig(model=str(folder / model), **{**SMALL, "base": base, "task": (str(folder / "task.jsonl"),),
                                                     **changes})


def without_run(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "run"}


def test_the_same_seed_gives_the_same_document(folder: Path, tmp_path: Path) -> None:
    found = [pipeline.probe(config(folder), tmp_path / str(i), plots=tmp_path / f"p{i}") for i in range(2)]
    assert without_run(found[0]) == without_run(found[1])
    for name in ("report.html", "surfaces.svg", "lines.svg", "spectra.svg", "modules.svg"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
    assert (tmp_path / "p0" / "lines.svg").read_bytes() == (tmp_path / "0" / "lines.svg").read_bytes()
    assert str(tmp_path) not in (tmp_path / "0" / "report.html").read_text(encoding="utf-8")


def test_an_input_is_never_replaced(folder: Path) -> None:
    for places in ({"out": folder}, {"plots": folder}):
        with pytest.raises(UsageError, match="OUT would replace"):
            pipeline.probe(config(folder, force=True), **places)
    assert (folder / "tuned").is_dir()


def test_an_adapter_is_probed_in_its_own_coordinates_on_harmful_and_task_rows(folder: Path) -> None:
    found = pipeline.probe(config(folder))
    assert found["curvature"]["coordinates"] == "adapter" and found["adapter"]["form"] == "LoRA"
    assert [(row["set"], row["matrix"]) for row in found["curvature"]["matrices"]] == [
        ("harmful", "hessian"), ("harmful", "gauss_newton"), ("task", "hessian"), ("task", "gauss_newton")]
    middle = {name: heights[1][1] for name, heights in found["surface"]["losses_nats_per_token"].items()}
    for row in found["losses"]:
        assert row["loss_nats_per_token"] == pytest.approx(middle[row["set"]], rel=1e-5)
        assert row["ci_low"] <= row["loss_nats_per_token"] <= row["ci_high"]
    answers = {name: each["answers"] for name, each in found["inputs"]["data"].items()}
    assert answers == {"harmful": {"given": 0, "affirmative opening": 3}, "benign": {"given": 0, "own": 3},
                       "task": {"given": 3, "own": 0}}


def test_a_full_checkpoint_is_probed_in_a_subspace_of_the_modules_asked_for(folder: Path) -> None:
    found = pipeline.probe(config(folder, "base", modules="q_proj,down_proj", task=()))
    assert found["curvature"]["coordinates"] == "subspace" and found["curvature"]["dimension"] == 2 * (16 + 16)
    assert found["adapter"] is None and found["runtimes"] == []
    assert {row["set"] for row in found["curvature"]["matrices"]} == {"harmful", "benign"}


@pytest.mark.parametrize("model", ["tuned", "base"])
def test_bfloat16_weights_give_what_float32_gives_to_their_rounding(folder: Path, model: str) -> None:
    wanted, found = (pipeline.probe(config(folder, model, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert found["curvature"]["way"] == "kept" and found["curvature"]["coordinates_dtype"] == "float32"
    for a, b in zip(wanted["losses"], found["losses"], strict=True):  # the model's own answers may differ
        assert b["loss_nats_per_token"] == pytest.approx(a["loss_nats_per_token"], rel=0.03)
    for a, b in zip(wanted["curvature"]["matrices"], found["curvature"]["matrices"], strict=True):
        assert (a["set"], a["matrix"]) == (b["set"], b["matrix"])
        assert b["sharpness"] == pytest.approx(a["sharpness"], rel=0.1) and b["sharpness"] != a["sharpness"]


def test_without_products_there_is_no_curvature(folder: Path) -> None:
    found = pipeline.probe(config(folder, products=0))
    assert found["curvature"] is None and found["curvature_reason"] == "--products 0" and found["surface"] is not None


def test_an_adapter_without_a_lora_form_is_described_and_not_measured(folder: Path, tmp_path: Path) -> None:
    dora = save_adapter(tmp_path / "dora", folder / "base", target_modules=LLAMA_MODULES, use_dora=True)
    found = pipeline.probe(ProbeConfig(model=str(dora), base=str(folder / "base"), **SMALL))
    assert found["adapter"]["form"] == "DoRA" and found["losses"] == [] and found["surface"] is None
    assert "use_dora" in found["surface_reason"] and found["checkpoint"]["layers"] == 2
    assert found["warnings"][0]["code"] == "W_NO_LORA_FORM" and str(tmp_path) not in found["warnings"][0]["message"]
    edit_json(dora / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    assert pipeline.probe(ProbeConfig(model=str(dora), **SMALL))["checkpoint"] is None


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("w1 " * 500, "w2 w3", "w4 w5")),
                    encoding="utf-8")
    found = pipeline.probe(config(folder, "base", harmful=(str(rows),)))
    assert [each["rows"] for name, each in found["inputs"]["data"].items() if name == "harmful"] == [2]
    assert [each["message"] for each in found["warnings"] if each["code"] == "W_TOO_LONG"] == [
        "1 prompts leave no room for an answer and were not asked: 1 harmful"]


def test_modules_that_are_not_there_are_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UsageError, match="--modules q_porj") as caught:
        pipeline.probe(config(folder, "base", modules="q_porj"))
    assert "q_proj" in caught.value.hint


def test_a_checkpoint_whose_own_loss_is_not_finite_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = probing.take_slice

    def broken(*arguments: Any, **settings: Any) -> Any:
        found = take(*arguments, **settings)
        return dataclasses.replace(found, sums=np.full_like(found.sums, np.nan))

    monkeypatch.setattr(probing, "take_slice", broken)
    settings = config(folder)
    system = find_system("model", settings.model, settings.base)
    with pytest.raises(NumericalError, match="set harmful is not finite"):
        probe_system(system, read_probe_sets(settings), settings, no_progress)


def test_a_model_without_a_second_derivative_has_no_gauss_newton_matrix(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saferestore.core.curvature import hessian

    def raises(_: object) -> Any:
        raise RuntimeError("not implemented")

    for way in ("rebuilt", "forward"):
        monkeypatch.setitem(hessian.WAYS, way, raises)
    found = pipeline.probe(config(folder))
    assert found["curvature"]["way"] == "difference" and found["curvature"]["check_distance"] is None
    assert {row["matrix"] for row in found["curvature"]["matrices"]} == {"hessian"}


def test_far_points_that_are_not_finite_are_counted_gaps(folder: Path) -> None:
    found = pipeline.probe(config(folder, reach=1e30, products=0))
    assert found["surface"]["gaps"] == {"harmful": 8, "benign": 8, "task": 8}
    heights = torch.tensor([[float("nan") if x is None else x for x in row]
                            for row in found["surface"]["losses_nats_per_token"]["task"]])
    assert int(heights.isnan().sum()) == 8 and bool(heights[1, 1].isfinite())
