"""What the rows of other tools' answers mean: one row of `GENERATION_FORMATS` each, in the order they are tried.

| format | told by | prompt | answer |
| --- | --- | --- | --- |
| garak | `entry_type` | last user turn of `prompt` | each of `outputs` |
| lm-eval | `resps` or `filtered_resps` | the document's prompt, else what was sent | each generation, unfiltered |
| xstest-completions | `completion`, `final_label` | `prompt` | `completion` |
| plain | a prompt column and an answer column | that column | that column, which may be empty |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .containers import Row
from .formats import ANSWERS, GROUPS, IDS, PROMPTS
from .records import Message, Skipped, conversation_digest

LABELS = ("label", "final_label")
SYSTEMS = ("model", "model_name")
SETS = ("set", "dataset", "task")
CONTRAST = "contrast_"
"""XSTest's types of prompts that are to be refused begin so; the others are their harmless look-alikes."""


@dataclass(frozen=True)
class Generated:
    """One answer that some system gave.

    Attributes:
        prompt: What was asked.
        answer: As written, perhaps empty.
        system: Who answered, by a column, the report or the file's name.
        set: Where the prompt is from, by a column, the report or the file's name.
        id: The same for the same prompt whatever the system.
        label: What a person said of the answer, as written; None where nobody did.
        recorded: What another judge said of it, as written; None where there is no such column.
        line: Where it stands in the file.
        role: `benign` where the file says that the prompt is a harmless look-alike.
        group: Answers that are no independent evidence: to prompts of one subject, or several to one prompt.
    """

    prompt: str
    answer: str
    system: str
    set: str
    id: str
    label: str | None
    recorded: str | None
    line: int
    role: str = "harmful"
    group: str | None = None


@dataclass(frozen=True)
class Source:
    """What the file itself says: its path, and the model that a garak report names."""

    path: Path
    model: str | None = None


Found = list[Generated] | Skipped
Reader = Callable[[int, Row, Source], Found]


