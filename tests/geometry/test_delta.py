"""Changes by module against whole matrices, and against the memory they may take."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint.tiny import FAMILIES, save_adapter, save_base
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.safetensors_files import read_headers
from saferestore.core.errors import MismatchError
from saferestore.core.geometry import delta
from saferestore.core.geometry.delta import ModuleDelta, deltas
from safetensors.torch import load_file
from torch import Tensor


def singular(change: Tensor) -> Tensor:
    return torch.linalg.svdvals(change.double())


def check(found: ModuleDelta, change: Tensor, base: Tensor) -> None:
    """Against the singular values of the whole change."""
    values = singular(change)
    assert found.norm == pytest.approx(float(values.square().sum().sqrt()), rel=1e-5)
    assert found.relative_norm == pytest.approx(found.norm / float(base.double().norm()), rel=1e-5)
    assert found.effective_rank == pytest.approx(float(values.square().sum() ** 2 / values.pow(4).sum()), rel=1e-4)
    assert found.effective_rank is not None and found.effective_rank <= found.rank_limit * (1 + 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_s_change_is_that_of_its_whole_product(family: str, tmp_path: Path) -> None:
    make, modules = FAMILIES[family]
    base = save_base(tmp_path / "base", make)
    adapter = save_adapter(tmp_path / "tuned", base, target_modules=modules, r=3, lora_alpha=7)
    found = {each.tensor: each for each in deltas(open_pair(str(base), str(adapter)))}
    weights, factors = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    products = {name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight"):
                factors[name.replace("lora_A", "lora_B")] @ factor * 7 / 3
                for name, factor in factors.items() if "lora_A" in name}
    assert set(found) == set(products)
    for name, change in products.items():
        check(found[name], change, weights[name])
        assert found[name].rank_limit == 3


def test_an_adapter_on_weights_of_another_name_has_no_relative_change(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    pair = open_pair(str(base), str(save_adapter(tmp_path / "tuned", base)))
    wanted = deltas(pair)
    monkeypatch.setattr(delta, "read_headers", lambda folder: {  # as Gemma 3's, with images
        f"language_model.{name}": info for name, info in read_headers(folder).items()})
    assert deltas(pair) == [dataclasses.replace(each, relative_norm=None) for each in wanted]


def test_full_checkpoints_are_compared_whatever_their_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "PIECE", 40)  # several pieces a tensor
    base = save_base(tmp_path / "base", max_shard_size="5KB")
    tuned = save_base(tmp_path / "tuned", seed=1, max_shard_size="9KB")
    whole = [save_base(tmp_path / f"whole{seed}", seed=seed) / "model.safetensors" for seed in (0, 1)]
    old, new = (load_file(file) for file in whole)
    found = {each.tensor: each for each in deltas(open_pair(str(base), str(tuned)))}
    assert set(found) == set(old)
    for name, each in found.items():
        if old[name].dim() == 2:
            check(each, new[name] - old[name], old[name])
        else:
            assert each.effective_rank is None and each.norm == pytest.approx(float((new[name] - old[name]).norm()))


def test_what_did_not_change_has_no_rank(tmp_path: Path) -> None:
    base, tuned = (save_base(tmp_path / name) for name in ("base", "tuned"))
    assert all(each.norm == 0 and each.effective_rank is None for each in deltas(open_pair(str(base), str(tuned))))


def test_checkpoints_of_other_shapes_are_refused_by_the_first_tensor(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    other = save_base(tmp_path / "tuned", lambda: FAMILIES["llama"][0](intermediate_size=32))
    with pytest.raises(MismatchError, match="down_proj.weight has shape"):
        open_pair(str(base), str(other))


def test_a_file_that_goes_bad_while_it_is_read_is_named(tmp_path: Path) -> None:
    base, tuned = (save_base(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "tuned")))
    pair = open_pair(str(base), str(tuned))
    (tuned / "model.safetensors").write_bytes((tuned / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(MismatchError, match="tuned"):
        deltas(pair)


MEMORY = """
import json, sys, types
from pathlib import Path
import torch
from saferestore.core.geometry.delta import deltas
from safetensors.torch import save_file

def resident(name):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(name))

torch.set_num_threads(1)
folders = [Path(sys.argv[1]) / name for name in ("base", "tuned")]
for folder in folders:
    folder.mkdir()
    places = {}
    for shard in range(10):
        file = f"model-{shard}.safetensors"
        tensors = {f"layer.{shard}.{i}.weight": torch.randn(1536, 512) for i in range(4)}
        save_file(tensors, folder / file)
        places.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
del tensors
size = (folders[0] / "model-0.safetensors").stat().st_size
small = torch.randn(512, 512) @ torch.randn(512, 512)  # what torch prepares at first use
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
pair = types.SimpleNamespace(kind="full", base_dir=folders[0], tuned_dir=folders[1])
count = len(deltas(pair))
print(json.dumps([count, size, resident("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_stays_under_two_shards(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    count, shard, peak = json.loads(done.stdout)
    assert count == 40 and peak < 2 * shard, f"{peak / shard:.2f} shards"
