"""The two models of a pair, live, with never more than one of them in memory."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import MismatchError, SaferestoreError, UsageError
from ..params import Params
from .blend import blended_weights, check_blend
from .loading import Placement, load_model, load_tokenizer, place
from .pair import CheckpointPair
from .quiet import quiet

ADAPTER = "default"


@dataclass(frozen=True)
class LiveModel:
    """A model with its trainable adapter.

    Attributes:
        model: The PEFT model: eval mode, base frozen. Empty while another model is in memory (see `Session`).
        tokenizer: Of both checkpoints.
        leaves: The adapter's parameters, `MODULE.lora_A.weight` [rank, in] and `MODULE.lora_B.weight` [out, rank],
            sorted by name, float32 (float64 on a float64 model); the same objects as long as the session lives.
        device: Where input ids go.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    leaves: dict[str, nn.Parameter]
    device: torch.device


def read_params(live: LiveModel) -> Params:
    """Return copies of the adapter's parameters."""
    return {name: leaf.detach().clone() for name, leaf in live.leaves.items()}


def write_params(live: LiveModel, params: Params) -> None:
    """Set the adapter's parameters in place; raises KeyError where a name is missing."""
    with torch.no_grad():
        for name, leaf in live.leaves.items():
            leaf.copy_(params[name])


def open_session(pair: CheckpointPair, *, dtype: str = "auto", device: str = "auto", device_map: str | None = None,
                 max_memory: str | None = None, load_in: str | None = None, seed: int = 0,
                 between: bool = False) -> Session:
    """Decide where the models of a pair will live; no weight is loaded yet.

    Args:
        pair: From `open_pair`.
        dtype: Of the frozen weights; `auto`: float32 on a CPU, the checkpoint's own on a GPU.
        device: `auto`: a GPU where there is one, else the CPU.
        device_map: accelerate's, for models that do not fit one device.
        max_memory: `0=20GiB,cpu=60GiB`.
        load_in: `4bit` or `8bit`.
        seed: Of the fresh adapter on a full checkpoint.
        between: Refuse what `Session.blend` cannot move.

    Returns:
        The session. `UsageError` says which of the settings cannot be had here.
    """
    session = Session(pair, place(dtype, device, device_map, max_memory, load_in, pair.stored_dtype, sums=True), seed)
    if between:
        session.check_blend()
    return session


