"""From two models to the losses of a restoration: who says what, what is left out, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint.session import Session, read_params, write_params
from saferestore.core.data.batches import Batch
from saferestore.core.data.records import Record
from saferestore.core.data.selection import Selection
from saferestore.core.errors import MismatchError, NumericalError, UsageError
from saferestore.core.evaluation.gate.rules import Rule
from saferestore.core.evaluation.preparation import REFUSAL_TOKENS, Prepared, prepare, tokens_of
from saferestore.core.evaluation.restore_gate import attacks_of
from saferestore.core.evaluation.room import with_room
from saferestore.core.params import scale
from talk import COMPLIANCE, CONTEXT, REFUSAL, Say, examiner, open_tiny, record, refuses, save_pair, script, selection

ALIGNED, BROKEN = refuses("bad"), refuses()
HARMFUL = [record(f"bad thing {i}") for i in range(5)]
RETAIN = [record("bread"), record("add 1 and 1", "2"), record("milk")]
ROWS: dict[str, Any] = {"harmful": HARMFUL, "retain": RETAIN, "held_harmful": [record("bad a"), record("bad b")],
                        "benign": [record("kill a process"), record("shoot a film")], "task": [record("2 and 2", "4")]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def session(saved: tuple[Path, Path]) -> Session:
    return open_tiny(*saved)[1]


def selected(**changes: Any) -> Selection:
    return selection(**(ROWS | changes))


def prepared(session: Session, rows: Selection, *, base: Say = ALIGNED, tuned: Say = BROKEN, objective: str = "anchor",
             on_disk: bool = False, **asked: Any) -> Prepared:
    with script(tuned=tuned, base=base):
        return prepare(session, examiner(session, **asked), rows, objective=objective, on_disk=on_disk)


def answers_in(session: Session, batches: Sequence[Batch]) -> list[str]:
    """The answers that a loss runs over, in the order of their row numbers."""
    rows = {int(number): batch.labels[i][batch.labels[i] != -100].tolist()
            for batch in batches for i, number in enumerate(batch.rows)}
    return [str(session.tokenizer.decode(rows[i], skip_special_tokens=True)) for i in sorted(rows)]


def loss_of(model: Any, session: Session, pairs: Sequence[tuple[Record, str]]) -> float:
    """Mean -log p of answer tokens, one row and one token at a time."""
    chat, found = examiner(session).chat, []
    for row, answer in pairs:
        prompt, tokens = chat.prompt_ids(row), chat.answer_ids(row, answer)
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=torch.tensor([prompt + tokens])).logits[0].double(), -1)
        found += [-float(log_p[len(prompt) + i - 1, token]) for i, token in enumerate(tokens)]
    return sum(found) / len(found)


def test_the_base_gives_safe_answers_and_the_tuned_model_the_others(session: Session) -> None:
    made = prepared(session, selected(), objective="anchor+ascent")
    anchor, ascent = made.problem.safety
    assert answers_in(session, anchor.batches) == [REFUSAL] * 5
    assert answers_in(session, ascent.batches) == [COMPLIANCE] * 5
    assert answers_in(session, made.problem.drift.batches) == [COMPLIANCE, "2", COMPLIANCE]
    assert answers_in(session, made.held_out.drift) == ["4", COMPLIANCE, COMPLIANCE]
    assert answers_in(session, made.held_out.task) == ["4"]
    assert made.warnings == ()
    assert made.counts == {"safe_rows": 5, "harmful_rows": 5, "retain_rows": 3, "retain_rows_base_refuses": 0,
                           "drift_rows_held_out": 3, "held_out_prompts_tuned_refuses": 0}


def test_losses_of_both_models_are_those_of_their_own_weights(session: Session) -> None:
    made = prepared(session, selected(), objective="anchor+ascent")
    pairs = {"harmful_loss_nats_per_token": [(row, COMPLIANCE) for row in ROWS["held_harmful"]],
             "task_loss_nats_per_token": [(ROWS["task"][0], "4")]}
    for key, rows in pairs.items():
        assert made.losses["tuned"][key] == pytest.approx(loss_of(session.adapter().model, session, rows), rel=1e-5)
        with session.base() as model:
            assert made.losses["base"][key] == pytest.approx(loss_of(model, session, rows), rel=1e-5)
    with session.base() as model:
        target = loss_of(model, session, [(row, REFUSAL) for row in HARMFUL])
        by_row = sum(loss_of(model, session, [(row, COMPLIANCE)]) for row in HARMFUL) / 5
    assert made.problem.safety[0].target == pytest.approx(target, rel=1e-5)
    own = sum(loss_of(session.adapter().model, session, [(row, COMPLIANCE)]) for row in HARMFUL) / 5
    # all rows on one side of the base, so that the hinge is the difference of the means
    assert made.problem.safety[1].value(session.adapter().model) == pytest.approx(max(0.0, by_row - own), abs=0.05)


@pytest.mark.parametrize("on_disk", [False, True])
def test_drift_starts_at_zero_and_the_references_are_those_of_each_model(session: Session, on_disk: bool) -> None:
    made = prepared(session, selected(), objective="match", on_disk=on_disk)
    live, [match] = made.problem.live, made.problem.safety
    assert made.problem.drift.value(live.model) == pytest.approx(0.0, abs=1e-6)
    before = match.value(live.model)
    write_params(live, scale(0.0, read_params(live)))  # the base itself
    assert match.value(live.model) == pytest.approx(0.0, abs=1e-6) and before > 1e-3
    assert made.problem.drift.value(live.model) > 1e-3


def test_steps_keep_the_divergence_at_temperature_2_low_and_the_budget_bounds_that_at_1(session: Session) -> None:
    made, chat = prepared(session, selected()), examiner(session).chat
    live, pairs = made.problem.live, [(row, row.answer or COMPLIANCE) for row in RETAIN]

    def logits() -> torch.Tensor:
        found = []
        for row, answer in pairs:
            prompt, tokens = chat.prompt_ids(row), chat.answer_ids(row, answer)
            with torch.no_grad():
                found.append(live.model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1:-1])
        return torch.cat(found).double()

    def divergence(tuned: torch.Tensor, now: torch.Tensor, power: float) -> float:
        p, q = (z.softmax(-1) ** power for z in (tuned, now))
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        return float((p * (p / q).log()).sum(-1).mean())

    tuned = logits()
    write_params(live, scale(0.0, read_params(live)))
    assert made.problem.penalty is not None
    soft, plain = made.problem.penalty.value(live.model), made.problem.drift.value(live.model)
    assert soft == pytest.approx(4 * divergence(tuned, logits(), 1 / 2), rel=1e-4)
    assert plain == pytest.approx(divergence(tuned, logits(), 1.0), rel=1e-4)
    assert abs(soft / plain - 1) > 0.01


def test_the_models_answers_to_the_held_out_sets_are_kept(session: Session) -> None:
    made = prepared(session, selected())
    assert {name: set(part) for name, part in made.answers.items()} == {
        name: {"harmful", "benign", "task", "untouched"} for name in ("tuned", "base")}
    assert [answer.text for answer in made.answers["base"]["harmful"]] == [REFUSAL] * 2
    assert [answer.text for answer in made.answers["tuned"]["harmful"]] == [COMPLIANCE] * 2
    # the tuned model: 2 retain rows without an answer and 5 held-out rows; the base: 5 harmful fit rows, 5 held-out
    # rows, and of 3 retain rows what it takes to see a refusal
    assert made.generated_tokens == 7 * len(COMPLIANCE) + 7 * len(REFUSAL) + 3 * len(COMPLIANCE) + 3 * REFUSAL_TOKENS
    assert tokens_of(made.answers["base"]) == 2 * len(REFUSAL) + 3 * len(COMPLIANCE)


def test_answers_that_are_given_win_over_those_of_the_models(session: Session) -> None:
    given = [record("bad thing", "Sure, follow the steps."), record("bad other thing")]
    rows = selected(harmful=given, safe={"bad other thing": "No, never."}, held_harmful=given)
    made = prepared(session, rows, objective="anchor+ascent")
    anchor, ascent = made.problem.safety
    assert sorted(answers_in(session, anchor.batches)) == sorted([REFUSAL, "No, never."])
    assert sorted(answers_in(session, ascent.batches)) == sorted(["Sure, follow the steps.", COMPLIANCE])
    assert answers_in(session, made.held_out.harmful) == ["Sure, follow the steps.", COMPLIANCE]


def test_prompts_that_the_tuned_model_refuses_are_left_out_of_the_harmful_loss(session: Session) -> None:
    made = prepared(session, selected(), tuned=refuses("thing 1", "thing 3"), objective="ascent")
    assert len(answers_in(session, made.problem.safety[0].batches)) == 3
    assert made.counts["harmful_rows"] == 3


def test_retain_rows_that_the_base_refuses_are_dropped_and_counted(session: Session) -> None:
    made = prepared(session, selected(), base=refuses("bad", "milk", "kill"))
    assert made.counts["retain_rows"] == 2 and made.counts["retain_rows_base_refuses"] == 1
    assert answers_in(session, made.problem.drift.batches) == [COMPLIANCE, "2"]
    assert made.counts["drift_rows_held_out"] == 2
    [(code, message)] = made.warnings
    assert code == "W_RETAIN_REFUSED" and message.startswith("1 retain rows")


def test_unfinished_answers_are_not_ended(session: Session) -> None:
    made, end = prepared(session, selected(), max_new_tokens=20), session.tokenizer.eos_token_id
    batches = made.problem.safety[0].batches
    assert not any(end in batch.labels for batch in batches)
    assert answers_in(session, batches) == [REFUSAL[:20]] * 5


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(
        session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    long = record("bad " + "x" * CONTEXT, "Sure.")
    rows, setting = selected(harmful=[*HARMFUL, long], task=[*ROWS["task"], long, long]), examiner(session).setting()
    left = with_room(rows, setting)
    assert (left.harmful, left.retain, left.held_out) == (tuple(HARMFUL), tuple(RETAIN), selected().held_out)
    assert left.warnings == (("W_TOO_LONG", "3 prompts leave no room for an answer and were not asked: 1 harmful rows "
                              "to fit, 2 held-out task rows"),)
    assert with_room(left, setting) == left and capfd.readouterr().err == ""


def test_prompts_that_an_attack_of_the_gate_makes_too_long_are_counted(session: Session) -> None:
    """The frame alone has more bytes than the 128 tokens of the context."""
    rows, setting = selected(), examiner(session).setting()
    attacks = attacks_of([Rule("coherence_rate", attack=name, min_lower=0.5)
                          for name in ("template:story", "none", "prefill:2", "template:story")])
    assert [attack.name for attack in attacks] == ["template:story", "prefill:2"]
    left = with_room(rows, setting, attacks)
    assert left.held_out == rows.held_out and left.warnings == (
        ("W_TOO_LONG", "2 prompts of attack template:story leave no room for an answer and were not asked"),)


@pytest.mark.parametrize(("part", "named"), [("harmful", "harmful rows to fit"), ("retain", "retain rows"),
                                             ("held_harmful", "held-out harmful rows")])
def test_a_set_without_room_for_any_answer_is_refused(session: Session, part: str, named: str) -> None:
    rows = selected(**{part: [record("x" * CONTEXT)] * 2})
    with pytest.raises(UsageError, match=f"room for an answer - {named}: each of 2 takes more than 88 of the 128") as e:
        with_room(rows, examiner(session).setting())
    assert "--max-new-tokens" in e.value.hint


def test_a_base_that_refuses_too_little_cannot_teach(session: Session) -> None:
    with pytest.raises(MismatchError, match="refuses 3 of 5") as caught:
        prepared(session, selected(), base=refuses("0", "1", "2"))
    assert "--safe" in caught.value.hint


def test_a_base_that_refuses_four_of_five_teaches_by_those(session: Session) -> None:
    made = prepared(session, selected(), base=refuses("0", "1", "2", "3"))
    assert answers_in(session, made.problem.safety[0].batches) == [REFUSAL] * 4
    assert ("W_BASE_COMPLIES", "1 harmful fit rows left out: the base does not refuse them") in made.warnings


def test_with_safe_answers_the_base_need_not_refuse(session: Session) -> None:
    made = prepared(session, selected(safe={row.prompt: "No." for row in HARMFUL}), base=refuses())
    assert answers_in(session, made.problem.safety[0].batches) == ["No."] * 5


def test_only_the_base_s_own_answers_have_a_value_to_come_back_to(session: Session) -> None:
    """What a base that does not refuse makes of a given answer is no aim: a run would stop before its first step."""
    given = {row.prompt: "No." for row in HARMFUL[:2]}
    part = prepared(session, selected(safe=given)).problem.safety[0].target
    with session.base() as model:
        own = loss_of(model, session, [(row, REFUSAL) for row in HARMFUL[2:]])
    chat = examiner(session).chat
    of_own, of_given = 3 * len(chat.answer_ids(HARMFUL[0], REFUSAL)), 2 * len(chat.answer_ids(HARMFUL[0], "No."))
    assert part == pytest.approx(own * of_own / (of_own + of_given), rel=1e-5)
    whole = prepared(session, selected(safe={row.prompt: "No." for row in HARMFUL}), base=refuses())
    assert whole.problem.safety[0].target == 0.0


def test_no_fit_row_with_a_safe_answer_is_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="no usable harmful prompt") as caught:
        prepared(session, replace(selected(), harmful=()))
    assert "--harmful" in caught.value.hint


def test_no_retain_row_is_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="no usable retain row") as caught:
        prepared(session, selected(), base=refuses(""))
    assert "--task" in caught.value.hint


@pytest.mark.parametrize("objective", ["ascent", "match", "anchor+match"])
def test_an_objective_over_harmful_answers_needs_some(session: Session, objective: str) -> None:
    with pytest.raises(UsageError, match="--objective"):
        prepared(session, selected(), tuned=refuses("bad"), objective=objective)


def test_a_tuned_model_that_refuses_all_is_said_to_be_safe_already(session: Session) -> None:
    made = prepared(session, selected(), tuned=refuses("bad"))
    assert [code for code, _ in made.warnings] == ["W_ALREADY_SAFE"]
    assert made.losses["tuned"]["harmful_loss_nats_per_token"] is None


def test_without_task_rows_their_loss_is_none(session: Session) -> None:
    made = prepared(session, selected(task=[]))
    assert made.losses["tuned"]["task_loss_nats_per_token"] is None and made.held_out.task == []


def test_without_held_out_retain_rows_no_drift_is_measured(session: Session) -> None:
    made = prepared(session, selected(task=[], benign=[]))
    assert made.held_out.drift == [] and made.counts["drift_rows_held_out"] == 0


@pytest.mark.parametrize("held_harmful", [ROWS["held_harmful"], []])
def test_a_model_that_gives_nan_is_refused(session: Session, held_harmful: list[Record]) -> None:
    with torch.no_grad():
        session.adapter().model.get_base_model().model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        prepared(session, selected(held_harmful=held_harmful))


def test_a_tuned_model_that_gives_nan_is_refused(session: Session) -> None:
    with torch.no_grad():
        next(iter(session.adapter().leaves.values())).fill_(float("nan"))
    with pytest.raises(NumericalError, match="on held-out rows"):
        prepared(session, selected())
