"""Does a tuned checkpoint fit its base: by exact names and shapes, never by position or substring."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import MismatchError
from .adapter import LoraAdapter, Warnings, merge_command
from .quiet import quiet
from .safetensors_files import TensorInfo

TRAINED_ON = "give the base that the adapter was trained on"
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.bias|\.attn\.masked_bias|\.position_ids)$")
"""Tensors that older versions of transformers saved and that no model reads."""

EXPERT = re.compile(r"\.experts\.\d+\.")
"""A module of one expert, as transformers had them before version 5."""

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|word_embeddings|lm_head|embed_out)\.(weight|bias)$")
HEAD = re.compile(r"^(lm_head|embed_out)\.weight$")
"""Tensors with a row for each token, and the one of them that many models tie to another."""

UNTIE_BASE = ("m.config.get_text_config().tie_word_embeddings = m.config.tie_word_embeddings = False; "
              "m.get_output_embeddings().weight = torch.nn.Parameter(m.get_input_embeddings().weight.detach().clone())")
TUNED_FROM = "give the base that this checkpoint was fine-tuned from"


def three(names: Collection[str]) -> str:
    """Return three of the names, for a message, or `none`."""
    return ", ".join(sorted(names)[:3]) or "none"


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules LoRA can adapt, by name: linear layers and GPT-2's Conv1D, the output head left out.

    Routers of experts that are linear layers themselves give more than one tensor, and are left out, too; so is what
    no text goes through, such as a vision tower, which servers do not adapt.
    """
    head, reads_text = model.get_output_embeddings(), {id(module) for module in model.get_decoder().modules()}
    return {name: module for name, module in model.named_modules() if id(module) in reads_text and module is not head
            and isinstance(module, nn.Linear | Conv1D) and "Router" not in type(module).__name__}


def adaptable_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear modules that PEFT adapts where it is told to, the output head left out.

    It takes names that experts had before they were merged for those of the merged experts, wherever they stand, and
    refuses what Mamba's kernels use without calling it.

    Args:
        model: A skeleton; changed (PEFT's layers are put in).
    """
    wanted = list(linear_modules(model))
    for part in sorted({name.rpartition(".")[2] for name in wanted}):
        names = [re.escape(name) for name in wanted if name.rpartition(".")[2] == part]
        with quiet(), suppress(ValueError):
            inject_adapter_in_model(LoraConfig(target_modules="|".join(names)), model, low_cpu_mem_usage=True)
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return [name for name in wanted if name in adapted]


def check_adapter_fits(adapter: LoraAdapter, model: PreTrainedModel, adapter_folder: Path, base_folder: Path) -> None:
    """Refuse an adapter whose modules are not exactly those PEFT would adapt in this base, or of other shapes.

    Args:
        adapter: As read.
        model: The base's skeleton; changed (PEFT's layers are put in).
        adapter_folder: For messages.
        base_folder: For messages.

    Raises:
        MismatchError: Names on one side only (three of each are given), or a factor of another width.
    """
    where = f"{adapter_folder.name} on {base_folder.name}"
    present = {name for name, _ in model.named_modules()}
    unknown = set(adapter.factors) - present
    if unknown:
        raise MismatchError(f"{len(unknown)} of {len(adapter.factors)} adapted modules are not in the base: "
                            f"{three(unknown)}; the base has: {three(linear_modules(model))} - {where}",
                            hint=f"its experts are merged into one parameter by now: {merge_command(adapter_folder)}"
                            if all(map(EXPERT.search, unknown)) else TRAINED_ON)
    expected = _adapted_modules(adapter_folder, model)
    absent = set(expected) - set(adapter.factors)
    left_over = set(adapter.factors) - set(expected)
    if absent or left_over:
        raise MismatchError(f"the adapter's settings and its weights differ: {len(absent)} modules without weights: "
                            f"{three(absent)}; {len(left_over)} weights without a module: {three(left_over)} - {where}",
                            hint="save or download the adapter again")
    _refuse_other_widths(adapter, expected, where)


def _adapted_modules(adapter_folder: Path, model: PreTrainedModel) -> dict[str, LoraLayer]:
    """Return what PEFT itself adapts in the skeleton under the adapter's own settings."""
    with quiet():
        config = LoraConfig.from_pretrained(str(adapter_folder))
        config.init_lora_weights = False  # type: ignore[attr-defined]
        try:
            inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise MismatchError(f"PEFT finds nothing to adapt in the base: {reason} - {adapter_folder}",
                                hint=TRAINED_ON) from error
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _refuse_other_widths(adapter: LoraAdapter, modules: Mapping[str, LoraLayer], where: str) -> None:
    for name, (a, b) in adapter.factors.items():
        found, wanted = (a.shape[1], b.shape[0]), (modules[name].in_features, modules[name].out_features)
        if found != wanted:
            raise MismatchError(f"{name} has (in, out) = {found} in the adapter and {wanted} in the base - {where}",
                                hint=TRAINED_ON)


