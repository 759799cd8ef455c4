"""Every command on one simulated GPU and on two: no operation mixes devices, and the results are those of the CPU.

What `tests/other_device.py` simulates is tested first, against what CUDA does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.tiny import deepseek, save_base, tied_llama
from other_device import CPU, CUDA, NEXT, Marks, other_device
from saferestore.core import pipeline
from saferestore.core.checkpoint import loading
from saferestore.core.checkpoint.determinism import deterministic
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session
from saferestore.core.checkpoint.systems import find_system
from saferestore.core.config import PUBLISHED, CompareConfig, EvalConfig, ProbeConfig, RestoreConfig, ScoreConfig
from saferestore.core.config.names import ENGINES, NEED_UNALIGNED
from saferestore.core.curvature.hessian import graph_bytes
from saferestore.core.data.batches import Row, make_batches
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.probing import placement_of
from saferestore.core.losses import cross_entropy, row_losses
from talk import save_pair
from torch import nn
from torch.utils._pytree import tree_leaves


def test_tensors_say_where_they_are_and_bring_their_results_there() -> None:
    with other_device():
        here, there = torch.ones(2, 3), torch.ones(2, 3, device="cuda")
        assert (here.device.type, there.device, there.is_cuda, there.is_cpu) == ("cpu", CUDA, True, False)
        made = (there[0], there @ there.T, torch.zeros_like(there), there.new_zeros(4), torch.arange(3, device=CUDA),
                there.double().to(torch.float32), here.to(there.device), here.to(there),
                nn.Linear(3, 2).to(CUDA).weight)
        assert all(t.device == CUDA for t in made)
        back = (there.cpu(), there.to("cpu"), there.to(here), torch.ones(3), here.to(torch.float64))
        assert all(t.device.type == "cpu" for t in back) and there.to(CUDA) is there and here.cpu() is here
        assert float(there.sum()) == 6.0 and there.tolist() == here.tolist()
        assert here.copy_(there).device.type == "cpu" and there.copy_(here).device == CUDA


@pytest.mark.parametrize("mixed", [
    lambda here, there: here + there, lambda here, there: torch.cat([here, there]),
    lambda here, there: there @ here.T, lambda here, there: there.add_(here),
    lambda here, there: here.add_(there.sum()),
    lambda here, there: nn.functional.embedding(torch.zeros(2, dtype=torch.long), there),
    lambda here, there: torch.stack([here.sum(), there.sum()]), lambda here, there: here * there.sum(),
    lambda here, there: there.gather(1, torch.zeros(2, 1, dtype=torch.long)),
    lambda here, there: here[torch.zeros(1, dtype=torch.long, device=CUDA)],
    lambda here, there: torch.rand(2, device=CUDA, generator=torch.Generator()),
    lambda here, there: there.normal_(generator=torch.Generator()),
    lambda here, there: torch.rand(2, generator=torch.Generator(CUDA)),
    lambda here, there: torch.rand(2, device=NEXT, generator=torch.Generator(CUDA)),
    lambda here, there: there.index_add_(0, torch.zeros(2, dtype=torch.long), there)])
def test_what_mixes_devices_is_refused(mixed: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    with other_device():
        here, there = torch.ones(2, 3), torch.ones(2, 3, device=CUDA)
        with pytest.raises(RuntimeError, match=r"same device|for generator"):
            mixed(here, there)
        with pytest.raises(RuntimeError, match="same device"):
            there + there.to(NEXT)
        assert there.to(NEXT)[0].device == NEXT


def test_numpy_is_refused_and_scalars_and_indices_of_the_cpu_are_not() -> None:
    with other_device():
        there = torch.ones(2, 3, device=CUDA)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        scalar, index = torch.tensor(2.0), torch.zeros(1, dtype=torch.long)
        assert (there * scalar).device == there[index].device == CUDA
        there[index] = 3.0
        assert float(there[0, 0]) == 3.0


def test_gradients_come_back_to_where_they_belong_and_hooks_are_checked() -> None:
    with other_device():
        leaf = torch.ones(3, requires_grad=True)
        there = leaf.to(CUDA)
        seen: list[torch.device] = []
        there.register_hook(lambda g: seen.append(g.device))
        [found] = torch.autograd.grad((there * 2).sum(), [leaf], retain_graph=True)
        assert found.device.type == "cpu" and seen == [CUDA] and found.tolist() == [2.0] * 3
        there.register_hook(lambda g: g + torch.ones(3))
        with pytest.raises(RuntimeError, match="same device"):
            torch.autograd.grad((there * 2).sum(), [leaf])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny pair and rows for every set; their answers are random, so safe ones are given."""
    folder = tmp_path_factory.mktemp("files")
    save_pair(folder)
    rows = {name: [{"prompt": f"{name} {n}", "category": "abcd"[n % 4]} for n in range(14)]
            for name in ("harmful", "benign")}
    rows["harmful"] = [{**row, "answer": f"Sure, step {n}"} for n, row in enumerate(rows["harmful"])]
    rows["task"] = [{"prompt": f"{n} and 1", "answer": str(n + 1)} for n in range(9)]
    rows["safe"] = [{"prompt": f"harmful {n}", "answer": "I cannot help with that."} for n in range(14)]
    found = {"base": str(folder / "base"), "tuned": str(folder / "tuned")}
    for name, part in rows.items():
        found[name] = str(folder / f"{name}.jsonl")
        Path(found[name]).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return found


