"""Every row of the table on one tiny model: it does something, keeps the budget, says what it cost, or says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint.session import LiveModel, read_params
from saferestore.core.config import NEED_UNALIGNED, PUBLISHED
from saferestore.core.data.batches import Row, make_batches
from saferestore.core.errors import NumericalError, UsageError
from saferestore.core.losses import kl_divergence, log_probabilities
from saferestore.core.report.rows import STOPPED
from saferestore.core.restoration.methods import requirements
from saferestore.core.restoration.methods.inputs import Applied, Edited, Inputs, Knob
from saferestore.core.restoration.methods.search import by_edit, by_training
from saferestore.core.restoration.methods.table import METHODS, apply
from saferestore.core.restoration.methods.train import Recipe

from ...cases import FAMILIES, WIDTH, live_model
from .given import answered, inputs, save_weights, weights_of
from .test_train import learn


def given_for(folder: Path, live: LiveModel | None = None, *, transposed: bool = False, **more: Any) -> Inputs:
    live = live or live_model(rank=WIDTH)
    shapes = weights_of(read_params(live))
    base, unaligned = (save_weights(folder / name, shapes, seed=seed, size=0.1, transposed=transposed)
                       for seed, name in enumerate(("base", "unaligned")))
    return inputs(live, base_dir=base, unaligned=unaligned, transposed=transposed, **more)


def test_the_names_are_those_that_settings_allow() -> None:
    assert tuple(METHODS) == PUBLISHED
    assert tuple(name for name, row in METHODS.items() if "unaligned" in row.needs) == NEED_UNALIGNED


@pytest.fixture(scope="module", params=PUBLISHED)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Inputs, Applied]:
    given = given_for(tmp_path_factory.mktemp("w"))
    return request.param, given, apply(request.param, given)


def test_it_keeps_the_budget_and_leaves_the_model_where_it_says(ran: tuple[str, Inputs, Applied]) -> None:
    _, given, applied = ran
    point = applied.outcome.point
    assert point.drift <= given.max_drift * (1 + 1e-9)
    assert all(torch.equal(read_params(given.problem.live)[name], t) for name, t in point.params.items())
    assert given.problem.drift.value(given.problem.live.model) == pytest.approx(point.drift, rel=1e-9)
    assert 0 <= applied.lost <= 1


def test_it_moves_or_says_that_it_did_not(ran: tuple[str, Inputs, Applied]) -> None:
    _, _, applied = ran
    start, end = applied.outcome.start.params, applied.outcome.point.params
    moved = any(not torch.equal(start[name], end[name]) for name in start)
    assert moved == (applied.outcome.stopped_because != "no_change")
    assert moved == any(step.accepted for step in applied.outcome.steps)
    assert applied.outcome.stopped_because in STOPPED and applied.note


def test_its_passes_are_within_what_its_values_tried_allow(ran: tuple[str, Inputs, Applied]) -> None:
    name, given, applied = ran
    cost = applied.outcome.cost
    runs = len(METHODS[name].knob.tried)
    assert cost.account_passes == 2
    assert cost.gradient_passes <= max(runs * (given.max_passes + 1), 3)
    assert (cost.gradient_passes > 0) == (bool(runs) or name in ("ssd", "datainf", "safemerge"))


def test_its_account_by_parameter_adds_up(ran: tuple[str, Inputs, Applied]) -> None:
    _, _, applied = ran
    outcome = applied.outcome
    fall = sum(outcome.start.safety) - sum(outcome.point.safety)
    assert sum(outcome.attribution.gain.values()) == pytest.approx(fall, rel=1e-9, abs=1e-12)


def test_its_knob_goes_from_its_weakest_to_its_strongest_value(ran: tuple[str, Inputs, Applied]) -> None:
    knob = METHODS[ran[0]].knob
    sweep = knob.sweep(5)
    assert (sweep[0], sweep[-1]) == (knob.weakest, knob.strongest)
    assert sweep == sorted(sweep, reverse=knob.weakest > knob.strongest)
    assert min(sweep) <= ran[2].strength <= max(sweep)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_every_method_runs_on_biases_and_on_transposed_weights(family: str, tmp_path: Path) -> None:
    for name in PUBLISHED:
        live = live_model(family)
        given = given_for(tmp_path / name, live, transposed=FAMILIES[family].transposed, max_passes=1)
        outcome = apply(name, given).outcome
        moved = any(not torch.equal(outcome.start.params[key], t) for key, t in outcome.point.params.items())
        assert outcome.point.drift <= given.max_drift * (1 + 1e-9), name
        assert moved == (outcome.stopped_because != "no_change"), name


@pytest.mark.parametrize(("name", "value"), [("scale", 0.5), ("refusal-sft", 0.01), ("npo", 0.01)])
def test_a_stated_strength_is_taken_whatever_it_drifts(name: str, value: float) -> None:
    given = inputs(max_drift=1e-9)
    applied = apply(name, given, value)
    assert (applied.strength, applied.outcome.stopped_because) == (value, "strength_as_given")
    assert applied.outcome.point.drift > 1e-9 and any(step.accepted for step in applied.outcome.steps)


@pytest.mark.parametrize(("name", "value"), [("scale", 0.0), ("random", 0.0), ("antidote", 0.0), ("npo", 0.0)])
def test_no_change_is_never_silent(name: str, value: float) -> None:
    outcome = apply(name, inputs(), value).outcome
    assert outcome.stopped_because == "no_change" and not any(step.accepted for step in outcome.steps)


def test_a_budget_of_almost_nothing_leaves_almost_nothing_or_says_no_change(tmp_path: Path) -> None:
    for name in PUBLISHED:
        outcome = apply(name, given_for(tmp_path / name, max_drift=1e-30, max_passes=1)).outcome
        assert outcome.point.drift <= 1e-12, name


def test_an_edit_that_keeps_the_budget_at_no_value_is_not_made() -> None:
    """A model that is certain of its own answers: every entry matters ten thousand times more for harmful ones."""
    live = live_model()
    head = next(p for name, p in live.model.named_parameters() if "lm_head" in name)
    head.data *= 30
    with torch.no_grad():
        own = [Row(i, (3 + i, 7), (int(live.model(input_ids=torch.tensor([[3 + i, 7]])).logits[0, -1].argmax()),))
               for i in range(4)]
    retain = make_batches(own, batch_size=2, pad_id=0)
    given = inputs(live, max_drift=0.001)
    drift = kl_divergence("drift", retain, log_probabilities(live.model, retain).__getitem__)
    given = replace(given, problem=replace(given.problem, drift=drift))
    found = apply("ssd", given).outcome
    assert (found.point.drift, found.stopped_because) == (0, "no_change")
    assert apply("ssd", given, METHODS["ssd"].knob.weakest).outcome.point.drift > 0.1


@pytest.mark.parametrize(("budget", "why"), [(1e-4, "drift_budget_spent"), (1e6, "max_steps")])
def test_a_method_that_trains_says_whether_the_budget_or_the_passes_bounded_it(budget: float, why: str) -> None:
    assert apply("refusal-sft", inputs(max_drift=budget)).outcome.stopped_because == why


def test_of_the_values_tried_the_one_that_did_most_is_taken() -> None:
    """Learning is not fast enough at the smallest rate, and nothing bounds it: the largest does most."""
    alone = {rate: apply("refusal-sft-no-replay", inputs(max_drift=1e6), rate) for rate in (3e-4, 1e-3, 3e-3)}
    safety = {rate: sum(one.outcome.point.safety) for rate, one in alone.items()}
    found = apply("refusal-sft-no-replay", inputs(max_drift=1e6))
    assert found.strength == min(safety, key=safety.__getitem__) != 3e-4
    assert sum(found.outcome.point.safety) == pytest.approx(min(safety.values()))


def test_a_knob_whose_end_fits_the_budget_is_taken_to_its_end() -> None:
    applied = apply("scale", inputs(max_drift=1e6))
    assert (applied.strength, applied.outcome.stopped_because) == (1.0, "knob_at_its_end")


@pytest.mark.parametrize(("name", "more", "words"), [
    ("npo", {"harmful": False}, "no harmful answer"), ("antidote", {"harmful": False}, "no harmful answer"),
    ("safelora", {}, "no unaligned model"), ("resta", {}, "no unaligned model"),
    ("ssd", {"kind": "full"}, "full checkpoint"), ("safemerge", {"kind": "full"}, "full checkpoint"),
])
def test_what_a_method_needs_and_does_not_have_is_said_with_a_way_out(name: str, more: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        apply(name, inputs(**more))
    assert f"--method {name}" in caught.value.what and "--" in caught.value.hint


def test_every_need_is_a_known_requirement() -> None:
    assert {need for row in METHODS.values() for need in row.needs} <= set(requirements.REQUIREMENTS)


def test_dpo_without_a_prompt_that_has_both_answers_is_refused() -> None:
    given = inputs()
    for batch in given.data.harmful:
        batch.input_ids[:, 0] = 30
    with pytest.raises(UsageError, match="both a safe and a harmful answer"):
        apply("dpo", given)


def test_an_edit_that_leaves_finite_numbers_is_an_error() -> None:
    given = inputs()
    start = read_params(given.problem.live)
    run = by_edit(lambda _: lambda value: Edited({name: t * value for name, t in start.items()}))
    with pytest.raises(NumericalError, match="not finite at x = inf"):
        run(given, Knob("x", 0.0, 1.0), float("inf"))


def test_the_best_of_several_rates_is_taken_by_the_methods_own_loss() -> None:
    knob = Knob("rate", 1e-6, 1e-2, True, (1e-6, 1e-2))
    given = inputs(max_drift=1e6)
    applied = by_training(Recipe(learn, "adamw"))(given, knob, None)
    assert applied.strength == 1e-2 and given.cost.gradient_passes == 2 * given.max_passes
    assert "3 gradient passes, best of 2 values of rate" in applied.note


def test_a_few_safe_rows_are_fewer_than_all() -> None:
    one, every = (apply(name, inputs(max_drift=1e6), 0.01).outcome.point for name in ("refusal-sft-1", "refusal-sft"))
    assert one.safety[0] > every.safety[0]
    assert len(answered(11)) > 1


def test_a_logarithmic_sweep_has_equal_ratios() -> None:
    sweep = Knob("x", 1e4, 1.0, True).sweep(5)
    assert [a / b for a, b in zip(sweep, sweep[1:], strict=False)] == pytest.approx([10] * 4)