def check_same_tensors(base: Mapping[str, TensorInfo], tuned: Mapping[str, TensorInfo], model: PreTrainedModel, *,
                       tied: bool, base_folder: Path) -> None:
    """Refuse two full checkpoints whose tensors differ in name or shape.

    Args:
        base: Headers of the base, by the names of the tuned checkpoint's (`as_named`).
        tuned: Headers of the tuned checkpoint.
        model: The skeleton of both; what it does not read, as layers that predict further tokens, may differ.
        tied: Whether both tie the head to the embedding, so that a file may hold it or not.
        base_folder: For hints.

    Raises:
        MismatchError: Names on one side only (three of each), or a tensor of two shapes. An untied head and a resized
            vocabulary are told apart: the base itself can be made to fit them.
    """
    unread = [BUFFERS, *map(re.compile, model._keys_to_ignore_on_load_unexpected or ())]
    optional = set(model.all_tied_weights_keys) if tied else set()
    shared = set(base) & set(tuned)
    left, right = ({n for n in side if n not in optional and (n in shared or not any(p.search(n) for p in unread))}
                   for side in (base, tuned))
    if right - left and not left - right and all(map(HEAD.search, right - left)):
        raise MismatchError(f"the head was untied: only the tuned checkpoint has {three(right - left)}",
                            hint="save the base untied: " + _base_command(base_folder, "untied", UNTIE_BASE))
    if left != right:
        raise MismatchError(f"tensors differ: only in the base {three(left - right)}; only in the tuned checkpoint "
                            f"{three(right - left)}", hint=TUNED_FROM)
    differing = [name for name in sorted(left) if base[name].shape != tuned[name].shape]
    if differing and all(EMBEDDING.search(n) and base[n].shape[1:] == tuned[n].shape[1:] for n in differing):
        name, rows = differing[0], tuned[differing[0]].shape[0]
        raise MismatchError(f"the vocabulary was resized: {name} has {base[name].shape[0]} rows in the base and {rows} "
                            "in the tuned checkpoint", hint="resize the base by the same number: "
                            + _base_command(base_folder, "resized", f"m.resize_token_embeddings({rows})"))
    for name in differing:
        raise MismatchError(f"{name} has shape {base[name].shape} in the base and {tuned[name].shape} in the tuned "
                            "checkpoint", hint=TUNED_FROM)


def _base_command(folder: Path, kind: str, change: str) -> str:
    """Return the command that saves a changed base beside it, and what to give then."""
    target = f"{folder}-{kind}"
    return (f'python -c "import torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"m = M.from_pretrained('{folder}', dtype='auto'); {change}; m.save_pretrained('{target}'); "
            f"T.from_pretrained('{folder}').save_pretrained('{target}')\" and give {target}")


def check_config_fits(model: PreTrainedModel, headers: Mapping[str, TensorInfo], folder: Path) -> None:
    """Refuse weights of another shape than `config.json` says, by the names that both have.

    Quantised weights are packed in other shapes and are left to the loader.

    Args:
        model: The skeleton of `config.json`.
        headers: Of the weight files.
        folder: For messages.

    Raises:
        MismatchError: A tensor of two shapes.
    """
    packed = getattr(model.config, "quantization_config", None) is not None
    for name, tensor in ({} if packed else model.state_dict()).items():
        if name in headers and headers[name].shape != tuple(tensor.shape):
            raise MismatchError(f"{name} has shape {headers[name].shape}, config.json says {tuple(tensor.shape)}"
                                f" - {folder}", hint="config.json and the weights belong to different checkpoints")


def check_vocabularies(base: Mapping[str, int], tuned: Mapping[str, int], rows: int) -> Warnings:
    """Refuse tokenizers of different vocabularies; added tokens that the embedding has rows for are a warning.

    Args:
        base: Token to id.
        tuned: Token to id.
        rows: Rows of the embedding.

    Returns:
        Warnings.

    Raises:
        MismatchError: A token with another id or on one side only, or an id beyond the embedding.
    """
    if max(tuned.values(), default=0) >= rows:
        raise MismatchError(f"the tokenizer has ids up to {max(tuned.values())}, the model {rows} rows",
                            hint="give the tokenizer that belongs to the model")
    differing = {t for t in base if base[t] != tuned.get(t, -1)}
    if differing:
        raise MismatchError(f"tokenizers of different vocabularies: {len(differing)} tokens of the base have another "
                            f"id or none in the tuned checkpoint, e.g. {three({repr(t) for t in differing})}",
                            hint="give checkpoints of one tokenizer")
    added = set(tuned) - set(base)
    if not added:
        return ()
    return (("W_ADDED_TOKENS", f"the tuned tokenizer has {len(added)} tokens more: {three({repr(t) for t in added})}"),)
