"""GPUs without any: tensors that say they are on `cuda:0` or `cuda:1`, and operations that refuse to mix devices.

The numbers stay on the CPU; what is marked is storage. Every operation is checked as CUDA checks it: all tensors on one
device, but for 0-dimensional ones of the CPU, indices and copies. A generator fills tensors of its own device alone,
and a tensor of the device is no NumPy array. What this cannot show: kernels, memory, speed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from saferestore.core.checkpoint import loading, session, systems, writer
from saferestore.core.evaluation import comparing, probing
from saferestore.core.evaluation.judges import run as judging
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, CUDA, NEXT = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
GPUS = (CUDA, NEXT)
CROSSING = {"aten::copy_", "aten::set_", "aten::resize_"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
STRICT = {"aten::cat", "aten::stack"}


class Marks:
    """Storages that are on a GPU.

    Attributes:
        used: How many results were put on each.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.used = {CUDA: 0, NEXT: 0}

    def where(self, t: Tensor) -> torch.device:
        """Return where a tensor is."""
        try:
            return self._kept[t.untyped_storage()._cdata][1]
        except (KeyError, NotImplementedError):  # a wrapper has no storage
            return CPU

    def put(self, found: Any, there: torch.device) -> Any:
        """Say of all tensors of a result where they are, and return it."""
        for t in tree_leaves(found):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if there != CPU:
                    self.used[there] += 1
                    self._kept[storage._cdata] = StorageWeakRef(storage), there  # its address is not given out again
                else:
                    self._kept.pop(storage._cdata, None)
        if len(self._kept) > 20_000:
            self._kept = {at: kept for at, kept in self._kept.items() if not kept[0].expired()}
        return found


class _Move(torch.autograd.Function):
    """A copy to the other device, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, marks: Marks, there: torch.device) -> Tensor:
        ctx.marks, ctx.was, ctx.there = marks, marks.where(t), there
        return marks.put(t.clone(), there)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Move.apply(gradients[0], ctx.marks, ctx.was), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return ctx.marks.put(tangents[0].clone(), ctx.there)


class _Checked(TorchDispatchMode):
    """Every operation, also those of the backward pass."""

    def __init__(self, marks: Marks, inside: list[torch.device]) -> None:
        super().__init__()
        self.marks, self.inside = marks, inside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name in INDEXED:  # a tensor may be indexed by those of the CPU as well, not the reverse
            indices = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor) and self.marks.where(t) == CPU]
            given = [t for t in given if not any(t is index for index in indices)]
        devices = {self.marks.where(t) for t in given if t.dim() > 0 or name in STRICT or self.marks.where(t) != CPU}
        if name.endswith("_") and isinstance(args[0], Tensor):
            devices.add(self.marks.where(args[0]))
        if len(devices) > 1 and name not in CROSSING:
            raise RuntimeError(f"Expected all tensors to be on the same device - {name}")
        if (name == "aten::cumsum" and args[0].is_floating_point() and devices != {CPU}
                and torch.are_deterministic_algorithms_enabled()):
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
        found = func(*args, **(kwargs or {}))
        if not given and self.inside:
            devices = {self.inside[-1]}
        for device in devices - {CPU} if name not in CROSSING else ():
            self.marks.put(found, device)
        return found


class _Asked(TorchFunctionMode):
    """Every function of torch that Python calls: where tensors are made, moved, and asked where they are."""

    def __init__(self, marks: Marks, inside: list[torch.device]) -> None:
        super().__init__()
        self.marks, self.inside = marks, inside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = self.marks.where(args[0]) if args and isinstance(args[0], Tensor) else CPU
        if func in GETTERS:
            return GETTERS[func](own) if own != CPU else func(*args)
        if func in (Tensor.numpy, Tensor.__array__) and own != CPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.cpu:
            return self.moved(args[0], CPU)
        if func is Tensor.to:
            return self.to(*args, **kwargs)
        of = {self.marks.where(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)} - {CPU}
        there, where = next(iter(of), CPU), kwargs.get("device")
        if where is not None:
            there = device_of(where)
            kwargs["device"] = where if there == CPU else CPU
        if (generator := kwargs.get("generator")) is not None and there != getattr(generator, "there", CPU):
            raise RuntimeError("Expected the device of the tensor for generator but found another")
        self.inside.append(there)
        try:
            found = func(*args, **kwargs)
        finally:
            self.inside.pop()
        return self.marks.put(found, there) if where is not None else found

    def moved(self, t: Tensor, there: torch.device) -> Tensor:
        """Return a copy on a device, the tensor itself where it is there."""
        return t if self.marks.where(t) == there else _Move.apply(t, self.marks, there)  # type: ignore[return-value]

    def to(self, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`: a device, a dtype, both, or another tensor."""
        there, rest = self.marks.where(t), []
        for each in args:
            if isinstance(each, Tensor):
                there, rest = self.marks.where(each), [*rest, each.dtype]
            elif isinstance(each, str | torch.device | int) and not isinstance(each, bool):
                there = device_of(each)
            elif isinstance(each, torch.dtype):
                rest.append(each)  # what is left is None, or about copying
        if kwargs.get("device") is not None:
            there = device_of(kwargs["device"])
        kwargs.pop("device", None)
        kwargs.pop("non_blocking", None)
        if not rest and kwargs.get("dtype") is None:
            rest = [t.dtype]
        self.inside.append(self.marks.where(t))
        try:
            return self.moved(Tensor.to(t, *rest, **kwargs), there)
        finally:
            self.inside.pop()


