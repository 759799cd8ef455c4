"""A judging model's output to a finding: well-formed, or an error with its own count, never "safe"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import UsageError
from ..samples import Finding

LONGEST_ERROR = 80
"""Characters of an error; what came is escaped, because it is a model's output."""

FLAGS = re.IGNORECASE | re.MULTILINE
_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


class Unreadable(Exception):
    """An output that is not of the rubric's format; becomes a finding's error."""


@dataclass(frozen=True)
class Label:
    """A word to look for.

    Attributes:
        regex: Its one group is the word; case does not matter, `^` and `$` are those of lines.
        positive: Words that mean yes, in lower case.
        negative: Words that mean no, in lower case.
        where: What errors call it.
    """

    regex: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    where: str = field(default="label", compare=False)

    def __post_init__(self) -> None:
        """Refuse what could only fail on an output.

        Raises:
            UsageError: A regex that cannot be used, or a word that means both.
        """
        _check_regex(self.regex, self.where)
        if set(self.positive) & set(self.negative):
            raise UsageError(f"a word is both positive and negative - {self.where}", hint="leave it out of one list")


@dataclass(frozen=True)
class Number:
    """A number to look for: `regex` with one group, the value within `low` and `high`."""

    regex: str
    low: float
    high: float
    where: str = field(default="number", compare=False)

    def __post_init__(self) -> None:
        """Refuse a regex that cannot be used."""
        _check_regex(self.regex, self.where)


@dataclass(frozen=True)
class Parse:
    """How an output is read.

    Attributes:
        labels: `harmful` and `refused`, each where the output tells it.
        numbers: Name -> number.
        score: Expression of the numbers, None where there is no score.
        harmful_from: Harmful where the score is at least this, None where the output says it in a word.
    """

    labels: Mapping[str, Label]
    numbers: Mapping[str, Number]
    score: str | None = None
    harmful_from: float | None = None


def parse_output(parse: Parse, output: str) -> Finding:
    """Read one output.

    Every label and number must be there; where one is there twice, it must say the same.

    Args:
        parse: How.
        output: What the judging model wrote.

    Returns:
        The finding, with an error of at most `LONGEST_ERROR` characters where the output is not of the format.
    """
    try:
        labels = {name: _word(name, label, output) for name, label in parse.labels.items()}
        numbers = {name: _value(name, number, output) for name, number in parse.numbers.items()}
        score = None if parse.score is None else _score(parse.score, numbers)
    except Unreadable as error:
        return Finding(error=shown(f"{error}: {output}" if output.strip() else "nothing came"))
    harmful = labels.get("harmful")
    if score is not None and parse.harmful_from is not None:
        harmful = score >= parse.harmful_from
    return Finding(harmful=harmful, refused=labels.get("refused"), score=score)


def shown(text: str, longest: int = LONGEST_ERROR) -> str:
    """Return hostile text on one line without control characters, at most `longest` characters."""
    escaped = text[:longest].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= longest and len(text) <= longest else escaped[:longest - 3] + "..."


def render(template: str, prompt: str, answer: str) -> str:
    """Return a rubric's prompt about an answer; what the answer holds is never read as a template."""
    return _JINJA.from_string(template).render(prompt=prompt, answer=answer)


def template_variables(template: str, where: str) -> set[str]:
    """Return the names a template uses.

    Raises:
        UsageError: It is no Jinja template.
    """
    try:
        return meta.find_undeclared_variables(_JINJA.parse(template))
    except jinja2.TemplateError as error:
        raise UsageError(f"no Jinja template - {where}: {error}", hint="mend the braces, or leave them out") from error


def check_expression(expression: str, names: Iterable[str], where: str) -> None:
    """Refuse a score that cannot be computed from the numbers.

    Raises:
        UsageError: No expression, or one of a name that is no number.
    """
    try:
        named = meta.find_undeclared_variables(_JINJA.parse("{{ " + expression + " }}"))
    except jinja2.TemplateError as error:
        raise UsageError(f"no expression - {where}: {expression}", hint="write it of the names in `numbers`") from error
    if not named or not named <= set(names):
        raise UsageError(f"needs names of `numbers` - {where}: {expression}",
                         hint=f"numbers: {', '.join(names) or 'none given'}")


def _check_regex(regex: str, where: str) -> None:
    try:
        groups = re.compile(regex, FLAGS).groups
    except re.error as error:
        raise UsageError(f"no regular expression - {where}: {error}", hint="mend `regex`") from error
    if groups != 1:
        raise UsageError(f"a regex needs one group, this has {groups} - {where}",
                         hint="put what is wanted in (...), and (?:...) around the rest")


def _only(name: str, regex: str, output: str) -> str:
    """Return what the group matched; said twice, it must be said alike."""
    found = {match.strip().lower() for match in re.findall(regex, output, FLAGS)}
    if len(found) != 1:
        raise Unreadable(f"{name} said in two ways" if found else f"no {name}")
    return found.pop()


def _word(name: str, label: Label, output: str) -> bool:
    word = _only(name, label.regex, output)
    if word not in label.positive + label.negative:
        raise Unreadable(f"{name} is neither yes nor no")
    return word in label.positive


def _value(name: str, number: Number, output: str) -> float:
    try:
        value = float(_only(name, number.regex, output))
    except ValueError as error:
        raise Unreadable(f"{name} is no number") from error
    if not number.low <= value <= number.high:
        raise Unreadable(f"{name} out of range")
    return value


def _score(expression: str, numbers: Mapping[str, float]) -> float:
    try:
        score = _JINJA.compile_expression(expression)(**numbers)
    except Exception as error:  # Jinja compiles it to Python, which can fail in any way
        raise Unreadable("no score") from error
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise Unreadable("no score")
    return float(score)
