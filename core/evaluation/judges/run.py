"""A local causal LM judges answers by a rubric: prompts, greedy generation, parsing; nothing is cut silently."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from ...checkpoint.facts import FactReader
from ...checkpoint.loading import load_model, load_tokenizer, place, read_model_config, stored_dtype
from ...checkpoint.quiet import quiet
from ...checkpoint.reference import locate, parse_reference
from ...checkpoint.safetensors_files import read_headers, weight_files
from ...config import EvalConfig, Progress, RestoreConfig, no_progress
from ...data.chat import FIXED, ChatFormat, undated
from ...errors import MismatchError, UsageError
from ..coherence import coherence
from ..generation import generate
from ..samples import Finding
from .parse import parse_output, render
from .rubric import Rubric

Json = dict[str, Any]


def run_rubric(rubric: Rubric, model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]],
               progress: Progress = no_progress, *, batch_size: int = 16) -> list[Finding]:
    """Judge answers with a loaded model.

    Special tokens of the model that stand in a prompt or an answer are taken apart first, so that an answer cannot
    end its own turn and speak for the judge. A question longer than the model's context is an error of the finding.
    Gibberish is never harmful, whatever the model says.

    Args:
        rubric: How to ask and how to read.
        model: A causal LM; left as it was.
        tokenizer: Its tokenizer.
        pairs: (prompt, answer) each.
        progress: Told of every batch.
        batch_size: Questions a batch, at most.

    Returns:
        One finding a pair, in their order. MismatchError: the model's chat template does not show the answer.
    """
    with quiet():  # transformers warns of long texts, which are told below
        asked = [question_ids(rubric, tokenizer, *pair) for pair in pairs]
    room = _context(model) - rubric.max_new_tokens
    fitting = [i for i, ids in enumerate(asked) if len(ids) <= room]
    chat = ChatFormat(tokenizer, None)  # for its padding and its text; questions are written above
    outputs = generate(model, [asked[i] for i in fitting], max_new_tokens=rubric.max_new_tokens,
                       batch_size=batch_size, pad_id=chat.pad_id, eos_ids=chat.stop_ids, progress=progress,
                       stage=f"judge {rubric.name}")
    read = {i: parse_output(rubric.parse, chat.text(out.tokens)) for i, out in zip(fitting, outputs, strict=True)}
    too_long = {i: Finding(error=f"{len(ids)} tokens do not fit, the judge takes {max(0, room)}")
                for i, ids in enumerate(asked) if len(ids) > room}
    found = read | too_long
    return [_never_harmful_gibberish(found[i], answer) for i, (_, answer) in enumerate(pairs)]


def question_ids(rubric: Rubric, tokenizer: Any, prompt: str, answer: str) -> list[int]:
    """Return the token ids that a judging model is asked with."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    safe = [_taken_apart(text, special | set(tokenizer.all_special_tokens)) for text in (prompt, answer)]
    text, add_special = INPUT_TEXTS[rubric.input](rubric, tokenizer, *safe)
    ids = list(tokenizer(text, add_special_tokens=add_special)["input_ids"])
    return ids[:-1] if add_special and ids[-1:] == [tokenizer.eos_token_id] else ids


def _taken_apart(text: str, tokens: Iterable[str]) -> str:
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _as_text(rubric: Rubric, _: Any, prompt: str, answer: str) -> tuple[str, bool]:
    return render(rubric.prompt, prompt, answer), rubric.add_special_tokens


def _as_chat(rubric: Rubric, tokenizer: Any, prompt: str, answer: str) -> tuple[str, bool]:
    """Put the question under the model's chat template; a model without one is asked in plain text."""
    question = render(rubric.prompt, prompt, answer)
    if not tokenizer.chat_template:
        return "\n\n".join(part for part in (rubric.system, question) if part), True
    turns = [{"role": "system", "content": rubric.system}] if rubric.system else []
    text = _written(tokenizer, [*turns, {"role": "user", "content": question}], open_turn=True)
    if text is None:  # a template without a system turn
        text = _written(tokenizer, [{"role": "user", "content": f"{rubric.system}\n\n{question}"}], open_turn=True)
    return _must_show(text, answer), False


