"""What a report says of a checkpoint's files: hashes, sizes, the tokenizer; weights scanned for NaN on the way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..config import Progress
from .loading import TOKENIZER_FILES
from .safetensors_files import check_finite, sha256


@dataclass(frozen=True)
class CheckpointFacts:
    """What a report says of one checkpoint.

    Attributes:
        ref: The reference without absolute paths.
        weights_sha256: File name to hash; empty where weights were not read.
        tokenizer_sha256: Of tokenizer.json, else of all tokenizer files; None where it has none of its own.
        chat_template_sha256: Of the template's text; None where it has none of its own.
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
class FactReader:
    """Reads the facts of checkpoints.

    Attributes:
        read_weights: Hash and scan the weights; without it, their files' sizes only.
        progress: Called for every weight file.
        tokenizers: Folder to its own tokenizer.
    """

    read_weights: bool
    progress: Progress
    tokenizers: dict[Path, PreTrainedTokenizerBase]

    def read(self, ref: str, folder: Path, weights: tuple[Path, ...], config: PreTrainedConfig) -> CheckpointFacts:
        """Return the facts of a checkpoint; MismatchError names a tensor with NaN or infinity."""
        tokenizer = self.tokenizers.get(folder)
        return CheckpointFacts(
            ref=ref,
            weights_sha256=self._hashes(f"checking {ref}", weights) if self.read_weights else {},
            tokenizer_sha256=tokenizer_hash(folder) if tokenizer else None,
            chat_template_sha256=template_hash(tokenizer) if tokenizer else None,
            vocab_size=config.get_text_config().vocab_size,
            model_type=config.model_type,
            bytes=sum(file.stat().st_size for file in weights),
        )

    def _hashes(self, stage: str, weights: tuple[Path, ...]) -> dict[str, str]:
        hashes = {}
        for done, file in enumerate(weights):
            self.progress(stage, done, len(weights))
            state = file.stat()
            hashes[file.name] = _sound(file, state.st_size, state.st_mtime_ns)
        self.progress(stage, len(weights), len(weights))
        return hashes


@cache
def _sound(file: Path, size: int, changed_ns: int) -> str:
    """Return the hash of a file without NaN, read once until it changes: several systems may stand on one base."""
    check_finite((file,))
    return sha256(file)


def tokenizer_hash(folder: Path) -> str:
    """Return the SHA-256 of tokenizer.json, which says everything, else one over all files of the slow formats."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if files[0].name == "tokenizer.json":
        return sha256(files[0])
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the SHA-256 of the chat template's text, None without one."""
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
