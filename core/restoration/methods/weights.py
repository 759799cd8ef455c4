"""Weight changes of modules, dense and one at a time, and their way back into the factors of the adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...checkpoint.factors import pad
from ...checkpoint.safetensors_files import AGAIN, read_headers
from ...checkpoint.session import read_params
from ...errors import MismatchError
from ...params import Params
from ..modules import factors
from .inputs import Edited, Inputs

WHOLE = 2048
"""Matrices whose shorter side is longer are decomposed by random projection (Halko et al. 2011)."""

Change = Callable[[str, Tensor], Tensor]
"""(module, W_tuned - W_base [out, in]) -> the change from the base that is wanted; the same object: leave it."""


class Weights:
    """The weights of a checkpoint on disk, by module."""

    def __init__(self, folder: Path, *, transposed: bool) -> None:
        """Read the headers; `transposed` tells that weights are stored as [in, out]."""
        self.folder, self.transposed, self.headers = folder, transposed, read_headers(folder)

    def __call__(self, module: str, like: Tensor) -> Tensor:
        """Return a module's weight [out, in] in the type and on the device of `like`.

        Raises:
            MismatchError: No such weight, or a file that safetensors refuses.
        """
        wanted = f"{module}.weight"
        # A checkpoint may have been saved without its head, and so without the name of the model's body.
        name = wanted if wanted in self.headers else next((n for n in self.headers if wanted.endswith(f".{n}")), None)
        if name is None:
            raise MismatchError(f"no weight {wanted} - {self.folder.name}",
                                hint="give a model of the same architecture")
        try:
            with safe_open(self.headers[name].file, framework="pt") as tensors:
                found = tensors.get_tensor(name).to(like)
        except SafetensorError as error:
            raise MismatchError(f"corrupted safetensors file ({error}) - {self.folder.name}", hint=AGAIN) from error
        return found.T if self.transposed else found


def difference(later: Weights, earlier: Weights, module: str, like: Tensor) -> Tensor:
    """Return a module's weight in `later` minus that in `earlier`, [out, in].

    Raises:
        MismatchError: Other shapes.
    """
    new, old = later(module, like), earlier(module, like)
    if new.shape != old.shape:
        raise MismatchError(f"{module}.weight is {list(new.shape)} in {later.folder.name} and {list(old.shape)} - "
                            f"{earlier.folder.name}", hint="give a model of the same architecture")
    return new - old


def tuned_changes(inputs: Inputs, start: Params) -> Iterator[tuple[str, Tensor]]:
    """Yield (module, W_tuned - W_base [out, in]): B A of an adapter, a difference of files for a full checkpoint."""
    pair = inputs.pair
    if pair.kind == "lora":
        yield from ((module, b @ a) for module, (a, b) in factors(start).items())
        return
    tuned, base = (Weights(folder, transposed=pair.transposed) for folder in (pair.tuned_dir, pair.base_dir))
    yield from ((module, difference(tuned, base, module, a)) for module, (a, _) in factors(start).items())


def truncated(matrix: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Return the best factors of a rank (Eckart and Young 1936), balanced, and what they leave out.

    Args:
        matrix: [out, in].
        rank: Of the factors.
        seed: Of the projection of large matrices.

    Returns:
        A [rank, in], B [out, rank] and |matrix - B A|_F^2.
    """
    if min(matrix.shape) <= WHOLE:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(matrix, q=rank + 16, niter=4)
        vt = v.T
    root = s[:rank].sqrt()
    a, b = pad(root[:, None] * vt[:rank], u[:, :rank] * root, rank)
    left = float(matrix.double().square().sum() - s[:rank].double().square().sum())
    return a, b, max(0.0, left)


def folded(inputs: Inputs, start: Params, change: Change) -> Edited:
    """Return the adapter whose weights come nearest to wanted changes from the base.

    Args:
        inputs: The model and its files.
        start: The adapter as received.
        change: What is wanted of each module; a module it leaves keeps its factors bit for bit.

    Returns:
        The parameters and the share of the wanted change that their rank could not hold.
    """
    params, left, whole = dict(start), 0.0, 0.0
    for module, before in tuned_changes(inputs, start):
        after = change(module, before)
        if after is before:
            continue
        # The adapter of a full checkpoint stands on the tuned weights, not on the base's.
        target = after if inputs.pair.kind == "lora" else after - before
        rank = start[f"{module}.lora_A.weight"].shape[0]
        a, b, lost = truncated(target, rank, inputs.seed)
        params |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        left, whole = left + lost, whole + float(target.double().square().sum())
    return Edited(params, left / whole if whole else 0.0)


def start_of(inputs: Inputs) -> Params:
    """Return copies of the adapter's parameters, as received before a method has moved them."""
    return read_params(inputs.problem.live)
