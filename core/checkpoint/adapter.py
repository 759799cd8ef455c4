"""LoRA adapters read from disk: every form folded exactly into plain factors, the others refused by name.

A plain adapter adds `x A^T B^T` to the output of a linear module: A [r, in], B [out, r], no scaling beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from peft import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from ..errors import MismatchError
from .factors import Factors, pad, servable_rank
from .safetensors_files import check_finite, pickled_weights, read_header

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
KEY_PREFIX = "base_model.model."

Warnings = tuple[tuple[str, str], ...]

SETTINGS_WITHOUT_LORA_FORM: dict[str, str] = {
    "use_dora": "DoRA (use_dora) rescales the whole weight",
    "modules_to_save": "modules_to_save replaces whole modules",
    "lora_bias": "lora_bias trains biases",
    "trainable_token_indices": "trainable_token_indices trains embedding rows",
    "target_parameters": "target_parameters adapts parameters that are no linear module",
    "layer_replication": "layer_replication makes another model",
    "use_qalora": "QA-LoRA (use_qalora) pools its inputs",
    "use_bdlora": "BD-LoRA (use_bdlora) is block-diagonal",
    "kasa_config": "KaSA (kasa_config) truncates the base's weights",
    "alora_invocation_tokens": "aLoRA (alora_invocation_tokens) acts on a part of the text only",
    "arrow_config": "Arrow (arrow_config) routes between adapters",
    "monteclora_config": "MonteCLoRA (monteclora_config) samples its weights",
}
"""Settings of a LoRA adapter that, where set, have no exact form B A; why."""

TENSORS_WITHOUT_LORA_FORM: dict[str, str] = {
    "lora_magnitude_vector": "a DoRA magnitude",
    "lora_embedding_": "an adapted embedding",
    ".modules_to_save.": "a replaced module (modules_to_save)",
    ".lora_B.bias": "a trained bias (lora_bias)",
    ".bias": "a trained bias",
    "embed_tokens": "saved embedding rows",
    ".base_layer.": "a saved weight of the base",
}
"""Parts of tensor names that say what a tensor is that no plain adapter has."""

UNMERGEABLE = {"alora_invocation_tokens", "arrow_config", "monteclora_config", "lora_bias", "layer_replication"}
"""Settings that PEFT cannot merge into a base either (lora_bias: where the base has no biases)."""

OFTEN_TIED = {"lora_embedding_", "embed_tokens", ".base_layer."}
"""Parts of tensor names of embeddings and heads: merged where the two are tied, a change of one would move both."""

UNTIE_UNDER_PEFT = ("import torch; b = m.get_base_model(); h = b.get_output_embeddings(); "
                    "h = getattr(h, 'base_layer', h); h.weight = torch.nn.Parameter(h.weight.detach().clone()); "
                    "b.config.get_text_config().tie_word_embeddings = b.config.tie_word_embeddings = False; ")

INITIALISATIONS_KEEPING_THE_BASE = (True, False, None, "true", "false", "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights under which the base's own weights are left alone.

PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract something from the base: their factors are no difference to it.
"""


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter as plain factors.

    Attributes:
        factors: Module name to (A [rank, in], B [out, rank]), float32, scaling folded in: the module's weight moves
            by B A (its transpose where the module stores its weight transposed).
        rank: The one rank of all modules after padding with zeros: 8, 16, 32, 64, ...
        base_name: The base that the adapter records, if any.
        source_ranks: The rank of each module as it was written.
        warnings: (code, message).
        config: `adapter_config.json` as read.
    """

    factors: Factors
    rank: int
    base_name: str | None
    source_ranks: dict[str, int]
    warnings: Warnings
    config: Mapping[str, Any]


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter rather than a full checkpoint."""
    return (folder / CONFIG_FILE).is_file()


def merge_command(folder: Path, *, untied: bool = False) -> str:
    """Return the command that turns an adapter of any kind into a full checkpoint beside it.

    Args:
        folder: The adapter's.
        untied: Give the head weights of its own before.

    Returns:
        A shell command, and what to give then.
    """
    loaded = f"M.from_pretrained('{folder}')"
    merged = f"m = {loaded}; {UNTIE_UNDER_PEFT}m" if untied else loaded
    return (f'python -c "from peft import AutoPeftModelForCausalLM as M; '
            f"{merged}.merge_and_unload().save_pretrained('{folder}-merged')\" and give {folder}-merged")


