"""A base and a tuned checkpoint, opened together and checked to fit, before any weight goes into a model."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..config import Progress, no_progress
from ..errors import MismatchError
from .adapter import (
    WEIGHTS_FILE,
    LoraAdapter,
    Warnings,
    balanced,
    is_adapter,
    merge_command,
    read_adapter,
    read_config,
    servable_rank,
)
from .fit import check_adapter_fits, check_config_fits, check_same_tensors, check_vocabularies, linear_modules
from .loading import TOKENIZER_FILES, has_tokenizer, load_tokenizer, read_model_config, skeleton
from .reference import RECORDED, Reference, locate, parse_reference, shown
from .safetensors_files import TensorInfo, check_finite, read_headers, sha256, weight_files


@dataclass(frozen=True)
class CheckpointFacts:
    """What a report says of one checkpoint.

    Attributes:
        ref: The reference without absolute paths.
        weights_sha256: File name to hash; empty where weights were not read.
        tokenizer_sha256: Of tokenizer.json, else of all tokenizer files; None where it has none of its own.
        chat_template_sha256: Of the template's text, None without one.
        vocab_size: Rows of the embedding.
        model_type: As `config.json` names it.
        bytes: Of all weight files.
    """

    ref: str
    weights_sha256: dict[str, str]
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    vocab_size: int
    model_type: str
    bytes: int


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
        stored_dtype: Of most of the base's weights, as safetensors writes it.
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
    stored_dtype: str
    tokenizer_dir: Path
    base_facts: CheckpointFacts
    tuned_facts: CheckpointFacts
    warnings: Warnings


def open_pair(base: str, tuned: str, *, offline: bool = False, rank: int = 16, force: bool = False,
              read_weights: bool = True, progress: Progress = no_progress) -> CheckpointPair:
    """Find two checkpoints and check that they fit: names, shapes, vocabulary, the adapter's own base, NaN.

    Args:
        base: Reference of the base, or `-` for the one the adapter records.
        tuned: Reference of an adapter, a full checkpoint, or base+adapter.
        offline: Never ask the network.
        rank: Of the fresh adapter on a full checkpoint, rounded up to 8, 16, 32, 64, ...
        force: Accept an adapter that records another base.
        read_weights: Hash the weights and scan them for NaN; without it only headers (and the adapter) are read.
        progress: Called for every weight file read.

    Returns:
        The pair. An error (`UsageError` for what is not there, `MismatchError` for what does not fit) is raised
        before any weight is in a model.
    """
    base_ref, tuned_ref = parse_reference(base), parse_reference(tuned)
    tuned_dir = _tuned_dir(tuned_ref, offline)
    base_ref, base_dir = _find_base(base_ref, tuned_dir, offline)
    _check_references(base_ref, tuned_ref, base_dir, tuned_dir, offline)
    if is_adapter(tuned_dir):
        return _lora_pair(base_ref, tuned_ref, base_dir, tuned_dir, force, read_weights, progress)
    return _full_pair(base_ref, tuned_ref, base_dir, tuned_dir, rank, read_weights, progress)


def _tuned_dir(ref: Reference, offline: bool) -> Path:
    if ref.adapter:
        return locate(ref.adapter, ref.adapter_revision, offline=offline)
    return locate(ref.base, ref.revision, offline=offline)


def _find_base(ref: Reference, tuned_dir: Path, offline: bool) -> tuple[Reference, Path]:
    if ref.base != RECORDED:
        return ref, locate(ref.base, ref.revision, offline=offline)
    recorded = read_config(tuned_dir).get("base_model_name_or_path") if is_adapter(tuned_dir) else None
    if not recorded:
        raise MismatchError(f"names no base - {tuned_dir}", hint="give the base instead of -")
    found = parse_reference(str(recorded))
    beside = next((parent / found.base for parent in (tuned_dir, *tuned_dir.parents)
                   if (parent / found.base).is_dir()), None)
    return found, beside.resolve() if beside else locate(found.base, found.revision, offline=offline)


def _check_references(base_ref: Reference, tuned_ref: Reference, base_dir: Path, tuned_dir: Path,
                      offline: bool) -> None:
    if base_ref.adapter or is_adapter(base_dir):
        raise MismatchError(f"the base is an adapter - {base_ref.text}",
                            hint=f"give BASE TUNED in this order; else merge it first: {merge_command(base_dir)}")
    if not tuned_ref.adapter:
        return
    if not is_adapter(tuned_dir):
        raise MismatchError(f"no adapter after the + - {tuned_ref.text}", hint="write BASE+ADAPTER")
    under = locate(tuned_ref.base, tuned_ref.revision, offline=offline)
    if under != base_dir:
        raise MismatchError(f"the adapter sits on another base than BASE - {tuned_ref.text}",
                            hint=f"merge it first: {merge_command(tuned_dir)}")


def _lora_pair(base_ref: Reference, tuned_ref: Reference, base_dir: Path, tuned_dir: Path, force: bool,
               read_weights: bool, progress: Progress) -> CheckpointPair:
    adapter = read_adapter(tuned_dir)
    config = read_model_config(base_dir)
    warnings = adapter.warnings + _check_recorded_base(adapter, base_ref, base_dir, config, force)
    headers, model = read_headers(base_dir), skeleton(config, base_dir)
    check_config_fits(model, headers, base_dir)
    names, transposed = [name for name, _ in model.named_modules()], _transposed(model, adapter.factors)
    check_adapter_fits(adapter, model, tuned_dir, base_dir)
    tokenizer_dir, more = _tokenizer(base_dir, tuned_dir, config)
    files = _Files(read_weights, progress)
    return CheckpointPair(
        base_ref=base_ref, tuned_ref=tuned_ref, base_dir=base_dir, tuned_dir=tuned_dir, kind="lora",
        adapter=_balance(adapter), target_modules=tuple(sorted(adapter.factors)),
        saved_targets=_short_names(adapter.factors, names), transposed=transposed, rank=adapter.rank,
        stored_dtype=_main_dtype(headers), tokenizer_dir=tokenizer_dir,
        base_facts=files.facts(_shown(base_ref), base_dir, weight_files(base_dir), config),
        tuned_facts=files.facts(_shown(tuned_ref), tuned_dir, (tuned_dir / WEIGHTS_FILE,), config),
        warnings=warnings + more,
    )


def _full_pair(base_ref: Reference, tuned_ref: Reference, base_dir: Path, tuned_dir: Path, rank: int,
               read_weights: bool, progress: Progress) -> CheckpointPair:
    config, tuned_config = read_model_config(base_dir), read_model_config(tuned_dir)
    if config.model_type != tuned_config.model_type:
        raise MismatchError(f"models of different types: {config.model_type} and {tuned_config.model_type} - "
                            f"{_shown(base_ref)}, {_shown(tuned_ref)}", hint="give the base of this checkpoint")
    headers, tuned_headers = read_headers(base_dir), read_headers(tuned_dir)
    model = skeleton(tuned_config, tuned_dir)
    tie = config.tie_word_embeddings and tuned_config.tie_word_embeddings
    check_same_tensors(headers, tuned_headers, tuple(model.all_tied_weights_keys) if tie else ())
    check_config_fits(model, tuned_headers, tuned_dir)
    modules = linear_modules(model)
    tokenizer_dir, warnings = _tokenizer(base_dir, tuned_dir, tuned_config)
    files = _Files(read_weights, progress)
    base_facts = files.facts(_shown(base_ref), base_dir, weight_files(base_dir), config)
    tuned_facts = files.facts(_shown(tuned_ref), tuned_dir, weight_files(tuned_dir), tuned_config)
    return CheckpointPair(
        base_ref=base_ref, tuned_ref=tuned_ref, base_dir=base_dir, tuned_dir=tuned_dir, kind="full", adapter=None,
        target_modules=tuple(sorted(modules)),
        saved_targets=_short_names(modules, [name for name, _ in model.named_modules()]),
        transposed=_transposed(model, modules), rank=servable_rank([rank]), stored_dtype=_main_dtype(tuned_headers),
        tokenizer_dir=tokenizer_dir, base_facts=base_facts, tuned_facts=tuned_facts,
        warnings=warnings + _same_weights(base_facts, tuned_facts),
    )


def _balance(adapter: LoraAdapter) -> LoraAdapter:
    factors = {module: balanced(a, b) for module, (a, b) in adapter.factors.items()}
    return LoraAdapter(factors, adapter.rank, adapter.base_name, adapter.source_ranks, adapter.warnings, adapter.config)


def _check_recorded_base(adapter: LoraAdapter, base_ref: Reference, base_dir: Path, config: PreTrainedConfig,
                         force: bool) -> Warnings:
    if adapter.base_name is None:
        return (("W_BASE_UNKNOWN", "the adapter does not say which base it was trained on"),)
    name = adapter.base_name
    if _names_of(name) & (_names_of(base_ref.base) | _names_of(str(base_dir)) | _names_of(config.name_or_path)):
        return ()
    if force:
        return (("W_OTHER_BASE", f"the adapter records the base {shown(name)}, not {_shown(base_ref)}"),)
    raise MismatchError(f"the adapter was trained on {name}, not on the base given - {base_ref.text}",
                        hint="give that base (or - to take it), or --force if it is the same model under another name")


def _names_of(name: str) -> set[str]:
    """Return what a base may be called by: its whole id or path, its last part, its id in a hub cache's path."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", name)
    names = {name, str(Path(name).expanduser().resolve()), Path(name).name}
    if cached:
        names |= {"/".join(cached.groups()), cached.group(2)}
    return names - {""}


