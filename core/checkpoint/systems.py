"""The systems of an evaluation: base, tuned and restored, found and checked, and one at a time in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from ..config import Progress, no_progress
from .adapter import is_adapter
from .facts import CheckpointFacts, FactReader
from .fit import check_vocabularies
from .loading import Placement, load_model, load_tokenizer, read_model_config, stored_dtype
from .pair import CheckpointPair, open_pair
from .recorded_base import find_base
from .reference import RECORDED, locate, parse_reference, shown
from .safetensors_files import read_headers, weight_files
from .session import live_model

Warnings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class System:
    """One model to be evaluated.

    Attributes:
        name: base, tuned, restored, or what the user calls it.
        folder: Of its full weights.
        pair: Its base and adapter, where it is an adapter.
        facts: What results say of it.
        tokenizer_dir: Of its tokenizer.
        stored_dtype: Of its weights.
        warnings: (code, message) pairs.
    """

    name: str
    folder: Path
    pair: CheckpointPair | None
    facts: CheckpointFacts
    tokenizer_dir: Path
    stored_dtype: torch.dtype
    warnings: Warnings


def find_system(name: str, ref: str, base: str | None = None, *, offline: bool = False, force: bool = False,
                read_weights: bool = True, progress: Progress = no_progress) -> System:
    """Find a checkpoint and check that it is whole and fits its base.

    Args:
        name: What results call it.
        ref: Reference of an adapter, of a full checkpoint, or base+adapter.
        base: Reference of the base; where it is None an adapter's own record of it is followed.
        offline: Never ask the network.
        force: Accept an adapter that records another base.
        read_weights: Hash the weights and scan them for NaN.
        progress: Called while downloading and for every weight file.

    Returns:
        The system; `UsageError` and `MismatchError` are those of `open_pair`.
    """
    parsed = parse_reference(ref)
    folder = locate(parsed.base, parsed.revision, offline=offline, progress=progress)
    settings: dict[str, Any] = {"offline": offline, "force": force, "read_weights": read_weights, "progress": progress}
    if parsed.adapter or is_adapter(folder):
        pair = open_pair(base or (_of_base(ref) if parsed.adapter else "-"), ref, **settings)
        return System(name, pair.base_dir, pair, pair.tuned_facts, pair.tokenizer_dir,
                      pair.stored_dtype, pair.warnings)
    warnings = open_pair(base, ref, **{**settings, "read_weights": False}).warnings if base else ()
    return _full(name, shown(parsed.base, parsed.revision), folder, read_weights, progress, warnings)


def _of_base(ref: str) -> str:
    """The base part of BASE+ADAPTER, as written."""
    parsed = parse_reference(ref)
    return parsed.base + (f"@{parsed.revision}" if parsed.revision else "")


def _full(name: str, ref: str, folder: Path, read_weights: bool, progress: Progress, warnings: Warnings) -> System:
    reader = FactReader(read_weights, progress, {folder: load_tokenizer(folder)})
    facts = reader.read(ref, folder, weight_files(folder), read_model_config(folder))
    return System(name, folder, None, facts, folder, stored_dtype(read_headers(folder).values()),
                  tuple(pair for pair in warnings if pair[0] != "W_NOOP"))


def recorded_base(ref: str, *, offline: bool) -> tuple[str, str]:
    """Return (folder, reference to show) of the base that an adapter records.

    Args:
        ref: Of an adapter, or base+adapter.
        offline: Never ask the network.

    Returns:
        Both; `MismatchError` where no base is recorded.
    """
    parsed = parse_reference(ref)
    where = (parsed.adapter, parsed.adapter_revision) if parsed.adapter else (parsed.base, parsed.revision)
    found, folder = find_base(parse_reference(RECORDED), parsed, locate(*where, offline=offline), offline=offline,
                              progress=no_progress)
    return str(folder), shown(found.base, found.revision)


def common_tokenizer(systems: Sequence[System]) -> Path:
    """Return the folder of the tokenizer that all systems are asked with: the last one's.

    An adapter may bring none of its own. Where it stands on the base of an adapter that does, that one is taken: tokens
    or a chat template may be the fine-tuning's own.

    Args:
        systems: At least one. `MismatchError` names tokens that differ.
    """
    last = systems[-1]
    own = [system.tokenizer_dir for system in systems if system.folder == last.folder != system.tokenizer_dir]
    common = (own or [last.tokenizer_dir])[-1]
    for folder in dict.fromkeys(system.tokenizer_dir for system in systems):
        if folder != common:
            check_vocabularies(load_tokenizer(folder).get_vocab(), load_tokenizer(common).get_vocab(),
                               last.facts.vocab_size)
    return common


class Shelf:
    """Holds one model: frozen weights stay while the next system has the same, and are dropped before others come."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._folder: Path | None = None
        self._frozen: PreTrainedModel | None = None

    @contextmanager
    def model(self, system: System) -> Iterator[Any]:
        """Give a system's model, in evaluation mode, to be used inside only.

        Yields:
            The Hugging Face model, or the PEFT model around it.
        """
        frozen = self._take(system.folder)
        if system.pair is None:
            yield frozen
            return
        live = live_model(system.pair, frozen, 0, load_tokenizer(system.tokenizer_dir))
        try:
            yield live.model
        finally:
            live.model.unload()  # type: ignore[operator]  # PEFT puts the plain modules back: the weights serve the next adapter

    def clear(self) -> None:
        """Drop the model from memory."""
        self._folder = self._frozen = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _take(self, folder: Path) -> PreTrainedModel:
        if self._frozen is None or self._folder != folder:
            self.clear()
            self._folder, self._frozen = folder, load_model(folder, self.placement).eval()
        return self._frozen