def read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's settings.

    Raises:
        MismatchError: Settings that are missing, unreadable, or of no plain LoRA form (named).
    """
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = str(config["peft_type"]).upper()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"unreadable adapter settings - {file}", hint="give the folder PEFT saved") from error
    if kind != "LORA":
        tuners = {str(known.value): tuner for known, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}
        merging = hasattr(tuners.get(kind), "merge_and_unload")
        _refuse_form(folder, f"the adapter is {kind}, not LoRA", mergeable=merging)
    for key, reason in SETTINGS_WITHOUT_LORA_FORM.items():
        if config.get(key):
            _refuse_form(folder, reason, mergeable=key not in UNMERGEABLE)
    start = config.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in INITIALISATIONS_KEEPING_THE_BASE:
        _refuse_form(folder, f"init_lora_weights={start} changes the base's own weights")
    return config


def _refuse_form(folder: Path, reason: str, *, mergeable: bool = True, untied: bool = False) -> NoReturn:
    command = merge_command(folder, untied=untied)
    hint = f"merge it first: {command}" if mergeable else "train or convert it as a plain LoRA adapter"
    raise MismatchError(f"no exact LoRA form: {reason} - {folder}", hint=hint)


def read_adapter(folder: Path) -> LoraAdapter:
    """Read a LoRA adapter of any form that PEFT writes as safetensors.

    `rank_pattern`, `alpha_pattern`, `use_rslora` and `lora_alpha` are folded into B; ranks are padded with zeros to
    one rank. Nothing about the base is needed, so nothing about it is checked (see `fit`).

    Args:
        folder: The adapter's folder.

    Returns:
        The adapter. `MismatchError` names a pickled, truncated or unreadable file, NaN, or a form that is not plain
        LoRA.
    """
    config = read_config(folder)
    file = _weights(folder)
    check_finite((file,))
    folded = {module: fold(module, a, b, config, file) for module, (a, b) in sorted(_halves(file, config).items())}
    ranks = {module: a.shape[0] for module, (a, _) in folded.items()}
    rank = servable_rank(ranks.values())
    recorded = config.get("base_model_name_or_path")
    return LoraAdapter(
        factors={module: pad(a, b, rank) for module, (a, b) in folded.items()},
        rank=rank,
        base_name=str(recorded) if recorded else None,
        source_ranks=ranks,
        warnings=_noop_warning(folded, folder),
        config=config,
    )


def _weights(folder: Path) -> Path:
    file = folder / WEIGHTS_FILE
    if file.is_file():
        return file
    pickles = pickled_weights(folder)
    if not pickles:
        raise MismatchError(f"no {WEIGHTS_FILE} - {folder}", hint="give the folder PEFT saved")
    load = f"torch.load('{pickles[0]}', weights_only=True)"
    command = f"python -c \"import torch, safetensors.torch as s; s.save_file({load}, '{file}')\""
    raise MismatchError(f"pickled weights are never opened - {pickles[0]}",
                        hint=f"if you trust the file, convert it: {command}")


def _halves(file: Path, config: Mapping[str, Any]) -> Factors:
    """Pair lora_A with lora_B by module name, refusing every tensor that is neither."""
    names = read_header(file)
    _refuse_other_tensors(names, file, config)
    modules = {name.removeprefix(KEY_PREFIX).rpartition(".lora_")[0] for name in names}
    alone = [m for m in sorted(modules) if not {key(m, "A"), key(m, "B")} <= set(names)]
    if not modules:
        raise MismatchError(f"no LoRA tensors at all - {file}", hint="save or download the adapter again")
    if alone:
        raise MismatchError(f"{len(alone)} modules with only one of lora_A and lora_B: {', '.join(alone[:3])} - {file}",
                            hint="save or download the adapter again")
    tensors = load_file(file)
    return {m: (tensors[key(m, "A")].float(), tensors[key(m, "B")].float()) for m in modules}


def key(module: str, factor: str) -> str:
    """Return the name of factor `A` or `B` of a module in an adapter file."""
    return f"{KEY_PREFIX}{module}.lora_{factor}.weight"


def _refuse_other_tensors(names: Iterable[str], file: Path, config: Mapping[str, Any]) -> None:
    other = [n for n in sorted(names)
             if not (n.startswith(KEY_PREFIX) and n.endswith((".lora_A.weight", ".lora_B.weight")))]
    if not other:
        return
    for part, what in TENSORS_WITHOUT_LORA_FORM.items():
        named = [n for n in other if part in n]
        if named:
            _refuse_form(file.parent, f"{named[0]} is {what} (bias={config.get('bias', 'none')})"
                                if "bias" in part else f"{named[0]} is {what}", untied=part in OFTEN_TIED)
    raise MismatchError(f"keys not of PEFT's form: {', '.join(other[:3])} (expected {KEY_PREFIX}MODULE.lora_A.weight)"
                        f" - {file}", hint="save the adapter with model.save_pretrained of PEFT")


def scaling(module: str, config: Mapping[str, Any]) -> tuple[int, float]:
    """Return the rank that the settings give a module, and the factor that PEFT multiplies B A with."""
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    rank = int(ranks.get(get_pattern_key(list(ranks), module), config.get("r", 8)))
    alpha = float(alphas.get(get_pattern_key(list(alphas), module), config.get("lora_alpha", 8)))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def fold(module: str, a: Tensor, b: Tensor, config: Mapping[str, Any], file: Path) -> tuple[Tensor, Tensor]:
    """Return (A, scaling B) of a module.

    Raises:
        MismatchError: Factors that are no matrices of the rank that the settings give.
    """
    rank, factor = scaling(module, config)
    if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == rank:
        raise MismatchError(f"rank {rank} expected of {module}, found A {tuple(a.shape)} and B {tuple(b.shape)}"
                            f" - {file}", hint="adapter_config.json and the weights belong to different adapters")
    return a, b * factor


def _noop_warning(factors: Factors, folder: Path) -> Warnings:
    if any(bool(b.any()) for _, b in factors.values()):
        return ()
    return (("W_NOOP", f"every lora_B is zero: the adapter changes nothing - {folder.name}"),)
