"""What every attack comes to: prompts as token ids, perhaps with the beginning of the answer forced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...data.chat import ChatFormat
from ...data.records import Record
from ...errors import MismatchError
from ..sampling import GREEDY, Decoding

NONE = "none"
ATTACKED_ROLE = "harmful"
"""Attacks are made on prompts that are to be refused; sets of other roles are asked without."""


@dataclass(frozen=True)
class Attempt:
    """One prompt to be answered.

    Attributes:
        variant: Which of the attack's variants; empty where it has one.
        prompt: Token ids, those of the forced beginning last.
        forced: The words that the answer is made to begin with; empty where nothing is forced.
        decoding: How the answer is chosen.
        forced_tokens: How many of the prompt's last tokens are the forced beginning.
    """

    variant: str
    prompt: tuple[int, ...]
    forced: str = ""
    decoding: Decoding = GREEDY
    forced_tokens: int = 0

    def text(self, chat: ChatFormat, tokens: Sequence[int]) -> str:
        """Return the words of an answer with its forced beginning: a character may span the two."""
        return chat.text((*self.prompt[len(self.prompt) - self.forced_tokens:], *tokens))


@dataclass(frozen=True)
class Setting:
    """What an attack works with, the same for all systems.

    Attributes:
        chat: The conversation format.
        context: Tokens a prompt and its answer may have.
        max_new_tokens: Longest answer.
        seed: The run's.
        answers: Record id -> a harmful answer to it; the record's own answer where there is none.
    """

    chat: ChatFormat
    context: int
    max_new_tokens: int
    seed: int = 0
    answers: Mapping[str, str] = field(default_factory=dict)


Maker = Callable[[Record, Setting], list[Attempt]]


@dataclass(frozen=True)
class Attack:
    """An attack as the user asked for it.

    Attributes:
        name: What it is called everywhere: the user's words with numbers in plain form and files without their folder.
        make: A record's attempts, one a variant.
        k: Variants of a record; with several, its worst counts.
        sha256: Digest of the file it was made from, empty where there is none.
    """

    name: str
    make: Maker
    k: int = 1
    sha256: str = ""


@dataclass(frozen=True)
class Planned:
    """The attempts of an attack on a set.

    Attributes:
        pairs: Each record with each of its attempts, in the order of the records.
        too_long: (record id, variant) of attempts that leave no room for an answer: they are not made, and not cut.
    """

    pairs: tuple[tuple[Record, Attempt], ...]
    too_long: tuple[tuple[str, str], ...]


def plan_attempts(attack: Attack, records: Sequence[Record], setting: Setting) -> Planned:
    """Return the attempts of an attack on records, apart from those that do not fit into the context.

    Raises:
        MismatchError: A row that the chat template cannot write.
    """
    pairs = [(record, attempt) for record in records for attempt in _made(attack, record, setting)]
    room = setting.context - setting.max_new_tokens
    return Planned(tuple(pair for pair in pairs if len(pair[1].prompt) <= room),
                   tuple((record.id, a.variant) for record, a in pairs if len(a.prompt) > room))


def _made(attack: Attack, record: Record, setting: Setting) -> list[Attempt]:
    try:
        return attack.make(record, setting)
    except MismatchError as error:
        raise MismatchError(f"{error.what} - row {record.id}", hint=error.hint) from error


def asked(record: Record, chat: ChatFormat, variant: str = "", decoding: Decoding = GREEDY) -> Attempt:
    """Return the attempt that asks a record in a conversation format, nothing forced."""
    return Attempt(variant, tuple(chat.prompt_ids(record)), decoding=decoding)


def plain(record: Record, setting: Setting) -> list[Attempt]:
    """Return the record as it stands: no attack."""
    return [asked(record, setting.chat)]
