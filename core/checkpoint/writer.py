"""A restored adapter written as PEFT and servers read it, the same bytes every time, and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MismatchError, NumericalError
from ..params import Params, is_finite
from .adapter import CONFIG_FILE, KEY_PREFIX, WEIGHTS_FILE
from .loading import load_model, load_tokenizer
from .pair import CheckpointPair
from .quiet import quiet
from .reference import shown
from .session import Session


def write_adapter(folder: Path, params: Params, pair: CheckpointPair) -> None:
    """Write `adapter_model.safetensors` (float32) and `adapter_config.json` into an existing folder.

    One rank, `lora_alpha` equal to it and no patterns, because servers read one `r` and one `lora_alpha`. Tokenizer and
    chat template are written beside them where they are not those of the model that the adapter sits on, else nothing
    else is; the same parameters give the same bytes.

    Args:
        folder: Where to.
        params: As `read_params` gives them.
        pair: The pair they belong to.

    Raises:
        NumericalError: A parameter that is not finite.
    """
    if not is_finite(params):
        raise NumericalError("the adapter has NaN or infinite values", hint="lower --max-drift, or use --dtype float32")
    tensors = {KEY_PREFIX + name: t.detach().to("cpu", torch.float32).contiguous() for name, t in params.items()}
    # More than one metadata key would be written in random order.
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(_config(pair), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    if pair.tokenizer_dir != pair.carrier_dir:
        tokenizer = load_tokenizer(pair.tokenizer_dir)
        for how_it_was_found in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(how_it_was_found, None)
        with quiet():
            tokenizer.save_pretrained(folder)


def _config(pair: CheckpointPair) -> dict[str, object]:
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base_name(pair),
        "bias": "none",
        "fan_in_fan_out": pair.transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": pair.rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": pair.rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": (pair.base_ref if pair.kind == "lora" else pair.tuned_ref).revision,
        "target_modules": sorted(pair.saved_targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def base_name(pair: CheckpointPair) -> str:
    """Return the name of the model that the written adapter belongs on, never an absolute path.

    A hub id or relative path as typed; for an absolute path what the tuned adapter records, else the folder's name.
    """
    typed = pair.base_ref.base if pair.kind == "lora" else pair.tuned_ref.base
    recorded = pair.adapter.base_name if pair.adapter else None
    if shown(typed) != typed and recorded:
        return shown(recorded)
    return shown(typed)


def reload_error(folder: Path, session: Session, input_ids: Tensor) -> float:
    """Return the largest absolute logit difference between the model in memory and the written adapter on its base.

    The adapter is read by `PeftModel.from_pretrained` onto a newly loaded model, the one in memory being freed
    first: call `session.adapter()` again afterwards.

    Args:
        folder: What `write_adapter` wrote.
        session: Whose live adapter was written.
        input_ids: Token ids [batch, length].

    Raises:
        MismatchError: Keys that PEFT misses or does not know.
    """
    live = session.adapter()
    with torch.no_grad():
        expected = live.model(input_ids=input_ids.to(live.device)).logits.float().cpu()
    pair = session.pair
    with session.alone():
        under = load_model(pair.carrier_dir, session.placement)
        with quiet(), torch.no_grad(), torch.random.fork_rng():
            model = PeftModel.from_pretrained(under, str(folder))
            # Loading again tells what from_pretrained only warns of.
            keys = model.load_adapter(str(folder), adapter_name="default")
            found = model(input_ids=input_ids.to(live.device)).logits.float().cpu()
        _refuse_keys("missing", [k for k in keys.missing_keys if ".lora_" in k], folder)
        _refuse_keys("unexpected", keys.unexpected_keys, folder)
        del model, under
    return float((expected - found).abs().max())


def _refuse_keys(kind: str, names: Sequence[str], folder: Path) -> None:
    if names:
        raise MismatchError(f"{len(names)} {kind} keys on reading the adapter back: {', '.join(sorted(names)[:3])}"
                            f" - {folder}", hint="report this with the versions of peft and transformers")
