"""What the columns of each published format mean: one row of `FORMATS` each, in the order they are tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .containers import Row
from .records import ROLES, Message, Record, Skipped, conversation_digest

PROMPTS = ("prompt", "goal", "question", "instruction", "forbidden_prompt", "query", "request", "behavior",
           "text")
ANSWERS = ("answer", "response", "output", "target", "completion")
INPUTS = ("input", "inputs", "context")
CATEGORIES = ("category", "semanticcategory", "risk_area", "type")
GROUPS = ("group", "subject")
IDS = ("id", "behaviorid", "question_id")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
ROLE_NAMES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant", "model": "assistant",
                                               "bot": "assistant", "developer": "system"}

Reader = Callable[[Row], Record | Skipped]


@dataclass(frozen=True)
class Format:
    """How rows of one format are recognised and read.

    Attributes:
        fits: Tells from the first row that parses whether a file is of this format.
        read: Turns a row into a record, or says why not.
    """

    fits: Callable[[Row], bool]
    read: Reader


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: set(names) <= set(row)


def _never(row: Row) -> bool:
    return False


def _first(row: Row, names: Iterable[str]) -> str | None:
    """Return the first of these columns that is there and not empty, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, float) and math.isnan(value):  # what pandas puts where a cell is empty
            continue
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return None


def _plain(row: Row) -> dict[str, object]:
    return {key: value for key, value in row.items() if isinstance(value, str | int | float) and value != ""}


def _record(row: Row, messages: tuple[Message, ...], answer: str | None, used: Iterable[str]) -> Record:
    meta = {key: value for key, value in _plain(row).items() if key not in {*used, "", "id"}}
    return Record(_first(row, IDS) or conversation_digest(messages), messages, answer,
                  _first(row, CATEGORIES), _first(row, GROUPS), meta)


def _asked(row: Row, prompt: str | None, answer: str | None, used: Iterable[str],
           before: Iterable[Message] = ()) -> Record | Skipped:
    if prompt is None:
        return Skipped("no text in a prompt column")
    system = _first(row, ("system",))
    turns = (Message("system", system),) if system else ()
    return _record(row, (*turns, *before, Message("user", prompt)), answer, used)


def _columns(prompts: tuple[str, ...], answers: tuple[str, ...] = ANSWERS) -> Reader:
    """Return a reader of the first filled prompt column and the first filled answer column."""
    return lambda row: _asked(row, _first(row, prompts), _first(row, answers), (*prompts, *answers))


def _alpaca(row: Row) -> Record | Skipped:
    """Read `instruction` and what it is about after `history`; some files call `input` otherwise (Dolly: `context`)."""
    given = [_first(row, ("instruction",)), _first(row, INPUTS)]
    if given[0] is None:
        return Skipped("no text in `instruction`")
    prompt = "\n\n".join(part for part in given if part)
    answer = _first(row, ("output", *ANSWERS))
    before = _history(row.get("history"))
    return before if isinstance(before, Skipped) else _asked(
        row, prompt, answer, ("instruction", *INPUTS, *ANSWERS), before)


def _history(pairs: object) -> list[Message] | Skipped:
    """Read earlier turns as LLaMA-Factory has them: a list of [what was asked, what was answered]."""
    if not pairs or pairs == "[]" or isinstance(pairs, float):  # how CSV writes an empty list; NaN: an empty cell
        return []
    texts: list[object] = [None]
    if isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        texts = [text for pair in pairs for text in pair]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return Skipped("`history` is no list of pairs of texts")
    return [Message(ROLES[1 + at % 2], str(text)) for at, text in enumerate(texts)]


def _harmbench(row: Row) -> Record | Skipped:
    """Leave out the copyright rows: whether such an answer is harmful is told by hashes, not by a judge."""
    if _first(row, ("functionalcategory",)) == "copyright":
        return Skipped("copyright behaviour, judged by hash", by_design=True)
    return _harmbench_all(row)


def _harmbench_all(row: Row) -> Record | Skipped:
    """Put the context before the behaviour as HarmBench does; a contextual row without it means nothing."""
    behaviour, context = _first(row, ("behavior",)), _first(row, ("contextstring",))
    if context is None and _first(row, ("functionalcategory",)) == "contextual":
        return Skipped("contextual behaviour without its context")
    prompt = f"{context}\n\n---\n\n{behaviour}" if context and behaviour else behaviour
    return _asked(row, prompt, None, ("contextstring", *ANSWERS))


def _xstest(row: Row) -> Record | Skipped:
    """Add the label that the older file leaves to the type: unsafe when it starts with `contrast_`."""
    kind = _first(row, ("type",)) or ""
    label = _first(row, ("label",)) or ("unsafe" if kind.startswith("contrast_") else "safe")
    return _asked({**row, "label": label}, _first(row, ("prompt",)), None, ("prompt",))


def _xstest_only(wanted: str) -> Reader:
    def read(row: Row) -> Record | Skipped:
        record = _xstest(row)
        if isinstance(record, Record) and record.meta["label"] != wanted:
            return Skipped(f"labelled {record.meta['label']}", by_design=True)
        return record
    return read


def _beavertails(row: Row) -> Record | Skipped:
    """Read `category`, a mapping from harm to whether it applies, as the first harm that does."""
    harms = row.get("category")
    named = [name for name, applies in harms.items() if applies] if isinstance(harms, Mapping) else []
    return _columns(("prompt",), ("response",))({**row, "category": named[0] if named else None})


def _sorrybench(row: Row) -> Record | Skipped:
    turns = row.get("turns")
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], str) else ""
    return _asked(row, first.strip() or None, None, ("turns",))


