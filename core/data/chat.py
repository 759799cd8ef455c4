"""Records to token ids through the checkpoint's chat template; prompt and answer join as in generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerBase

from ..errors import MismatchError, UsageError
from .records import Message, Record

# Some templates print today's date or open a reasoning block; the same prompt must be the same tokens
# tomorrow, and an answer must start within the tokens generated. Templates without these names ignore them.
FIXED = {"date_string": "01 Jan 2026", "enable_thinking": False}
NEW_YEAR = {"%Y": "2026", "%y": "26", "%B": "January", "%b": "Jan", "%m": "01", "%-m": "1", "%d": "01", "%-d": "1",
            "%A": "Thursday", "%a": "Thu", "%H": "00", "%I": "12", "%p": "AM", "%M": "00", "%S": "00"}
CLOCK = ("{% macro strftime_now(form) %}{{ form" + "".join(f" | replace('{code}', '{text}')"
                                                           for code, text in NEW_YEAR.items()) + " }}{% endmacro %}\n")
"""The same date for templates that ask the clock: transformers passes words and numbers on, but no function."""
TEMPLATE_HINT = "give --chat-template none to prompt without one, or --chat-template FILE"


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer writes conversations. Make it with `chat_format`.

    Attributes:
        tokenizer: The checkpoint's tokenizer; nothing here changes it.
        template: Jinja text, or None: every turn on lines of its own, no role names.
        system: System prompt put before conversations that have none, or None.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    system: str | None = None

    def prompt_ids(self, record: Record) -> list[int]:
        """Return the token ids after which the model is to answer.

        A conversation that the template cannot write (it may know no system turn) is a MismatchError.
        """
        ids = _ids(self.tokenizer, self._text(record.messages), special=self.template is None)
        return ids[:-1] if self.template is None and ids[-1:] == _eos(self.tokenizer) else ids

    def answer_ids(self, record: Record, text: str) -> list[int]:
        """Return the token ids of an answer after `prompt_ids(record)`, with the token that ends the turn.

        They are what the full rendering adds to the prompt's. Where the template rewrites the prompt once an
        answer follows, they are the tokens of the text and the end-of-sequence token.
        """
        if self.template is None:
            return _ids(self.tokenizer, text) + _eos(self.tokenizer)
        before = self._text(record.messages)
        whole = self._text((*record.messages, Message("assistant", text)), open_turn=False)
        if not whole.startswith(before):
            return _ids(self.tokenizer, text) + _eos(self.tokenizer)
        head, full = _ids(self.tokenizer, before), _ids(self.tokenizer, whole)
        joined = full[:len(head)] == head  # else a token spans the seam, which generation can never produce
        answer = full[len(head):] if joined else _ids(self.tokenizer, whole[len(before):])
        return _up_to_end_of_turn(answer, self.tokenizer, self._special_ids)

    def shows(self, word: str) -> bool:
        """Tell whether a prompt holds what a user says: any text is a Jinja template, most say the same every time."""
        return word in self._text([Message("user", word)])

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, sorted: the end-of-sequence token and the special token that ends a turn."""
        ids = set(_eos(self.tokenizer))
        if self.template is not None:
            last = self.answer_ids(Record("", (Message("user", "Hello"),)), "Hello")[-1:]
            ids.update(token for token in last if token in self._special_ids)
        return tuple(sorted(ids))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """Ids of special tokens, also of those without a role's name, such as what ends a turn of Gemma 3.

        The token of unknown words is none, where it ends no text: it stands for words.
        """
        added, ends = self.tokenizer.added_tokens_decoder, _eos(self.tokenizer)
        ids = (*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special))
        return frozenset(i for i in ids if i != self.tokenizer.unk_token_id or i in ends)

    @property
    def pad_id(self) -> int:
        """The padding token, else the end-of-sequence token, else 0: it is always masked out."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(token) for token in known if isinstance(token, int)), 0)

    def text(self, ids: Sequence[int]) -> str:
        """Return the words of generated token ids, without special tokens and surrounding blanks."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _text(self, messages: Sequence[Message], *, open_turn: bool = True) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        if self.template is None:
            return "".join(turn["content"] + "\n" for turn in turns)
        try:
            return str(self.tokenizer.apply_chat_template(turns, chat_template=undated(self.template), tokenize=False,
                                                          add_generation_prompt=open_turn, **FIXED))
        except (jinja2.TemplateError, TypeError) as error:
            raise MismatchError(f"chat template cannot write this conversation - {error}",
                                hint="leave out --system-prompt, or " + TEMPLATE_HINT) from error


def undated(template: str) -> str:
    """Return a template that writes the same date every day (`FIXED` has the names that it is given beside)."""
    return CLOCK + template if "strftime_now" in template else template


def chat_format(tokenizer: PreTrainedTokenizerBase, template: str = "auto",
                system: str | None = None) -> ChatFormat:
    """Choose how conversations are written.

    Args:
        tokenizer: The checkpoint's tokenizer.
        template: `auto` (the tokenizer's own), `none`, or a file of Jinja text (UsageError if unreadable).
        system: System prompt for conversations that have none.

    Returns:
        The format.

    Raises:
        MismatchError: `auto`, and the tokenizer has no template, or several and none is the default; or a template
            that leaves out what a user says.
    """
    if template == "none":
        return ChatFormat(tokenizer, None, system)
    if template == "auto" and not tokenizer.chat_template:
        raise MismatchError("no chat template - the checkpoint's tokenizer has none", hint=TEMPLATE_HINT)
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"default": None}
    if template == "auto" and "default" not in several:
        raise MismatchError(f"several chat templates and no default - {', '.join(several)}", hint=TEMPLATE_HINT)
    text = str(tokenizer.get_chat_template()) if template == "auto" else _read(Path(template))
    chat = ChatFormat(tokenizer, text, system)
    if not chat.shows("q7x"):
        raise MismatchError(f"a chat template that leaves out what the user says - --chat-template {template}",
                            hint=TEMPLATE_HINT)
    return chat


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read chat template - {path}: {type(error).__name__}",
                         hint="give --chat-template auto|none|FILE") from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Return token ids; a rendered template brings its own special tokens, so none are added to it."""
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])  # type: ignore[arg-type]


def _eos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []


def _up_to_end_of_turn(ids: list[int], tokenizer: PreTrainedTokenizerBase, special: frozenset[int]) -> list[int]:
    """Cut after the first special token behind the words: a line end or an end of text after it no model produces."""
    words = len(ids)
    while words and (ids[words - 1] in special or not str(tokenizer.decode(ids[words - 1:words])).strip()):
        words -= 1
    end = next((i for i in range(words, len(ids)) if ids[i] in special), None)
    return ids + _eos(tokenizer) if end is None else ids[:end + 1]