class _Generator(torch.Generator):
    """Random numbers for one device; those of a GPU are others than these."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        """Return a generator of the CPU that says where it belongs."""
        made = super().__new__(cls)
        made.there = device_of(device)
        return made


GETTERS: dict[Any, Callable[[torch.device], Any]] = {
    Tensor.device.__get__: lambda own: own, Tensor.is_cuda.__get__: lambda _: True,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda _: False, Tensor.get_device: lambda own: own.index}  # type: ignore[attr-defined]


def device_of(where: Any) -> torch.device:
    """Return which simulated GPU a device as it is written is, CPU for any other."""
    found = torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
    return torch.device("cuda", found.index or 0) if found.type == "cuda" else CPU


def spread(model: Any) -> Any:
    """Split a model over two simulated GPUs, its layers half and half, as accelerate does for `device_map`."""
    parts = [name for name, child in model.named_modules() if isinstance(child, nn.ModuleList)]
    [layers] = [name for name in parts if len(model.get_submodule(name)) > 1]
    half = len(model.get_submodule(layers)) // 2
    owner = layers.rpartition(".")[0]
    first = [name for name, child in model.get_submodule(owner).named_children() if isinstance(child, nn.Embedding)]
    where: dict[str, Any] = {f"{owner}.{name}": 0 for name, _ in model.get_submodule(owner).named_children()
                             if f"{owner}.{name}" != layers}
    where |= {name: 1 for name in where if name.rpartition(".")[2] not in first}
    where |= {f"{layers}.{at}": int(at >= half) for at in range(2 * half)}
    tied = bool(model.config.tie_word_embeddings)  # tied weights have to stay together
    where |= {name: int(not tied) for name, _ in model.named_children() if name != owner}
    return dispatch_model(model, {name: str(GPUS[at]) for name, at in where.items()}, main_device=str(CUDA),
                          force_hooks=True)


@contextmanager
def other_device() -> Iterator[Marks]:
    """Run with simulated GPUs: models are loaded to one for `--device cuda`, to two for `--device-map`."""
    marks, inside = Marks(), list[torch.device]()

    def load_model(folder: Any, placement: loading.Placement) -> Any:
        model = loading.load_model(folder, loading.Placement(placement.dtype, torch.device("cpu")))
        if placement.device_map is not None:
            return spread(model)
        for t in (*model.parameters(), *model.buffers()):
            marks.put(t, device_of(placement.device))
        return model

    with pytest.MonkeyPatch.context() as patch:
        for module in (comparing, judging, probing, session, systems, writer):
            patch.setattr(module, "load_model", load_model)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (8 << 30, 8 << 30))
        patch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
        patch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
        # Adam sorts tensors by device where Python does not see it, for speed on a GPU alone.
        patch.setattr(sys.modules["torch.optim.adam"], "_default_to_fused_or_foreach", lambda *_, **__: (False, False))
        asked, backward = _Asked(marks, inside), torch.autograd._engine_run_backward

        def with_hooks(*arguments: Any, **more: Any) -> Any:
            with asked:  # a mode is off within the function that it was asked about, and hooks run there
                return backward(*arguments, **more)

        patch.setattr(torch.autograd, "_engine_run_backward", with_hooks)
        with _Checked(marks, inside), asked:
            yield marks