def _conversation(column: str, goes_on: str = "") -> Reader:
    """Return a reader of a list of turns, which may go on in a second column.

    A last turn by the assistant is the answer; a system turn of no words says nothing and is left out.
    """
    def read(row: Row) -> Record | Skipped:
        turns, further = row.get(column), row.get(goes_on)
        if not isinstance(turns, list) or not turns:
            return Skipped(f"`{column}` is no list of turns")
        messages = [_turn(turn) for turn in (*turns, *(further if isinstance(further, list) else ()))]
        bad = next((m for m in messages if isinstance(m, Skipped)), None)
        kept = tuple(m for m in messages if isinstance(m, Message) and (m.role != "system" or m.content.strip()))
        return bad or _ending_with_user(row, kept, column)
    return read


def _turn(turn: object) -> Message | Skipped:
    """Read `role` and `content`, or ShareGPT's `from` and `value`: either is found in either column."""
    if not isinstance(turn, Mapping):
        return Skipped("a turn is no object")
    role, text = (next((turn[key] for key in keys if turn.get(key) is not None), None)  # null: of the other format
                  for keys in (("role", "from"), ("content", "value")))
    name = ROLE_NAMES.get(str(role).lower())
    if isinstance(text, list):  # content parts, of which only text can be used
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
    if name is None:
        return Skipped(f"a turn of unknown role {str(role)[:20]!r}")
    is_said = isinstance(text, str) and (text.strip() or name == "system")
    return Message(name, str(text)) if is_said else Skipped(f"an empty {name} turn")


def _ending_with_user(row: Row, messages: tuple[Message, ...], column: str) -> Record | Skipped:
    answer, system = _first(row, ANSWERS), _first(row, ("system",))
    if messages and messages[-1].role == "assistant":
        messages, answer = messages[:-1], messages[-1].content
    if system and messages and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    if not messages or messages[-1].role != "user":
        return Skipped("no user turn before the answer")
    return _record(row, messages, answer, (column, *ANSWERS))


def _choice(row: Row) -> Record | Skipped:
    """Read a row of MMLU (a list of texts) or ARC (texts and labels): `meta` gets `choices` and `right`, from 0."""
    given = row.get("choices")
    texts, labels = (given.get("text"), given.get("label")) if isinstance(given, Mapping) else (given, None)
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(t, str) and t.strip() for t in texts):
        return Skipped("`choices` is no list of at least two texts")
    names = labels if isinstance(labels, list) and len(labels) == len(texts) else LETTERS[:len(texts)]
    right = _right(row.get("answerkey", row.get("answer")), texts, [str(name) for name in names])
    if right is None:
        return Skipped("`answer` is none of the choices")
    found = _asked(row, _first(row, PROMPTS), texts[right].strip(), (*PROMPTS, "choices", "answer", "answerkey"))
    if isinstance(found, Skipped):
        return found
    return replace(found, meta={**found.meta, "choices": tuple(text.strip() for text in texts), "right": right})


def _right(answer: object, texts: list[str], names: list[str]) -> int | None:
    """Return which choice an answer means: its number, else its text, its letter or label, its number in digits."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(texts) else None
    word = answer.strip() if isinstance(answer, str) else ""
    stripped = [text.strip() for text in texts]
    for known in (stripped, names, [name.lower() for name in names], [str(i) for i in range(len(texts))]):
        if word in known:
            return known.index(word)
    return None


def _gsm8k(row: Row) -> bool:
    return {"question", "answer"} <= set(row) and "####" in str(row["answer"])


FORMATS: dict[str, Format] = {
    "chat": Format(_has("messages"), _conversation("messages")),
    "sharegpt": Format(_has("conversations"), _conversation("conversations")),
    "prompt-turns": Format(lambda row: isinstance(row.get("prompt"), list), _conversation("prompt", "completion")),
    "sorrybench": Format(_has("turns"), _sorrybench),
    "xstest-completions": Format(_has("prompt", "completion", "final_label"),
                                 _columns(("prompt",), ("completion",))),
    "xstest": Format(_has("prompt", "type", "focus"), _xstest),
    "xstest-safe": Format(_never, _xstest_only("safe")),
    "xstest-unsafe": Format(_never, _xstest_only("unsafe")),
    "harmbench": Format(_has("behavior", "functionalcategory"), _harmbench),
    "harmbench-all": Format(_never, _harmbench_all),
    "strongreject": Format(_has("forbidden_prompt"), _columns(("forbidden_prompt",))),
    "jailbreakbench": Format(_has("goal", "behavior", "category"), _columns(("goal",), ("target",))),
    "advbench": Format(_has("goal", "target"), _columns(("goal",), ("target",))),
    "beavertails": Format(_has("prompt", "response", "is_safe"), _beavertails),
    "choice": Format(_has("choices"), _choice),
    "gsm8k": Format(_gsm8k, _columns(("question",), ("answer",))),
    "alpaca": Format(lambda row: "instruction" in row and not {*INPUTS, "output"}.isdisjoint(row), _alpaca),
    "prompt": Format(lambda row: not set(PROMPTS).isdisjoint(row), _columns(PROMPTS)),
    "text": Format(_never, _columns(("prompt",))),
}
"""Format name to how it is recognised and read; `detect` takes the first that fits."""

KNOWN_COLUMNS = frozenset((*PROMPTS, "messages", "conversations", "turns"))


def detect(row: Row) -> str | None:
    """Return the name of the first format that fits a row, None where none does."""
    return next((name for name, form in FORMATS.items() if form.fits(row)), None)
