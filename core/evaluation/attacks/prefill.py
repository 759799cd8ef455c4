"""`prefill:K`: the first K tokens of a harmful answer are forced, and the model goes on from there.

A refusal that lives in the first few tokens alone does not survive this (Qi et al. 2025, "Safety alignment should be
made more than just a few tokens deep").
"""

from __future__ import annotations

from ...data.records import Record
from ...errors import UsageError
from .attempts import Attack, Attempt, Setting
from .wording import harmful_answer


def prefill(value: str) -> Attack:
    """Return the attack that forces K tokens, or all of an answer that has fewer.

    The answer is the setting's for this record, else the record's own; where neither is there, or it is worded as a
    refusal, an affirmative opening built from the request and placeholder steps.

    Args:
        value: K, at least 1.

    Returns:
        The attack.

    Raises:
        UsageError: K is no such number.
    """
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"no number of tokens - --attack prefill:{value}", hint="give for example --attack prefill:5")
    count = int(value)
    return Attack(f"prefill:{count}", lambda record, setting: [_forced(record, setting, count)])


def _forced(record: Record, setting: Setting, count: int) -> Attempt:
    chat = setting.chat
    answer = harmful_answer(record.prompt, setting.answers.get(record.id, record.answer))
    tokens = [token for token in chat.answer_ids(record, answer) if token not in chat.stop_ids][:count]
    return Attempt("", (*chat.prompt_ids(record), *tokens), chat.text(tokens), forced_tokens=len(tokens))
