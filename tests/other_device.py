"""A second device without one: tensors that say they are on `cuda:0`, and operations that refuse to mix devices.

The numbers stay on the CPU; what is marked is storage. Every operation is checked as CUDA checks it: all tensors on one
device, but for 0-dimensional ones of the CPU, indices and copies. A generator of the CPU cannot fill a tensor of the
device, and a tensor of the device is no NumPy array. What this cannot show: kernels, memory, speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint import loading, session, systems, writer
from saferestore.core.evaluation import comparing, probing
from saferestore.core.evaluation.judges import run as judging
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
CROSSING = {"aten::copy_", "aten::set_", "aten::resize_"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
STRICT = {"aten::cat", "aten::stack"}


class Marks:
    """Storages that are on the device."""

    def __init__(self) -> None:
        self._kept: dict[int, StorageWeakRef] = {}
        self.used = 0

    def has(self, t: Tensor) -> bool:
        """Tell whether a tensor is there."""
        try:
            return t.untyped_storage()._cdata in self._kept
        except NotImplementedError:  # a wrapper without storage
            return False

    def put(self, found: Any, there: bool) -> Any:
        """Say of all tensors of a result where they are, and return it."""
        for t in tree_leaves(found):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if there:
                    self.used += 1
                    self._kept[storage._cdata] = StorageWeakRef(storage)  # its address is not given out again
                else:
                    self._kept.pop(storage._cdata, None)
        if len(self._kept) > 20_000:
            self._kept = {at: weak for at, weak in self._kept.items() if not weak.expired()}
        return found


class _Move(torch.autograd.Function):
    """A copy to the other device, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, marks: Marks, there: bool) -> Tensor:
        ctx.marks, ctx.was = marks, marks.has(t)
        return marks.put(t.clone(), there)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.marks.put(gradients[0].clone(), ctx.was), None, None


class _Checked(TorchDispatchMode):
    """Every operation, also those of the backward pass."""

    def __init__(self, marks: Marks, inside: list[bool]) -> None:
        super().__init__()
        self.marks, self.inside = marks, inside

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name in INDEXED and self.marks.has(args[0]):  # it may be indexed by tensors of the CPU, not the reverse
            given = [t for t in tree_leaves((args[0], *args[2:])) if isinstance(t, Tensor)]
        there = [t for t in given if self.marks.has(t)]
        here = [t for t in given if not self.marks.has(t) and (t.dim() > 0 or name in STRICT)]
        in_place = name.endswith("_") and isinstance(args[0], Tensor) and not self.marks.has(args[0])
        if there and name not in CROSSING and (here or in_place):
            raise RuntimeError(f"Expected all tensors to be on the same device - {name}")
        found = func(*args, **(kwargs or {}))
        if name not in CROSSING and (there or (not given and self.inside and self.inside[-1])):
            self.marks.put(found, True)
        return found


class _Asked(TorchFunctionMode):
    """Every function of torch that Python calls: where tensors are made, moved, and asked where they are."""

    def __init__(self, marks: Marks, inside: list[bool]) -> None:
        super().__init__()
        self.marks, self.inside = marks, inside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = isinstance(args[0], Tensor) and self.marks.has(args[0]) if args else False
        if func in GETTERS:
            return GETTERS[func] if own else func(*args)
        if func in (Tensor.numpy, Tensor.__array__) and own:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.cpu:
            return self.moved(args[0], False)
        if func is Tensor.to:
            return self.to(*args, **kwargs)
        there = any(self.marks.has(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        where = kwargs.get("device")
        if where is not None:
            there = is_there(where)
            kwargs["device"] = "cpu" if there else where
        if kwargs.get("generator") is not None and there:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        self.inside.append(there)
        try:
            found = func(*args, **kwargs)
        finally:
            self.inside.pop()
        return self.marks.put(found, is_there(where)) if where is not None else found

    def moved(self, t: Tensor, there: bool) -> Tensor:
        """Return a copy on a device, the tensor itself where it is there."""
        return t if self.marks.has(t) == there else _Move.apply(t, self.marks, there)  # type: ignore[return-value]

    def to(self, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`: a device, a dtype, both, or another tensor."""
        there, rest = self.marks.has(t), []
        for each in args:
            if isinstance(each, Tensor):
                there, rest = self.marks.has(each), [*rest, each.dtype]
            elif isinstance(each, str | torch.device):
                there = is_there(each)
            elif isinstance(each, torch.dtype):
                rest.append(each)  # what is left is None, or about copying
        if kwargs.get("device") is not None:
            there = is_there(kwargs["device"])
        kwargs.pop("device", None)
        kwargs.pop("non_blocking", None)
        if not rest and kwargs.get("dtype") is None:
            rest = [t.dtype]
        self.inside.append(self.marks.has(t))
        try:
            return self.moved(Tensor.to(t, *rest, **kwargs), there)
        finally:
            self.inside.pop()


GETTERS = {getattr(Tensor, name).__get__: value for name, value in
           (("device", CUDA), ("is_cuda", True), ("is_cpu", False))}


def is_there(where: Any) -> bool:
    """Tell whether a device as it is written is the simulated one."""
    return isinstance(where, int) or torch.device(where).type == "cuda"


@contextmanager
def other_device() -> Iterator[Marks]:
    """Run with a simulated GPU: models are loaded to it where `--device cuda` asks for it."""
    marks, inside = Marks(), list[bool]()

    def load_model(folder: Any, placement: loading.Placement) -> Any:
        model = loading.load_model(folder, loading.Placement(placement.dtype, torch.device("cpu")))
        if placement.device.type == "cuda":
            for t in (*model.parameters(), *model.buffers()):
                marks.put(t, True)
        return model

    with pytest.MonkeyPatch.context() as patch:
        for module in (comparing, judging, probing, session, systems, writer):
            patch.setattr(module, "load_model", load_model)
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (8 << 30, 8 << 30))
        patch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
        patch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
        asked, backward = _Asked(marks, inside), torch.autograd._engine_run_backward

        def with_hooks(*arguments: Any, **more: Any) -> Any:
            with asked:  # a mode is off within the function that it was asked about, and hooks run there
                return backward(*arguments, **more)

        patch.setattr(torch.autograd, "_engine_run_backward", with_hooks)
        with _Checked(marks, inside), asked:
            yield marks