def _shown(ref: Reference) -> str:
    base = shown(ref.base, ref.revision)
    return f"{base}+{shown(ref.adapter, ref.adapter_revision)}" if ref.adapter else base


def _tokenizer(base_dir: Path, tuned_dir: Path, config: PreTrainedConfig) -> tuple[Path, Warnings]:
    """Return the folder whose tokenizer serves both checkpoints, and warnings."""
    rows = config.get_text_config().vocab_size
    owners = [folder for folder in (base_dir, tuned_dir) if has_tokenizer(folder)] or [base_dir]
    tokenizers = [load_tokenizer(folder) for folder in owners]
    first, last = tokenizers[0], tokenizers[-1]
    warnings = check_vocabularies(first.get_vocab(), last.get_vocab(), rows)
    if first.chat_template != last.chat_template:
        warnings += (("W_CHAT_TEMPLATE", "base and tuned have different chat templates; the tuned one's is used"),)
    return owners[-1], warnings


def _transposed(model: PreTrainedModel, modules: object) -> bool:
    return any(isinstance(module, Conv1D) for name, module in model.named_modules() if name in modules)  # type: ignore[operator]


def _short_names(targets: object, names: list[str]) -> tuple[str, ...]:
    """Return last name parts where PEFT would match by them exactly the targets, else the whole names."""
    wanted = set(targets)  # type: ignore[call-overload]
    parts = {name.rpartition(".")[2] for name in wanted}
    matched = {name for name in names if name.rpartition(".")[2] in parts}
    return tuple(sorted(parts if matched == wanted else wanted))


