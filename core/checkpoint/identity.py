"""What a checkpoint is, from its configuration and headers alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MismatchError
from .adapter import CONFIG_FILE, KEY_PREFIX, WEIGHTS_FILE, read_adapter
from .loading import has_tokenizer, load_tokenizer, read_model_config
from .runtimes import AdapterFacts
from .safetensors_files import read_header, read_headers


@dataclass(frozen=True)
class AdapterForm:
    """What an adapter is.

    Attributes:
        form: LoRA, rsLoRA, DoRA, ... as its settings say.
        rank: As its settings say.
        alpha: `lora_alpha`.
        parameters: Scalars in its weight file.
        modules: How many modules it adapts, by the last part of their names.
        fault: Why it has no exact form B A, None where it has.
        facts: For the servers' rules.
    """

    form: str
    rank: int
    alpha: float
    parameters: int
    modules: Mapping[str, int]
    fault: str | None
    facts: AdapterFacts


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is.

    Attributes:
        architecture: The model class.
        model_type: As `config.json` names it.
        parameters: Scalars in the weight files, adapters left out.
        layers: Decoder layers.
        hidden_size: Width.
        vocab_size: Rows of the embedding.
        context_tokens: Longest input, None where the configuration does not say.
        dtypes: Stored dtype -> scalars.
        chat_template: Whether its tokenizer has one.
        adapter: None for a full checkpoint.
    """

    architecture: str
    model_type: str
    parameters: int
    layers: int
    hidden_size: int
    vocab_size: int
    context_tokens: int | None
    dtypes: Mapping[str, int]
    chat_template: bool
    adapter: AdapterForm | None


def identify(folder: Path, adapter: Path | None) -> Identity:
    """Say what a checkpoint is.

    Args:
        folder: Of the full weights.
        adapter: Of the adapter on top of them.

    Returns:
        Its identity. `MismatchError` names a file that cannot be read.
    """
    config, headers = read_model_config(folder), read_headers(folder)
    text, dtypes = config.get_text_config(), Counter[str]()
    for info in headers.values():
        dtypes[info.dtype] += math.prod(info.shape)
    own = adapter if adapter is not None and has_tokenizer(adapter) else folder
    return Identity(
        architecture=(config.architectures or [config.model_type])[0], model_type=config.model_type,
        parameters=sum(dtypes.values()), layers=text.num_hidden_layers, hidden_size=text.hidden_size,
        vocab_size=text.vocab_size, context_tokens=getattr(text, "max_position_embeddings", None),
        dtypes=dict(sorted(dtypes.items())), chat_template=bool(load_tokenizer(own).chat_template),
        adapter=adapter_form(adapter) if adapter is not None else None)


def adapter_form(folder: Path) -> AdapterForm:
    """Say what an adapter is, also where it has no exact form B A.

    Args:
        folder: The adapter's.

    Returns:
        Its form. `MismatchError` names settings or weights that cannot be read.
    """
    fault, config = _fault(folder), _settings(folder)
    header = read_header(folder / WEIGHTS_FILE)
    halves = {name: info for name, info in header.items() if name.endswith(".lora_A.weight")}
    ranks = [info.shape[0] for info in halves.values()]
    parts = Counter(name.removeprefix(KEY_PREFIX).removesuffix(".lora_A.weight").rpartition(".")[2] for name in halves)
    return AdapterForm(
        _form(config), int(config.get("r", 0)), float(config.get("lora_alpha", 0)),
        sum(math.prod(info.shape) for info in header.values()), dict(sorted(parts.items())), fault,
        AdapterFacts(config, tuple(header), tuple(ranks)))


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise MismatchError(f"unreadable adapter settings - {folder / CONFIG_FILE}",
                            hint="give the folder PEFT saved") from error
    return found


def _form(config: Mapping[str, Any]) -> str:
    kind = str(config.get("peft_type", "unknown"))
    if kind.upper() != "LORA":
        return kind
    return "DoRA" if config.get("use_dora") else "rsLoRA" if config.get("use_rslora") else "LoRA"


def _fault(folder: Path) -> str | None:
    """Why an adapter has no exact form B A; other faults are the reader's to raise."""
    try:
        read_adapter(folder)
    except MismatchError as error:
        if not error.what.startswith("no exact LoRA form: "):
            raise
        return error.what.removeprefix("no exact LoRA form: ").rpartition(" - ")[0]
    return None
