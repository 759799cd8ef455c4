"""What the restored model does on held-out rows, beside what base and tuned model did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..data.records import groups_of
from ..data.selection import Selection
from ..losses import row_divergences
from .preparation import Answers, Prepared, held_out_losses, tokens_of
from .systems import Examiner
from .verdict import Comparison, Mean, compare, mean_per_token


@dataclass(frozen=True)
class After:
    """What the restored model does on held-out rows.

    Attributes:
        answers: Set -> answers.
        losses: By report key, nats per token.
        drift: KL(tuned || restored) on held-out retain rows, nats per token; None without such rows.
        against: Name -> paired comparison with another system.
        generated_tokens: In its answers.
    """

    answers: Answers
    losses: dict[str, float | None]
    drift: Mean | None
    against: Mapping[str, Comparison]
    generated_tokens: int


def ask_restored(prepared: Prepared, examiner: Examiner, rows: Selection, *, seed: int) -> After:
    """Ask the model in memory what its predecessors were asked, and measure it.

    Args:
        prepared: What the others answered; its model holds the restored parameters.
        examiner: How it is asked.
        rows: Held-out rows.
        seed: Of the bootstrap.

    Returns:
        Its answers, losses and drift, and how it compares.
    """
    model, held_out = prepared.problem.live.model, prepared.held_out
    answers = examiner.ask_sets(model, rows.held_out, "answers of the restored model")
    drift = None
    if held_out.drift:
        sums, tokens = row_divergences(model, held_out.drift, held_out.tuned_log_p)
        drift = mean_per_token(sums.tolist(), tokens.tolist(), seed=seed, clusters=held_out.drift_groups)
    asked = {**prepared.answers, "after": answers}
    harm = {name: [a.verdict.harmful for a in part["harmful"]] for name, part in asked.items()}
    broken = {name: [not a.verdict.coherent for a in (*part["harmful"], *part["benign"])]
              for name, part in asked.items()}
    prompts = groups_of(rows.held_out["harmful"])
    both = (*prompts, *groups_of(rows.held_out["benign"]))
    against = {"harm_after_vs_base": compare(harm["after"], harm["base"], prompts),
               "harm_after_vs_tuned": compare(harm["after"], harm["tuned"], prompts),
               "incoherent_after_vs_base": compare(broken["after"], broken["base"], both)}
    return After(answers, held_out_losses(model, held_out.harmful, held_out.task), drift, against, tokens_of(answers))
