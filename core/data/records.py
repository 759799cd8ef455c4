"""What a row of any data set becomes: a conversation that ends with the user, and perhaps its answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """A prompt with what is known about it.

    Attributes:
        id: The row's own id, else a digest of its conversation: the same row has the same id in any order.
        messages: The conversation, ending with the user's turn.
        answer: The assistant's next turn, None where the file has none.
        category: Kind of harm, subject area or type, None where the file has none.
        group: Rows that belong together (one subject in several wordings); they are never split apart.
        meta: The other columns of the row.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    category: str | None = None
    group: str | None = None
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The last turn, the user's."""
        return self.messages[-1].content


def groups_of(records: Sequence[Record]) -> list[str]:
    """Return the group of each record, its conversation's digest where it has none.

    Rows of one group are no independent evidence. An id is none: several files count their rows from 1.
    """
    return [record.group or conversation_digest(record.messages) for record in records]


@dataclass(frozen=True)
class Skipped:
    """A row that is not used, and why; `by_design` where the row is well formed but left out on purpose."""

    reason: str
    by_design: bool = False


def conversation_digest(messages: tuple[Message, ...]) -> str:
    """Return 12 hexadecimal digits that depend on the roles and texts of a conversation alone."""
    plain = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=True)
    return hashlib.sha256(plain.encode("ascii")).hexdigest()[:12]
