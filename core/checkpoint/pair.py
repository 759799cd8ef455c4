"""A base and a tuned checkpoint, opened together and checked to fit, before any weight goes into a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..config import Progress, RestoreConfig, no_progress
from ..errors import MismatchError, UsageError
from .adapter import WEIGHTS_FILE, LoraAdapter, Warnings, is_adapter, merge_command, read_adapter
from .factors import balanced, servable_rank
from .facts import CheckpointFacts, FactReader
from .fit import (
    adaptable_modules,
    check_adapter_fits,
    check_config_fits,
    check_same_tensors,
    check_vocabularies,
)
from .loading import has_tokenizer, load_tokenizer, read_model_config, skeleton, stored_dtype
from .recorded_base import check_recorded_base, find_base
from .reference import Reference, locate, parse_reference, shown
from .safetensors_files import TensorInfo, as_named, read_headers, weight_files


@dataclass(frozen=True)
class CheckpointPair:
    """Two checkpoints that fit.

    Attributes:
        base_ref: As typed; with `-`, the base that the adapter records.
        tuned_ref: As typed.
        base_dir: Local folder.
        tuned_dir: Local folder.
        kind: `lora`: an adapter on the base; `full`: a checkpoint of its own.
        adapter: The adapter, balanced; None for `full`.
        target_modules: Names of the modules that carry trainable factors, sorted.
        saved_targets: The same as `adapter_config.json` writes it: last name parts where they say exactly the same.
        transposed: The adapted modules store their weight as [in, out] (GPT-2's Conv1D).
        rank: Of every module.
        stored_dtype: Of most of the weights under the adapter.
        tokenizer_dir: The folder whose tokenizer serves both: the tuned one's if it has one.
        base_facts: For the report.
        tuned_facts: For the report.
        warnings: (code, message).
    """

    base_ref: Reference
    tuned_ref: Reference
    base_dir: Path
    tuned_dir: Path
    kind: str
    adapter: LoraAdapter | None
    target_modules: tuple[str, ...]
    saved_targets: tuple[str, ...]
    transposed: bool
    rank: int
    stored_dtype: torch.dtype
    tokenizer_dir: Path
    base_facts: CheckpointFacts
    tuned_facts: CheckpointFacts
    warnings: Warnings

    @property
    def carrier_dir(self) -> Path:
        """The folder of the model that a restored adapter sits on: the base, or a full tuned checkpoint."""
        return self.base_dir if self.kind == "lora" else self.tuned_dir


@dataclass(frozen=True)
class _Found:
    """Both references and where they are."""

    base_ref: Reference
    tuned_ref: Reference
    base_dir: Path
    tuned_dir: Path


@dataclass(frozen=True)
class _Targets:
    """The modules of a model that carry factors."""

    names: tuple[str, ...]
    saved: tuple[str, ...]
    transposed: bool


def open_pair(base: str, tuned: str, *, offline: bool = False, rank: int = RestoreConfig.rank,
              force: bool = False, read_weights: bool = True, progress: Progress = no_progress) -> CheckpointPair:
    """Find two checkpoints and check that they fit: names, shapes, vocabulary, the adapter's own base, NaN.

    Args:
        base: Reference of the base, or `-` for the one the adapter records.
        tuned: Reference of an adapter, a full checkpoint, or base+adapter.
        offline: Never ask the network.
        rank: Of the fresh adapter on a full checkpoint, rounded up to 8, 16, 32, 64, ...; an adapter keeps its own.
        force: Accept an adapter that records another base.
        read_weights: Hash the weights and scan them for NaN; without it only headers (and the adapter) are read.
        progress: Called while downloading and for every weight file read.

    Returns:
        The pair. Errors are raised before any weight is in a model.

    Raises:
        UsageError: What is not there; a rank, where an adapter has one. `MismatchError` for what does not fit.
    """
    found = _find(parse_reference(base), parse_reference(tuned), offline, progress)
    if is_adapter(found.tuned_dir):
        if rank != RestoreConfig.rank:
            raise UsageError(f"an adapter keeps its own rank - --rank {rank}", hint="leave out --rank, or give the "
                             "fine-tuned model as a full checkpoint")
        return _lora_pair(found, force, read_weights, progress)
    return _full_pair(found, rank, read_weights, progress)


def _find(base: Reference, tuned: Reference, offline: bool, progress: Progress) -> _Found:
    where = (tuned.adapter, tuned.adapter_revision) if tuned.adapter else (tuned.base, tuned.revision)
    tuned_dir = locate(*where, offline=offline, progress=progress)
    base, base_dir = find_base(base, tuned, tuned_dir, offline=offline, progress=progress)
    if base.adapter or is_adapter(base_dir):
        raise MismatchError(f"the base is an adapter - {base.text}",
                            hint=f"give BASE TUNED in this order; else merge it first: {merge_command(base_dir)}")
    if tuned.adapter and not is_adapter(tuned_dir):
        raise MismatchError(f"no adapter after the + - {tuned.text}", hint="write BASE+ADAPTER")
    if tuned.adapter and locate(tuned.base, tuned.revision, offline=offline, progress=progress) != base_dir:
        raise MismatchError(f"the adapter sits on another base than BASE - {tuned.text}",
                            hint=f"merge it first: {merge_command(tuned_dir)}")
    return _Found(base, tuned, base_dir, tuned_dir)


def _lora_pair(found: _Found, force: bool, read_weights: bool, progress: Progress) -> CheckpointPair:
    adapter, config = read_adapter(found.tuned_dir), read_model_config(found.base_dir)
    warnings = adapter.warnings + check_recorded_base(adapter, found.base_ref, found.base_dir, force=force)
    headers, model = read_headers(found.base_dir), skeleton(config, found.base_dir)
    check_config_fits(model, headers, found.base_dir)
    targets = _targets(model, adapter.factors)
    check_adapter_fits(adapter, model, found.tuned_dir, found.base_dir)
    tokenizers, more = _tokenizers(found, config)
    reader = FactReader(read_weights, progress, tokenizers)
    factors = {module: balanced(a, b) for module, (a, b) in adapter.factors.items()}
    return _pair(
        found, "lora", replace(adapter, factors=factors), targets, adapter.rank, headers, tokenizers, warnings + more,
        reader.read(_shown(found.base_ref), found.base_dir, weight_files(found.base_dir), config),
        reader.read(_shown(found.tuned_ref), found.tuned_dir, (found.tuned_dir / WEIGHTS_FILE,), config),
    )


def _full_pair(found: _Found, rank: int, read_weights: bool, progress: Progress) -> CheckpointPair:
    config, tuned_config = read_model_config(found.base_dir), read_model_config(found.tuned_dir)
    if config.model_type != tuned_config.model_type:
        raise MismatchError(f"models of different types: {config.model_type} and {tuned_config.model_type} - "
                            f"{_shown(found.tuned_ref)}", hint="give the base that it was fine-tuned from")
    headers, tuned_headers = read_headers(found.base_dir), read_headers(found.tuned_dir)
    model = skeleton(tuned_config, found.tuned_dir)
    tie = config.tie_word_embeddings and tuned_config.tie_word_embeddings
    names = as_named(headers, tuned_headers)
    check_same_tensors({names[name]: info for name, info in headers.items()}, tuned_headers, model, tied=tie,
                       base_folder=found.base_dir)
    check_config_fits(model, tuned_headers, found.tuned_dir)
    tokenizers, warnings = _tokenizers(found, tuned_config)
    reader = FactReader(read_weights, progress, tokenizers)
    base_facts = reader.read(_shown(found.base_ref), found.base_dir, weight_files(found.base_dir), config)
    tuned_facts = reader.read(_shown(found.tuned_ref), found.tuned_dir, weight_files(found.tuned_dir), tuned_config)
    names = adaptable_modules(skeleton(tuned_config, found.tuned_dir))
    return _pair(
        found, "full", None, _targets(model, names), servable_rank([rank]), tuned_headers, tokenizers,
        warnings + _same_weights(base_facts, tuned_facts), base_facts, tuned_facts,
    )


def _pair(found: _Found, kind: str, adapter: LoraAdapter | None, targets: _Targets, rank: int,
          headers: dict[str, TensorInfo], tokenizers: dict[Path, PreTrainedTokenizerBase], warnings: Warnings,
          base_facts: CheckpointFacts, tuned_facts: CheckpointFacts) -> CheckpointPair:
    return CheckpointPair(
        base_ref=found.base_ref, tuned_ref=found.tuned_ref, base_dir=found.base_dir, tuned_dir=found.tuned_dir,
        kind=kind, adapter=adapter, target_modules=targets.names, saved_targets=targets.saved,
        transposed=targets.transposed, rank=rank, stored_dtype=stored_dtype(headers.values()),
        tokenizer_dir=list(tokenizers)[-1], base_facts=base_facts, tuned_facts=tuned_facts, warnings=warnings,
    )


def _shown(ref: Reference) -> str:
    base = shown(ref.base, ref.revision)
    return f"{base}+{shown(ref.adapter, ref.adapter_revision)}" if ref.adapter else base


def _tokenizers(found: _Found, config: PreTrainedConfig) -> tuple[dict[Path, PreTrainedTokenizerBase], Warnings]:
    """Return each folder's own tokenizer, the tuned one's last, and warnings."""
    own = [folder for folder in (found.base_dir, found.tuned_dir) if has_tokenizer(folder)] or [found.base_dir]
    tokenizers = {folder: load_tokenizer(folder) for folder in own}
    first, last = tokenizers[own[0]], tokenizers[own[-1]]
    warnings = check_vocabularies(first.get_vocab(), last.get_vocab(), config.get_text_config().vocab_size)
    if first.chat_template != last.chat_template:
        warnings += (("W_CHAT_TEMPLATE", "base and tuned have different chat templates; the tuned one's is used"),)
    return tokenizers, warnings


def _targets(model: PreTrainedModel, names: Collection[str]) -> _Targets:
    wanted, modules = set(names), dict(model.named_modules())
    parts = {name.rpartition(".")[2] for name in wanted}
    # PEFT matches by name ending: last parts say the same where no other module shares one.
    matched = {name for name in modules if name.rpartition(".")[2] in parts}
    return _Targets(
        names=tuple(sorted(wanted)),
        saved=tuple(sorted(parts if matched == wanted else wanted)),
        transposed=any(isinstance(modules.get(name), Conv1D) for name in wanted),
    )


def _same_weights(base: CheckpointFacts, tuned: CheckpointFacts) -> Warnings:
    if not base.weights_sha256 or sorted(base.weights_sha256.values()) != sorted(tuned.weights_sha256.values()):
        return ()
    return (("W_NOOP", "base and tuned have the same weights"),)