def restoration(files: dict[str, str], **settings: Any) -> RestoreConfig:
    given = {name: (files[name],) for name in ("harmful", "benign", "task", "safe")}
    usual = {"base": files["base"], "tuned": files["tuned"], "fit_rows": 4, "held_out_rows": 4, "max_steps": 2,
             "hold_out_categories": 1, "max_new_tokens": 8, "batch_size": 3, "max_drift": 0.05, "controls": False}
    return RestoreConfig(**{**usual, **given, **settings})


def on_both(run: Callable[[str, str | None], dict[str, Any]],
            device_map: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a command finds on the CPU and on one simulated GPU or two, where its model has to have been."""
    with other_device() as marks:
        there = run("cuda", device_map)
        assert marks.used[CUDA] > 100 and (marks.used[NEXT] > 100) == (device_map is not None)
    return run("cpu", None), there


def same(first: Any, second: Any) -> None:
    """Documents agree but for times, the device asked for, and rounding (which influences by differences enlarge)."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"run", "settings", "environment", "outputs", "derivative"}:
            same(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            same(one, other)
    elif isinstance(first, float):
        assert second == pytest.approx(first, rel=5e-3, abs=1e-6)
    else:
        assert first == second


@pytest.mark.parametrize("settings", [
    *({"engine": engine} for engine in ENGINES), {"controls": True, "relearn": 1, "low_memory": True},
    {"engine": "ekfac", "device_map": "balanced"}, {"engine": "fisher", "device_map": "balanced"},
    {"engine": "cg", "device_map": "balanced", "relearn": 1}, {"objective": "anchor+match+ascent"},
    {"tuned": "base", "rank": 4, "relearn": 1}, {"train": "task"}],
    ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_restoration_on_a_gpu_is_that_on_the_cpu(
        files: dict[str, str], tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {key: files.get(value, value) if key in ("tuned", "train") else value
                for key, value in settings.items()}
    made = on_both(lambda device, device_map: pipeline.restore(
        restoration(files, **{**settings, "device": device, "device_map": device_map}), tmp_path / device),
        settings.get("device_map"))
    same(*made)
    assert made[0]["status"] == "ok"
    first, second = ((tmp_path / device / "adapter_model.safetensors").read_bytes() for device in ("cpu", "cuda"))
    assert first == second


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_published_method_runs_on_a_gpu(files: dict[str, str], tmp_path: Path, method: str) -> None:
    more = {"unaligned": files["base"]} if method in NEED_UNALIGNED else {}
    with other_device() as marks:
        made = pipeline.restore(restoration(files, device="cuda", method=method, held_out_rows=2, max_steps=1, **more),
                                tmp_path / "out")
    assert made["status"] == "ok" and marks.used[CUDA] > 100


@pytest.mark.parametrize("device_map", [None, "balanced"])
def test_half_precision_runs_on_gpus(files: dict[str, str], tmp_path: Path, device_map: str | None) -> None:
    with other_device() as marks:
        made = pipeline.restore(restoration(files, device="cuda", device_map=device_map, dtype="bfloat16",
                                            low_memory=True), tmp_path / "out")
    assert made["status"] == "ok" and made["settings"]["dtype"] == "bfloat16" and marks.used[CUDA] > 100


def test_the_memory_of_a_graph_is_counted_on_the_devices_that_hold_it(files: dict[str, str]) -> None:
    with other_device():
        live = open_session(open_pair(files["base"], files["tuned"]), device="cuda", device_map="balanced").adapter()
        batches = make_batches([Row(0, (3, 4), (5, 6, 7))], batch_size=1, pad_id=0)
        found = graph_bytes(live, cross_entropy("ce", batches))
    assert all(found[device] > 0.2 * found.total() for device in (CUDA, NEXT))


USES: dict[str, Callable[[dict[str, str]], object]] = {
    "restore": lambda files: pipeline.plan(restoration(files, device="mps")),
    "score, compare": lambda files: open_session(open_pair(files["base"], files["tuned"]), device="mps"),
    "probe": lambda files: placement_of(ProbeConfig(files["base"], device="mps"), find_system("base", files["base"])),
}


@pytest.mark.parametrize("use", USES)
def test_a_device_without_float64_is_refused_where_vectors_are_summed(
        files: dict[str, str], use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_device", torch.device)
    with pytest.raises(UsageError, match="no float64 .* --device mps"):
        USES[use](files)
    assert loading.place("auto", "mps", None, None, None, torch.bfloat16).dtype == torch.float32  # as eval asks


def test_losses_of_rows_need_no_float64_on_the_device(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = Marks.put

    def put(marks: Marks, found: Any, there: torch.device) -> Any:
        wide = [t for t in tree_leaves(found) if isinstance(t, torch.Tensor) and t.dtype == torch.float64]
        assert there == CPU or not wide
        return own(marks, found, there)

    with other_device():
        model = open_session(open_pair(files["base"], files["tuned"]), device="cuda").adapter().model
        monkeypatch.setattr(Marks, "put", put)
        sums, _ = row_losses(model, make_batches([Row(0, (3, 4), (5, 6, 7))], batch_size=1, pad_id=0))
    assert sums.dtype == torch.float64 and float(sums[0]) > 0


@pytest.mark.parametrize("make", [tied_llama, deepseek])
@pytest.mark.parametrize("device_map", [None, "balanced"])
def test_weights_of_16_bits_are_blended_on_gpus_as_on_the_cpu(
        tmp_path: Path, make: Callable[[], Any], device_map: str | None) -> None:
    """The weights of experts are merged while they are loaded; the files are in shards."""
    base, full = (str(save_base(tmp_path / name, make, seed=seed, max_shard_size="5KB"))
                  for seed, name in enumerate(("base", "full")))

    def moments(device: str, device_map: str | None) -> list[list[torch.Tensor]]:
        session = open_session(open_pair(base, full, force=True), dtype="bfloat16", device=device,
                               device_map=device_map, between=True)
        model, found = session.adapter().model.get_base_model(), []
        for alpha in (0.0, 0.3, 1.0, 0.0):
            with session.blend(alpha):
                found.append([p.detach().to("cpu", copy=True) for p in model.parameters()])
        return found

    with other_device() as marks:
        there = moments("cuda", device_map)
        assert marks.used[CUDA] > 100 and (marks.used[NEXT] > 100) == (device_map is not None)
    here = moments("cpu", None)
    for one, other in [*zip(here, there, strict=True), (here[0], here[-1])]:
        assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(here[0], here[1], strict=True) if p.dim() == 3)


def test_what_does_not_repeat_on_a_gpu_is_done_on_the_cpu_where_all_has_to(
        files: dict[str, str], tmp_path: Path) -> None:
    with other_device() as marks, deterministic(on=True):
        with pytest.raises(RuntimeError, match="cumsum_cuda_kernel"):
            torch.ones(3, device=CUDA).cumsum(0)
        assert torch.ones(3, device=CUDA, dtype=torch.long).cumsum(0).tolist() == [1, 2, 3]
        asked = pipeline.evaluate(EvalConfig(files["tuned"], **looked_at(
            files, "cuda", None, base=files["base"], limit=2, attack=("decode:t=0.7;n=2",), deterministic=True)))
        edited = pipeline.restore(restoration(files, device="cuda", method="safedelta", held_out_rows=2,
                                              deterministic=True), tmp_path / "out")
    assert asked["status"] == edited["status"] == "ok" and marks.used[CUDA] > 100


def looked_at(files: dict[str, str], device: str, device_map: str | None, **settings: Any) -> dict[str, Any]:
    """Settings that every look shares."""
    return {"harmful": (files["harmful"],), "device": device, "device_map": device_map, "max_new_tokens": 8, **settings}


LOOKS: dict[str, Callable[..., dict[str, Any]]] = {
    "probe": lambda files, *where: pipeline.probe(ProbeConfig(files["tuned"], **looked_at(
        files, *where, benign=(files["benign"],), rows=4, points=3, products=4, probes=2, eigenvalues=2))),
    "compare": lambda files, *where: pipeline.compare(CompareConfig(files["base"], files["tuned"], **looked_at(
        files, *where, benign=(files["benign"],), rows=10, points=3, directions=2, draws=2))),
    "score": lambda files, *where: pipeline.score(ScoreConfig(files["base"], files["tuned"], **looked_at(
        files, *where, train=files["task"], safe=(files["safe"],), fit_rows=6, curvature_rows=4))),
    "score-diagonal": lambda files, *where: pipeline.score(ScoreConfig(files["base"], files["tuned"], **looked_at(
        files, *where, train=files["task"], safe=(files["safe"],), fit_rows=6, way="diagonal", per_token=True))),
    "eval": lambda files, *where: pipeline.evaluate(EvalConfig(files["tuned"], **looked_at(
        files, *where, base=files["base"], limit=4, task=(files["task"],), shots="0,1",
        attack=("prefill:2", "manyshot:2", "decode:t=0.7;n=2", "template:roleplay")))),
}


@pytest.mark.parametrize("device_map", [None, "balanced"])
@pytest.mark.parametrize("command", LOOKS)
def test_a_look_on_gpus_is_that_on_the_cpu(files: dict[str, str], command: str, device_map: str | None) -> None:
    same(*on_both(lambda *where: LOOKS[command](files, *where), device_map))