def _main_dtype(headers: dict[str, TensorInfo]) -> str:
    dtypes = [info.dtype for info in headers.values()]
    return max(sorted(set(dtypes)), key=dtypes.count)


def _same_weights(base: CheckpointFacts, tuned: CheckpointFacts) -> Warnings:
    if not base.weights_sha256 or sorted(base.weights_sha256.values()) != sorted(tuned.weights_sha256.values()):
        return ()
    return (("W_NOOP", "base and tuned have the same weights"),)


@dataclass(frozen=True)
class _Files:
    """Reads weight files once, for their hash and for NaN, or not at all."""

    read: bool
    progress: Progress

    def facts(self, ref: str, folder: Path, weights: tuple[Path, ...], config: PreTrainedConfig) -> CheckpointFacts:
        return CheckpointFacts(
            ref=ref,
            weights_sha256=self._hashes(f"checking {ref}", weights) if self.read else {},
            tokenizer_sha256=_tokenizer_hash(folder),
            chat_template_sha256=_template_hash(folder),
            vocab_size=config.get_text_config().vocab_size,
            model_type=config.model_type,
            bytes=sum(file.stat().st_size for file in weights),
        )

    def _hashes(self, stage: str, weights: tuple[Path, ...]) -> dict[str, str]:
        hashes = {}
        for done, file in enumerate(weights, start=1):
            self.progress(stage, done - 1, len(weights))
            check_finite((file,))
            hashes[file.name] = sha256(file)
            self.progress(stage, done, len(weights))
        return hashes


def _tokenizer_hash(folder: Path) -> str | None:
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        return None
    # tokenizer.json says everything; the slow formats are hashed together.
    files = files[:1] if files[0].name == "tokenizer.json" else files
    return sha256(files[0]) if len(files) == 1 else hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def _template_hash(folder: Path) -> str | None:
    if not has_tokenizer(folder):
        return None
    template: PreTrainedTokenizerBase | object = load_tokenizer(folder).chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