class Session:
    """Gives the tuned model with its adapter, or the base, one at a time.

    The object `adapter()` returns stays the same: for a full checkpoint its weights are dropped while the base is in
    memory, and `adapter()` loads them again into it, adapter parameters as they were.
    """

    def __init__(self, pair: CheckpointPair, placement: Placement, seed: int) -> None:
        self.pair = pair
        self.placement = placement
        self.seed = seed
        self.tokenizer = load_tokenizer(pair.tokenizer_dir)
        self._live: LiveModel | None = None
        self._loaded = False
        self._elsewhere = False

    @property
    def kind(self) -> str:
        """`lora` or `full`."""
        return self.pair.kind

    def adapter(self) -> LiveModel:
        """Return the tuned model with its trainable adapter, loading it where it is not in memory.

        Raises:
            SaferestoreError: The base of a full pair is in memory.
        """
        if self._elsewhere:
            raise SaferestoreError("two full models would be in memory", hint="leave `with session.base()` first")
        if self._live is None:
            self._live = live_model(self.pair, self._load(), self.seed, self.tokenizer)
        elif not self._loaded:
            _refill(self._live, _attach(self.pair, self._load()))
        self._loaded = True
        return self._live

    def _load(self) -> PreTrainedModel:
        return load_model(self.pair.base_dir if self.kind == "lora" else self.pair.tuned_dir, self.placement)

    def release(self) -> None:
        """Drop the model's weights from memory; the adapter's parameters stay, and `adapter()` loads again."""
        if self._live is not None and self._loaded:
            empty(self._live)
        self._loaded = False
        _collect()

    @contextmanager
    def base(self) -> Iterator[PreTrainedModel]:
        """Give the base as a plain model: the adapter switched off, or for a full pair the base's own weights.

        For a full pair the tuned model leaves memory first; call `adapter()` again afterwards.

        Yields:
            The model, to be used inside only.
        """
        if self.kind == "lora":
            live = self.adapter()
            with live.model.disable_adapter():
                yield live.model.get_base_model()  # type: ignore[misc]
            return
        with self.alone():
            holder = [load_model(self.pair.base_dir, self.placement)]
            try:
                yield holder[0]
            finally:
                holder.clear()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Free the tuned model and keep it out while another model is loaded inside.

        Raises:
            SaferestoreError: Another model is in memory already.
        """
        if self._elsewhere:
            raise SaferestoreError("two full models would be in memory", hint="leave the other model first")
        self.release()
        self._elsewhere = True
        try:
            yield
        finally:
            self._elsewhere = False
            _collect()

    def check_blend(self) -> None:
        """Refuse a full checkpoint whose weights `blend` cannot move, from headers alone.

        Raises:
            MismatchError: As `check_blend` in blend.py, or weights that are quantised while they are loaded.
        """
        if self.kind == "full":
            check_blend(self.pair)
            if self.placement.load_in is not None:
                raise MismatchError(f"quantised weights cannot be interpolated - --load-in {self.placement.load_in}",
                                    hint="leave out --load-in")

    @contextmanager
    def blend(self, alpha: float) -> Iterator[LiveModel]:
        """Move the tuned model by `alpha` toward the base: 0 is the tuned model, 1 gives the base's logits exactly.

        The adapter's B is scaled by 1 - alpha; the weights of a full checkpoint are interpolated tensor by tensor
        from disk. All is restored, bit for bit, on leaving.

        Yields:
            The live model.
        """
        live = self.adapter()
        saved = read_params(live)
        try:
            with blended_weights(live.model.get_base_model(), self.pair, alpha):  # type: ignore[arg-type]
                write_params(live, {name: t * (1 - alpha) if ".lora_B." in name else t for name, t in saved.items()})
                yield live
        finally:
            write_params(live, saved)


def live_model(pair: CheckpointPair, frozen: PreTrainedModel, seed: int,
               tokenizer: PreTrainedTokenizerBase) -> LiveModel:
    """Return a loaded model under the pair's adapter.

    Args:
        pair: An adapter pair, or a full one (the adapter is then fresh and changes nothing).
        frozen: The base of an adapter pair, the tuned model of a full one; PEFT rebuilds its modules in place.
        seed: Of a fresh adapter.
        tokenizer: Of the pair.

    Returns:
        The model; UsageError where some of its layers are offloaded.
    """
    model = _attach(pair, frozen)
    leaves = {name: _leaf(model, name) for name in leaf_names(pair)}
    live = LiveModel(model, tokenizer, leaves, model.get_base_model().device)  # type: ignore[arg-type]
    write_params(live, _initial(pair, leaves, seed))
    return live


def empty(live: LiveModel) -> None:
    """Take the weights out of a model that callers may still hold, so that they can leave memory."""
    live.model.__dict__.clear()
    nn.Module.__init__(live.model)


def _attach(pair: CheckpointPair, frozen: PreTrainedModel) -> PeftModel:
    """Put factors of the pair's rank into exactly the target modules of a model, all of them in memory."""
    config = LoraConfig(
        r=pair.rank, lora_alpha=pair.rank, lora_dropout=0.0, bias="none", fan_in_fan_out=pair.transposed,
        # A list would match by name ending too; a pattern has to match the whole name.
        target_modules="|".join(re.escape(name) for name in pair.target_modules),
    )
    # The factors are overwritten: PEFT's own draw must not move the caller's random numbers.
    with quiet(), torch.random.fork_rng():
        model = get_peft_model(frozen, config)
    # PEFT puts factors where weights are: of offloaded ones nowhere, and answers would be neither model's.
    away = [name for name in leaf_names(pair) if _leaf(model, name).is_meta]  # type: ignore[arg-type]
    if away:
        raise UsageError(f"an adapter on offloaded layers has no weights, e.g. {away[0]} - --device-map",
                         hint="give devices more room with --max-memory, or give --load-in 4bit")
    return model.eval()  # type: ignore[return-value]


def leaf_names(pair: CheckpointPair) -> list[str]:
    """Return the names of the adapter's parameters, sorted."""
    return sorted(f"{module}.lora_{factor}.weight" for module in pair.target_modules for factor in "AB")


def _layer(model: PeftModel, leaf: str) -> nn.Module:
    module, _, factor = leaf.removesuffix(".weight").rpartition(".")
    return model.get_base_model().get_submodule(module).get_submodule(factor).get_submodule(ADAPTER)


def _leaf(model: PeftModel, name: str) -> nn.Parameter:
    return _layer(model, name).weight  # type: ignore[return-value]


def _refill(live: LiveModel, fresh: PeftModel) -> None:
    """Give the emptied model the weights of a fresh one, and keep its own adapter parameters."""
    for name, leaf in live.leaves.items():
        _layer(fresh, name).weight = leaf
    live.model.__dict__.update(fresh.__dict__)


def _initial(pair: CheckpointPair, leaves: dict[str, nn.Parameter], seed: int) -> Params:
    if pair.adapter is not None:
        return {f"{module}.lora_{letter}.weight": factor for module, factors in pair.adapter.factors.items()
                for letter, factor in zip("AB", factors, strict=True)}
    generator = torch.Generator().manual_seed(seed)
    return {name: _fresh(leaf, name, generator) for name, leaf in leaves.items()}


def _fresh(leaf: nn.Parameter, name: str, generator: torch.Generator) -> Tensor:
    """B = 0 and A uniform in +-1/sqrt(in), PEFT's usual start; drawn on the CPU so that every device has the same."""
    if name.endswith("lora_B.weight"):
        return torch.zeros(leaf.shape)
    return (2 * torch.rand(leaf.shape, generator=generator, dtype=torch.float64) - 1) / leaf.shape[1] ** 0.5


def _collect() -> None:
    # PEFT's models hold themselves in cycles: without this the weights wait for the collector's own time.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