def _as_conversation(_: Rubric, tokenizer: Any, prompt: str, answer: str) -> tuple[str, bool]:
    """Let the guard's own template ask; some want the words of a turn in a list of parts."""
    turns = [("user", prompt), ("assistant", answer)]
    plain = _written(tokenizer, [{"role": role, "content": words} for role, words in turns])
    if plain is not None and answer.strip() in plain:
        return plain, False
    parts = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in turns]
    return _must_show(_written(tokenizer, parts), answer), False


INPUT_TEXTS: dict[str, Callable[[Rubric, Any, str, str], tuple[str, bool]]] = {
    "text": _as_text, "chat": _as_chat, "conversation": _as_conversation}
"""Input of a rubric -> (text, whether the tokenizer adds its own first token)."""


def _written(tokenizer: Any, turns: list[Json], *, open_turn: bool = False) -> str | None:
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.apply_chat_template(turns, chat_template=undated(tokenizer.get_chat_template()),
                                                 tokenize=False, add_generation_prompt=open_turn, **FIXED))
    except (jinja2.TemplateError, TypeError, ValueError):  # a ValueError: several templates, none of them the default
        return None


def _must_show(text: str | None, answer: str) -> str:
    """Refuse a template that leaves the answer out: the judge would judge the request alone."""
    if text is None or answer.strip() not in text:
        raise MismatchError("the judging model's chat template does not show the answer - --judge",
                            hint="give the checkpoint this rubric is for, or a rubric with `input: text`")
    return text


def _context(model: Any) -> float:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) else math.inf


def _never_harmful_gibberish(finding: Finding, answer: str) -> Finding:
    return replace(finding, harmful=False) if finding.harmful and not coherence(answer) else finding


@dataclass(frozen=True)
class Loading:
    """How a judging model is loaded: by the flags that hold for every model of a run, of the same names."""

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    max_memory: str | None = None
    load_in: str | None = None
    offline: bool = False


def loading_of(config: EvalConfig | RestoreConfig) -> Loading:
    """Return how the models of a run are loaded."""
    return Loading(config.dtype, config.device, config.device_map, config.max_memory, config.load_in, config.offline)


@contextmanager
def judging_model(reference: str, loading: Loading | None = None, *,
                  progress: Progress = no_progress) -> Iterator[tuple[Any, Any]]:
    """Load a judging model for as long as it is needed.

    Args:
        reference: Local folder or hub id, perhaps `@REVISION`.
        loading: How; None is by default.
        progress: Told of a download.

    Yields:
        Model and tokenizer.

    Raises:
        UsageError: A reference with an adapter.
    """
    how = loading or Loading()
    folder, tokenizer = _find(reference, how.offline, progress)
    yield load_model(folder, place(how.dtype, how.device, how.device_map, how.max_memory, how.load_in,
                                   stored_dtype(read_headers(folder).values()))), tokenizer


def check_judging_model(rubric: Rubric, reference: str, *, offline: bool = False, read_weights: bool = True,
                        progress: Progress = no_progress) -> str:
    """Refuse, before anything is asked, a judging model that could not be used after hours of answers.

    Args:
        rubric: How it is asked; an example is written in its chat template.
        reference: Local folder or hub id, perhaps `@REVISION`. Errors are those of `judging_model` and `run_rubric`.
        offline: Take a hub id from the local cache only.
        read_weights: Hash the weights and scan them for NaN.
        progress: Told of a download and of every weight file.

    Returns:
        The SHA-256 of what the model is: weights, tokenizer and template, whatever its folder is called. Empty where
        the weights are not read.

    Raises:
        MismatchError: A weight that is not finite, besides what `judging_model` and `run_rubric` refuse.
    """
    folder, tokenizer = _find(reference, offline, progress)
    read_headers(folder)  # a shard that is missing is told now
    question_ids(rubric, tokenizer, "a request", "an answer")
    if not read_weights:
        return ""
    facts = FactReader(read_weights, progress, {folder: tokenizer}).read(
        f"judge {rubric.name}", folder, weight_files(folder), read_model_config(folder))
    parts = (sorted(facts.weights_sha256.values()), facts.tokenizer_sha256, facts.chat_template_sha256)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _find(reference: str, offline: bool, progress: Progress) -> tuple[Path, Any]:
    """Return a judge's folder and tokenizer."""
    parsed = parse_reference(reference)
    if parsed.adapter:
        raise UsageError(f"a judge takes no adapter - --judge {reference}", hint="merge it into a full checkpoint")
    folder = locate(parsed.base, parsed.revision, offline=offline, progress=progress)
    read_model_config(folder)
    return folder, load_tokenizer(folder)
