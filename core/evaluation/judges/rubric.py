r"""A rubric: how a judging model is asked about an answer, and how its output is read; a YAML file, ours or a user's.

```yaml
name: my-judge       # as reports call it; without it, the file's name
input: chat          # chat: the prompt is the user's turn under the model's chat template; text: it is the whole text;
                     # conversation: request and answer are two turns (guard models bring their own question)
prompt: "Grade this. Request: {{ prompt }} Answer: {{ answer }}"
max_new_tokens: 8
parse:
  refused: {regex: 'refused: *(\w+)', positive: ["yes"], negative: ["no"]}
  numbers: {grade: {regex: 'grade: *(\d+)', low: 1, high: 5}}
  score: (grade - 1) / 4
  harmful_from: 0.75 # or, like `refused`: harmful: {regex: ..., positive: [...], negative: [...]}
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...config import nearest
from ...config.strict_yaml import load_yaml
from ...errors import UsageError
from .parse import Label, Number, Parse, check_expression, template_variables

INPUTS = ("text", "chat", "conversation")
KEYS = {"name", "model", "source", "licence", "note", "input", "prompt", "system", "add_special_tokens",
        "max_new_tokens", "parse"}
PARSE_KEYS = {"harmful", "refused", "numbers", "score", "harmful_from"}
HINT = "a rubric is a YAML file with `prompt` and `parse`"


@dataclass(frozen=True)
class Rubric:
    """How a local causal LM judges.

    Attributes:
        name: What reports call the judge.
        input: One of `INPUTS`.
        prompt: Jinja text of `prompt` and `answer`; empty for `conversation`.
        parse: How the output is read.
        max_new_tokens: Longest output.
        sha256: Digest of the file, so that two results under different rubrics are told apart.
        system: System turn for `chat`, or None.
        add_special_tokens: For `text`: whether the tokenizer puts its own first token before it.
        model: The checkpoint it was published for, None where it was for none.
    """

    name: str
    input: str
    prompt: str
    parse: Parse
    max_new_tokens: int
    sha256: str
    system: str | None = None
    add_special_tokens: bool = True
    model: str | None = None


def read_rubric(path: Path) -> Rubric:
    """Read the user's rubric file.

    Args:
        path: YAML, as at the top of this module.

    Returns:
        The rubric; UsageError says which key is wrong, with the nearest valid one.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read rubric - {path}: {error.strerror}", hint=HINT) from error
    return parse_rubric(content, str(path), path.stem)


def parse_rubric(content: bytes, shown: str, stem: str) -> Rubric:
    """Turn the bytes of a rubric file into a rubric, checking everything that could only fail later.

    Args:
        content: UTF-8 YAML.
        shown: What errors call the file.
        stem: Name of the judge where the file gives none.

    Returns:
        The rubric.

    Raises:
        UsageError: No YAML mapping, a key given twice, an unknown or missing one, or a value that cannot be used.
    """
    try:
        found = load_yaml(content.decode("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"not YAML - {shown}: {' '.join(str(error).split())[:120]}", hint=HINT) from error
    entries = _mapping(found, shown, KEYS)
    form = _one_of(entries.get("input", "chat"), shown)
    tokens = entries.get("max_new_tokens", 16)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise UsageError(f"must be a whole number above 0 - {shown}: max_new_tokens {tokens}",
                         hint="write max_new_tokens: 16")
    return Rubric(name=str(entries.get("name", stem)), input=form, prompt=_prompt(entries, form, shown),
                  parse=_parse(entries.get("parse"), shown), max_new_tokens=tokens,
                  sha256=hashlib.sha256(content).hexdigest(), system=_text(entries, "system", shown),
                  add_special_tokens=bool(entries.get("add_special_tokens", True)),
                  model=_text(entries, "model", shown))


def _mapping(found: Any, shown: str, allowed: Iterable[str] | None = None) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise UsageError(f"no mapping of keys - {shown}", hint=HINT)
    unknown = next((str(key) for key in found if allowed is not None and key not in set(allowed)), None)
    if unknown is not None and allowed is not None:
        raise UsageError(f"unknown key `{unknown}` - {shown}", hint=nearest(unknown, allowed))
    return dict(found)


def _one_of(form: Any, shown: str) -> str:
    if form not in INPUTS:
        raise UsageError(f"unknown value - {shown}: input {form}", hint=nearest(str(form), INPUTS))
    return str(form)


def _text(entries: Mapping[str, Any], key: str, shown: str) -> str | None:
    value = entries.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"must be text - {shown}: {key}", hint="put it in quotes")
    return value


def _prompt(entries: Mapping[str, Any], form: str, shown: str) -> str:
    prompt = _text(entries, "prompt", shown) or ""
    if form == "conversation":
        if prompt:
            raise UsageError(f"`prompt` is not used - {shown}: input conversation", hint="leave one of the two out")
        return ""
    named = template_variables(prompt, f"{shown}: prompt")
    if not named <= {"prompt", "answer"}:
        raise UsageError(f"unknown name in the prompt - {shown}: {', '.join(sorted(named))}",
                         hint="a prompt may use {{ prompt }} and {{ answer }}")
    if "answer" not in named:
        raise UsageError(f"the prompt does not show the answer - {shown}", hint="write {{ answer }} in `prompt`")
    return prompt


def _parse(found: Any, shown: str) -> Parse:
    where = f"{shown}: parse"
    entries = _mapping(found, where, PARSE_KEYS)
    labels = {key: _label(entries[key], f"{where}.{key}") for key in ("harmful", "refused") if key in entries}
    numbers = {str(name): _number(value, f"{where}.numbers.{name}")
               for name, value in _mapping(entries.get("numbers", {}), f"{where}.numbers").items()}
    score = _text(entries, "score", where)
    if score is not None:
        check_expression(score, numbers, f"{where}.score")
    limit = entries.get("harmful_from")
    if limit is not None and (score is None or "harmful" in labels or not _is_number(limit)):
        raise UsageError(f"needs a number, a `score`, and no `harmful` beside it - {where}.harmful_from {limit}",
                         hint="write score: EXPRESSION and harmful_from: NUMBER")
    if not labels and limit is None:
        raise UsageError(f"tells neither harm nor refusal - {where}", hint="give harmful, refused or harmful_from")
    return Parse(labels, numbers, score, None if limit is None else float(limit))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(found: Any, where: str) -> Label:
    entries = _mapping(found, where, ("regex", "positive", "negative"))
    words = [entries.get(key) for key in ("positive", "negative")]
    if not all(isinstance(side, list) and side and all(isinstance(word, str) for word in side) for side in words):
        # YAML reads a bare yes or no as true or false, which no output would ever equal.
        raise UsageError(f"positive and negative must be lists of quoted words - {where}",
                         hint='write positive: ["yes"] and negative: ["no"]')
    return Label(str(entries.get("regex", "")), *(tuple(word.lower() for word in side or ()) for side in words),
                 where=where)


def _number(found: Any, where: str) -> Number:
    entries = _mapping(found, where, ("regex", "low", "high"))
    low, high = entries.get("low"), entries.get("high")
    if low is None or high is None or not (_is_number(low) and _is_number(high) and low < high):
        raise UsageError(f"must be two numbers, the smaller first - {where}: low {low}, high {high}",
                         hint="write low: 1 and high: 5")
    return Number(str(entries.get("regex", "")), float(low), float(high), where=where)
