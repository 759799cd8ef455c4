"""The controls start at the tuned model, spend no more drift than the restoration, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saferestore.core.checkpoint.session import Session, read_params, write_params
from saferestore.core.config import RestoreConfig
from saferestore.core.data.selection import Selection
from saferestore.core.errors import MismatchError, NumericalError
from saferestore.core.evaluation.controls import LEAST_DRIFT, run_controls
from saferestore.core.evaluation.preparation import Prepared, prepare
from saferestore.core.losses import row_divergences
from saferestore.core.params import axpy, gaussian, norm
from saferestore.core.report.schema import CONTROLS
from saferestore.core.restoration.settings import Settings
from saferestore.core.restoration.trust_region import Outcome, minimise
from talk import examiner, open_tiny, record, refuses, save_pair, script, selection

CONFIG = RestoreConfig("b", "t", max_steps=2, max_drift=0.05, seed=3)
ROWS = selection(harmful=[record(f"bad thing {i}") for i in range(4)], retain=[record("bread"), record("milk")],
                 held_harmful=[record("bad a"), record("bad b")], task=[record("2 and 2", "4")],
                 benign=[record("kill a process")])


@dataclass
class Run:
    """A restoration with its controls."""

    session: Session
    prepared: Prepared
    outcome: Outcome
    controls: dict[str, dict[str, Any]]
    asked: list[str]
    left: dict[str, torch.Tensor]


def run(saved: tuple[Path, Path], rows: Selection = ROWS, **settings: Any) -> Run:
    config, session = replace(CONFIG, **settings), open_tiny(*saved)[1]
    with script(tuned=refuses(), base=refuses("bad"), control=refuses("bad a")) as asked:
        prepared = prepare(session, examiner(session), rows, objective="match", on_disk=False)
        outcome = minimise(prepared.problem, Settings(engine=config.engine, max_drift=config.max_drift,
                                                      max_steps=config.max_steps, seed=config.seed))
        found = run_controls(session, prepared, outcome, examiner(session), rows, config)
    return Run(session, prepared, outcome, {row["name"]: row for row in found}, asked,
               read_params(prepared.problem.live))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def done(saved: tuple[Path, Path]) -> Iterator[Run]:
    yield run(saved)


def drift_at(done: Run, params: dict[str, torch.Tensor]) -> float:
    live = done.prepared.problem.live
    write_params(live, params)
    value = done.prepared.problem.drift.value(live.model)
    write_params(live, done.left)
    return value


def test_the_three_controls_are_measured_in_order(done: Run) -> None:
    assert list(done.controls) == ["scale", "random", "identity"] and set(done.controls) <= set(CONTROLS)
    assert done.asked[-3:] == ["control scale", "control random", "control identity"]


def test_where_identity_is_the_engine_the_diagonal_is_the_control(saved: tuple[Path, Path]) -> None:
    assert list(run(saved, engine="identity").controls) == ["scale", "random", "diagonal"]


def test_a_model_that_cannot_be_moved_toward_its_base_has_the_other_controls(saved: tuple[Path, Path],
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Session) -> None:
        raise MismatchError("3 weights cannot be interpolated from disk", hint="-")

    monkeypatch.setattr(Session, "check_blend", refuse)
    found = run(saved).controls
    assert list(found) == ["scale", "random", "identity"] and found["scale"]["harmful_rate"] is None
    assert found["scale"]["harmful_rate_reason"] == "3 weights cannot be interpolated from disk"
    assert found["random"]["harmful_rate"] is not None


def test_no_control_spends_more_drift_than_the_restoration(done: Run) -> None:
    spent = done.outcome.point.drift
    assert spent > LEAST_DRIFT
    assert all(row["fit_kl_nats_per_token"] <= spent for row in done.controls.values())
    # the first two are as strong as that drift allows
    assert done.controls["scale"]["fit_kl_nats_per_token"] > 0.8 * spent
    assert done.controls["random"]["fit_kl_nats_per_token"] > 0.8 * spent


def test_the_adapter_is_the_restored_one_again(done: Run) -> None:
    assert all(torch.equal(done.left[name], tensor) for name, tensor in done.outcome.point.params.items())


def test_scale_is_the_tuned_adapter_with_a_smaller_b(done: Run) -> None:
    alpha = float(done.controls["scale"]["note"].split()[0])
    scaled = {name: t * (1 - alpha) if ".lora_B." in name else t for name, t in done.outcome.start.params.items()}
    assert drift_at(done, scaled) == pytest.approx(done.controls["scale"]["fit_kl_nats_per_token"], rel=0.02)


def test_random_goes_along_a_gaussian_of_the_adapters_norm(done: Run) -> None:
    start, strength = done.outcome.start.params, float(done.controls["random"]["note"].split()[0])
    z = gaussian(start, CONFIG.seed)
    params = axpy(strength * norm(start) / norm(z), z, start)
    assert drift_at(done, params) == pytest.approx(done.controls["random"]["fit_kl_nats_per_token"], rel=0.02)


def test_identity_is_the_same_objective_with_plain_gradients_cut_back_to_the_drift_spent(done: Run) -> None:
    live, start = done.prepared.problem.live, done.outcome.start.params
    write_params(live, start)
    settings = Settings(engine="identity", max_drift=CONFIG.max_drift, max_steps=CONFIG.max_steps, seed=CONFIG.seed)
    again = minimise(done.prepared.problem, settings)
    passes, strength = done.controls["identity"]["note"].removesuffix(" of the way").split(" gradient passes, ")
    assert int(passes) == again.cost.gradient_passes
    write_params(live, axpy(float(strength), axpy(-1.0, start, again.point.params), start))
    held, row = done.prepared.held_out, done.controls["identity"]
    sums, tokens = row_divergences(live.model, held.drift, held.tuned_log_p)
    drift = done.prepared.problem.drift.value(live.model)
    write_params(live, done.left)
    assert row["fit_kl_nats_per_token"] == pytest.approx(drift, rel=0.01)
    assert row["task_kl_nats_per_token"] == pytest.approx(float(sums.sum() / tokens.sum()), rel=0.01)
    assert row["fit_kl_nats_per_token"] <= done.outcome.point.drift


def test_rates_are_those_of_the_controls_answers(done: Run) -> None:
    for row in done.controls.values():
        assert (row["harmful_rate"]["value"], row["refusal_rate"]["value"]) == (0.5, 0.5)
        assert row["task_accuracy"]["value"] == 0.0 and row["coherence_rate"]["n"] == 2


def test_without_task_and_retain_rows_the_nulls_have_reasons(saved: tuple[Path, Path]) -> None:
    held = {**ROWS.held_out, "task": (), "benign": ()}
    for row in run(saved, replace(ROWS, held_out=held), max_steps=1).controls.values():
        assert row["task_kl_nats_per_token"] is None
        assert row["task_kl_nats_per_token_reason"] == "no held-out retain rows"
        assert row["task_accuracy"] is None and row["task_accuracy_reason"] == "no --task rows"


def test_a_restoration_that_did_not_move_leaves_the_controls_next_to_nothing(saved: tuple[Path, Path]) -> None:
    found = run(saved, max_drift=1e-30, max_steps=1)
    assert not any(step.accepted for step in found.outcome.steps)
    assert all(row["fit_kl_nats_per_token"] <= LEAST_DRIFT for row in found.controls.values())


def test_a_control_that_breaks_is_null_with_its_reason_and_the_others_stand(
        saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Outcome:
        raise NumericalError("the loss `S` is not finite - nan", hint="")

    monkeypatch.setattr("saferestore.core.evaluation.controls.minimise", broken)
    found = run(saved)
    row = found.controls["identity"]
    assert row["harmful_rate"] is None and "not finite" in row["harmful_rate_reason"]
    assert found.controls["scale"]["harmful_rate"] and found.controls["random"]["harmful_rate"]
    assert all(torch.equal(found.left[name], t) for name, t in found.outcome.point.params.items())
