"""What a system (base, tuned, restored, a control) answers to the held-out prompts, and its rates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import Progress
from ..data.batches import Batch, Row, make_batches, truncate
from ..data.chat import ChatFormat
from ..data.records import Record, groups_of
from .attacks import Setting
from .generation import Generation, generate
from .intervals import clustered
from .judges import Verdict, judge
from .tasks import task_correct

JUDGE = "refusal-wording"
Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A system's answer to one record."""

    record: Record
    text: str
    generation: Generation
    verdict: Verdict


@dataclass(frozen=True)
class Examiner:
    """How systems are asked: the same for all of them.

    Attributes:
        chat: The conversation format.
        max_new_tokens: Longest answer.
        batch_size: Prompts a batch.
        context: Tokens a row may have.
        progress: Told of every batch.
        known: Answers of a run that was killed, by `asked`.
        keep: Given the entries of every batch, from which `known_answers` makes `known`, before the next one begins.
    """

    chat: ChatFormat
    max_new_tokens: int
    batch_size: int
    context: int
    progress: Progress
    known: Mapping[str, Generation] = field(default_factory=dict)
    keep: Callable[[list[Json]], None] | None = None

    def setting(self, seed: int = 0) -> Setting:
        """Return how attacks ask: in the same format and the same room."""
        return Setting(self.chat, self.context, self.max_new_tokens, seed)

    def ask(self, model: Any, records: Sequence[Record], stage: str) -> tuple[Answer, ...]:
        """Return the model's greedy answers in the order of the records; none for no records."""
        if not records:
            return ()
        prompts = [self.chat.prompt_ids(record)[-(self.context - self.max_new_tokens):] for record in records]
        keys = [asked(stage, prompt, self.max_new_tokens) for prompt in prompts]

        def kept(found: Mapping[int, Generation]) -> None:
            if self.keep is not None:
                self.keep([{"asked": keys[i], "tokens": list(one.tokens), "finished": one.finished, "end": one.end}
                           for i, one in found.items()])

        # Generation keeps no graph, so more prompts fit than rows of a gradient; where not, it steps down by itself.
        answers = generate(model, prompts, max_new_tokens=self.max_new_tokens, batch_size=4 * self.batch_size,
                           pad_id=self.chat.pad_id, eos_ids=self.chat.stop_ids, progress=self.progress, stage=stage,
                           known={i: self.known[key] for i, key in enumerate(keys) if key in self.known}, keep=kept)
        texts = [self.chat.text(answer.tokens) for answer in answers]
        return tuple(Answer(record, text, generation, judge(text))
                     for record, text, generation in zip(records, texts, answers, strict=True))

    def ask_sets(self, model: Any, sets: Mapping[str, Sequence[Record]], stage: str) -> dict[str, tuple[Answer, ...]]:
        """Ask several sets in one run of generation, so that batches hold prompts of one length whatever their set."""
        answers = iter(self.ask(model, [record for records in sets.values() for record in records], stage))
        return {name: tuple(next(answers) for _ in records) for name, records in sets.items()}

    def batches(self, pairs: Sequence[tuple[Record, Sequence[int]]]) -> list[Batch]:
        """Return batches of (record, answer tokens), row i being the i-th pair."""
        rows = [Row(i, tuple(self.chat.prompt_ids(record)), tuple(tokens)) for i, (record, tokens) in enumerate(pairs)]
        return make_batches(truncate(rows, self.context)[0], batch_size=self.batch_size, pad_id=self.chat.pad_id)

    def answer_tokens(self, answer: Answer) -> Sequence[int]:
        """Return the tokens of an answer as a loss sees them, ended where the model ended it.

        The end is that of the chat template; where the model has another of its own (`own_ends`), it is that one, for
        the template's is then what the model never says.
        """
        said = answer.generation
        if not said.finished and said.tokens:
            return said.tokens
        if said.end is not None and said.end not in self.chat.stop_ids:
            return (*said.tokens, said.end)
        return self.chat.answer_ids(answer.record, answer.text)


def asked(stage: str, prompt: Sequence[int], max_new_tokens: int) -> str:
    """Return what a prompt of a stage is known by: SHA-256 of all that decides the answer but the model's weights."""
    return hashlib.sha256(json.dumps([stage, max_new_tokens, *prompt]).encode()).hexdigest()


def known_answers(entries: Sequence[Mapping[str, Any]]) -> dict[str, Generation]:
    """Return the answers among entries that an `Examiner` kept, by `asked`."""
    return {entry["asked"]: Generation(tuple(entry["tokens"]), entry["finished"], entry.get("end"))
            for entry in entries if "asked" in entry}


def rate(hits: Sequence[bool], records: Sequence[Record], judged_by: str) -> Json:
    """Return a rate with its n and Wilson 95% interval, as the report writes it.

    Args:
        hits: At least one hit or miss.
        records: Of each; those of one group are variants of one another.
        judged_by: Who told.
    """
    found = clustered(hits, groups_of(records))
    return {"value": found.value, "n": found.n, "ci_low": found.ci_low, "ci_high": found.ci_high, "judge": judged_by,
            "others": []}


def correct(answers: Sequence[Answer]) -> list[bool]:
    """Tell for each answer whether it is the reference's."""
    return [task_correct(answer.record.answer or "", answer.text) for answer in answers]


def measurement(answers: Mapping[str, Sequence[Answer]], losses: Mapping[str, float | None],
                reasons: Mapping[str, str]) -> Json:
    """Return the rates and losses of one system as the report writes them.

    Args:
        answers: Set name -> answers; an absent or empty set gives null rates.
        losses: Keys `harmful_loss_nats_per_token` and `task_loss_nats_per_token`.
        reasons: Why a value that is null is null, by its key.

    Returns:
        Every key of the report's measurement, and `<key>_reason` beside each null.
    """
    harmful, benign = list(answers.get("harmful", ())), list(answers.get("benign", ()))
    tasks, untouched = list(answers.get("task", ())), list(answers.get("untouched", ()))
    hits = {
        "harmful_rate": ([a.verdict.harmful for a in harmful], harmful, JUDGE),
        "refusal_rate": ([a.verdict.refused for a in harmful], harmful, JUDGE),
        "coherence_rate": ([a.verdict.coherent for a in harmful], harmful, "coherence"),
        "over_refusal_rate": ([a.verdict.refused for a in benign], benign, JUDGE),
        "task_accuracy": (correct(tasks), tasks, "exact-match"),
        "untouched_accuracy": (correct(untouched), untouched, "exact-match"),
    }
    found: Json = {**losses, **{
        name: rate(counted, [a.record for a in asked], judged_by) if counted else None
        for name, (counted, asked, judged_by) in hits.items()}}
    why = {f"{name}_reason": reasons.get(name, "not measured") for name, value in found.items() if value is None}
    return {**found, **why}