def _text(row: Row, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns that holds text, a number or true or false."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int | float) and str(value).strip():
            return str(value).strip()
    return None


def _answer(row: Row) -> str | None:
    """Return the first answer column that is there, as it is: an empty answer is an answer, too."""
    return next((value for name in ANSWERS if isinstance(value := row.get(name), str)), None)


def _plain(line: int, row: Row, source: Source) -> Found:
    prompt, answer = _text(row, PROMPTS), _answer(row)
    if prompt is None or answer is None:
        return Skipped("no text in a prompt column" if prompt is None else "no text in an answer column")
    return [Generated(prompt, answer, _text(row, SYSTEMS) or source.path.stem, _text(row, SETS) or source.path.stem,
                      _text(row, IDS) or _digest(prompt), _text(row, LABELS), None, line, group=_text(row, GROUPS))]


def _digest(prompt: str) -> str:
    return conversation_digest((Message("user", prompt),))


def _xstest(line: int, row: Row, source: Source) -> Found:
    """Read XSTest completions; the recorded judge is the one other column that ends in `_label`."""
    found = _plain(line, row, source)
    if isinstance(found, Skipped):
        return found
    named = re.search(r"completions_(.+?)(?:_[a-z0-9]*eval)?$", source.path.stem)
    system = _text(row, SYSTEMS) or (named.group(1) if named else source.path.stem)
    recorded = next((str(row[key]) for key in row if key.endswith("_label") and key != "final_label"), None)
    kind = _text(row, ("type",)) or CONTRAST
    role = "harmful" if kind.startswith(CONTRAST) else "benign"
    return [replace(found[0], system=system, set=_text(row, SETS) or f"xstest-{role}",
                    label=_text(row, ("final_label",)), recorded=recorded, role=role)]


def _garak(line: int, row: Row, source: Source) -> Found:
    if row.get("entry_type") != "attempt":
        return Skipped(f"an entry `{str(row.get('entry_type'))[:20]}`", by_design=True)
    prompt, outputs = _last_turn(row.get("prompt")), row.get("outputs")
    if prompt is None or not isinstance(outputs, list) or not outputs:
        return Skipped("an attempt without text in `prompt`" if prompt is None else "an attempt without outputs")
    answers = [_message(output) for output in outputs]
    if None in answers:
        return Skipped("an output without text")
    probe, sequence = str(row.get("probe_classname", "garak")), row.get("seq")
    name = f"{probe}/{sequence}" if isinstance(sequence, int) and sequence >= 0 else _digest(prompt)
    return _several(prompt, [text for text in answers if text is not None], line, source.model or source.path.stem,
                    probe, name)


def _several(prompt: str, answers: list[str], line: int, system: str, part: str, name: str) -> list[Generated]:
    """Number the answers of one prompt where there are several."""
    if len(answers) == 1:
        return [Generated(prompt, answers[0], system, part, name, None, None, line)]
    return [Generated(prompt, text, system, part, f"{name}/{i}", None, None, line, group=name)
            for i, text in enumerate(answers)]


def _message(value: object) -> str | None:
    """Return the words of a message: text, or an object that holds it."""
    found = value.get("text") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else None


def _last_turn(value: object) -> str | None:
    """Return the last user turn of a conversation (an object with `turns`, or a list), or a message's words."""
    turns = value.get("turns") if isinstance(value, Mapping) and "turns" in value else value
    if isinstance(turns, list):
        users = [turn for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "user"]
        return _message(users[-1].get("content")) if users else None
    return _message(turns)


def _lm_eval(line: int, row: Row, source: Source) -> Found:
    """Read what was generated, before lm-eval's filters cut it down to, say, a number."""
    answers = list(_generations_of(row))
    if not answers:
        return Skipped("no generated text (a likelihood is no answer)")
    document = row.get("doc")
    asked = {str(key).lower(): cell for key, cell in document.items()} if isinstance(document, Mapping) else {}
    prompt = _text(asked, PROMPTS) or _sent(row.get("arguments"))
    if prompt is None:
        return Skipped("no prompt in `doc` or `arguments`")
    named = re.match(r"samples_(.+?)(?:_\d{4}-\d\d-\d\d.*)?$", source.path.stem)
    folder = source.path.absolute().parent.name
    system = _text(row, SYSTEMS) or (folder.replace("__", "/", 1) if "__" in folder else source.path.stem)
    number = _text(row, ("doc_id",)) or _digest(prompt)
    return _several(prompt, answers, line, system, named.group(1) if named else source.path.stem, number)


def _generations_of(row: Row) -> Iterator[str]:
    """Yield the texts; likelihoods are written as texts, too, and told by what was sent."""
    found = row.get("resps", row.get("filtered_resps"))
    flat = found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list) else found
    if not isinstance(flat, list) or not all(isinstance(text, str) for text in flat):
        return
    settings = _argument(row.get("arguments"), 1)
    rolling = settings is None and all(re.fullmatch(r"-?[0-9.e+-]+|-?inf|nan", text) for text in flat)
    if not isinstance(settings, str) and not rolling:
        yield from flat


def _sent(arguments: object) -> str | None:
    """Return what lm-eval sent: the first argument of the first request, of a chat its last user turn."""
    first = _argument(arguments, 0)
    text = first[0] if isinstance(first, list) and first else first
    if not isinstance(text, str):
        return None
    try:
        chat = json.loads(text)
    except ValueError:
        return text
    return _last_turn(chat) or text if isinstance(chat, list) else text


def _argument(arguments: object, number: int) -> object:
    """Return one argument of the first request, `{gen_args_0: {arg_0: ...}}` or `[[...]]` in older versions."""
    requests = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    request = requests[0] if isinstance(requests, list) and requests else None
    if isinstance(request, Mapping):
        return request.get(f"arg_{number}")
    return request[number] if isinstance(request, list) and len(request) > number else None


@dataclass(frozen=True)
class GenerationFormat:
    """How rows of one format are recognised (by the first that parses) and read."""

    fits: Callable[[Row], bool]
    read: Reader


GENERATION_FORMATS: dict[str, GenerationFormat] = {
    "garak": GenerationFormat(lambda row: "entry_type" in row, _garak),
    "lm-eval": GenerationFormat(lambda row: not {"resps", "filtered_resps"}.isdisjoint(row), _lm_eval),
    "xstest-completions": GenerationFormat(lambda row: {"prompt", "completion", "final_label"} <= set(row), _xstest),
    "plain": GenerationFormat(lambda row: not (set(PROMPTS).isdisjoint(row) or set(ANSWERS).isdisjoint(row)), _plain),
}
"""Format name to how it is recognised and read; the first that fits is taken."""
