"""A whole score of a tiny pair: the document, every row's line, the clean file, the journal."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import dense
import pytest
import torch
from cases import live_model, ragged_batches
from saferestore.core.checkpoint.pair import open_pair
from saferestore.core.checkpoint.session import open_session
from saferestore.core.config import ScoreConfig, no_progress
from saferestore.core.curvature.fisher import fisher
from saferestore.core.curvature.kfac import factor_bytes
from saferestore.core.data.chat import ChatFormat
from saferestore.core.data.readers import read_records
from saferestore.core.errors import MismatchError, NumericalError, UsageError
from saferestore.core.evaluation import scoring, systems
from saferestore.core.evaluation.scoring import ScoredRows, prepare_score, score_modules
from saferestore.core.evaluation.training_rows import training_rows
from saferestore.core.influence.point import HALVINGS, NO_RISE, RISE, Point
from saferestore.core.influence.queries import Query
from saferestore.core.influence.rows import Derivative
from saferestore.core.losses import Loss, cross_entropy, gradient, kl_divergence, log_probabilities
from saferestore.core.pipeline import score
from saferestore.core.report.rows import number_text
from saferestore.core.report.score import _learnt, rank
from saferestore.core.report.score_files import heat_strip, shade, write_clean
from saferestore.core.report.score_files import page as html
from saferestore.core.report.score_run import open_score, way_with_room
from saferestore.core.report.score_schema import validate
from saferestore.core.restoration.trust_region import Problem
from safetensors.torch import load_file, save_file
from talk import COMPLIANCE, TEMPLATE, byte_tokenizer, refuses, save_pair, script

Json = dict[str, Any]
TRAIN = [{"prompt": f"question {n}", "answer": f"answer {n} " + "x" * (n % 4)} for n in range(11)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    save_pair(folder)
    lines = [json.dumps(row) for row in TRAIN]
    lines.insert(3, '{"prompt": "without an answer"}')
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("harmful", "benign"):
        rows = [{"prompt": f"{name} {n}", "category": "ab"[n % 2]} for n in range(9)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _config(files: Path, **changes: Any) -> ScoreConfig:
    settings: Json = {"train": str(files / "train.jsonl"), "harmful": (str(files / "harmful.jsonl"),),
                      "benign": (str(files / "benign.jsonl"),), "fit_rows": 4, "max_new_tokens": 30, "batch_size": 4,
                      "curvature_rows": 6, "top": 3, "seed": 1}
    return ScoreConfig(base=str(files / "base"), tuned=str(files / "tuned"), **(settings | changes))


def _score(files: Path, out: Path | None = None, clean: Path | None = None, *, resume: bool = False,
           restart: bool = False, **changes: Any) -> Json:
    with script(base=refuses("harmful"), tuned=lambda _: COMPLIANCE):
        return score(_config(files, **changes), out, clean=clean, resume=resume, restart=restart)


@pytest.fixture(scope="module")
def ran(files: Path) -> tuple[Json, Path]:
    out = files / "out"
    return _score(files, out, files / "clean.jsonl", remove="2", per_token=True, redact="none"), out


def test_the_document_keeps_its_schema_and_counts_every_row(ran: tuple[Json, Path]) -> None:
    found, out = ran
    validate(found)
    assert json.loads((out / "report.json").read_text()) == found
    assert found["rows"]["scored"] == len(TRAIN)
    assert found["rows"]["not_used"] == [{"line": 4, "reason": "no answer"}]
    assert any(warning["code"] == "W_ROWS_NOT_USED" for warning in found["warnings"])


def test_every_row_has_a_line_and_they_are_ranked(ran: tuple[Json, Path]) -> None:
    found, out = ran
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    values = [line["influence_nats_per_token"] for line in lines]
    assert len(lines) == len(TRAIN) and values == sorted(values, reverse=True)
    assert [line["rank"] for line in lines] == list(range(1, len(TRAIN) + 1))
    assert found["rows"]["most_harmful"] == lines[:3] and found["rows"]["most_helpful"] == lines[:-4:-1]
    for line in lines:
        assert sum(line["token_influences_nats_per_token"]) == pytest.approx(line["influence_nats_per_token"])
        assert "".join(line["tokens"]).startswith(line["text"])


def test_the_clean_file_lacks_the_rows_found_and_the_list_has_them_with_a_reason(
        ran: tuple[Json, Path], files: Path) -> None:
    found, _ = ran
    gone = {row["line"] for row in found["rows"]["most_harmful"][:found["rows"]["removed"]]}
    lines = (files / "train.jsonl").read_text().splitlines()
    kept = [line for number, line in enumerate(lines, start=1) if number not in gone]
    assert (files / "clean.jsonl").read_text().splitlines() == kept
    removed = [json.loads(line) for line in (files / "clean.jsonl.removed.jsonl").read_text().splitlines()]
    assert {row["line"] for row in removed} == gone and all("raise S" in row["reason"] for row in removed)
    assert [row["messages"][-1]["role"] for row in removed] == ["assistant"] * len(gone)


def test_the_page_has_as_many_modules_as_asked_for_all_sums_and_no_script(ran: tuple[Json, Path]) -> None:
    found, out = ran
    page, names = (out / "report.html").read_text(), [module["module"] for module in found["modules"]]
    assert len(names) > 3 and [name for name in names if name in page] == names[:3] and "<script" not in page
    assert f"{len(names) - 3} of {len(names)} modules, those of the least" in page
    for part in (*found["layers"], *found["kinds"]):
        assert number_text(part["safety_gain_nats_per_token"], 2 if part["name"].isdigit() else 3) in page
    assert ">attention<" in page and ">mlp<" in page


def test_the_page_has_every_module_where_more_are_asked_for(ran: tuple[Json, Path]) -> None:
    found, _ = ran
    page = html({**found, "settings": {**found["settings"], "top": len(found["modules"])}})
    assert all(module["module"] in page for module in found["modules"]) and "left out" not in page


def test_the_same_seed_gives_the_same_bytes_and_texts_are_masked_unless_asked_for(files: Path, tmp_path: Path) -> None:
    runs = [_score(files, tmp_path / name) for name in ("a", "b")]
    for name in ("report.html", "scores.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    first, second = ({key: value for key, value in run.items() if key != "run"} for run in runs)
    assert first == second
    assert "answer 3" not in (tmp_path / "a" / "scores.jsonl").read_text()


@pytest.mark.parametrize("way", ["identity", "ekfac", "cg", "datainf"])
def test_every_way_goes_from_settings_to_a_document(files: Path, way: str) -> None:
    found = _score(files, way=way, at=1.0)
    assert found["rows"]["way"] == way and len(found["rows"]["most_harmful"]) == 3


def test_modules_are_scored_without_a_training_file(files: Path, tmp_path: Path) -> None:
    found = _score(files, tmp_path / "out", train=None)
    assert found["rows"] is None and found["modules"] and not (tmp_path / "out" / "scores.jsonl").exists()
    whole = sum(module["safety_gain_nats_per_token"] for module in found["modules"])
    for key in ("layers", "kinds"):
        assert sum(row["safety_gain_nats_per_token"] for row in found[key]) == pytest.approx(whole)


def test_modules_take_steps_damped_by_the_mean_diagonal_of_the_drifts_curvature() -> None:
    live, retain, config = live_model(), ragged_batches(6, seed=2), ScoreConfig(base="b", tuned="t", seed=3)
    drift = kl_divergence("D", retain, log_probabilities(live.model, retain).__getitem__)
    anchor = cross_entropy("anchor", ragged_batches(5, seed=1), target=0.0)
    slope, rows = gradient(live, anchor)[1], fisher(live, [drift], seed=3).rows

    def curvature(names: list[str]) -> torch.Tensor:
        block = torch.cat([rows[name] for name in names], dim=1)
        return block.T @ block

    whole = curvature(list(slope))
    damping = float(whole.diagonal().mean())
    x = dense.damped_solve(whole, damping, dense.flat(slope))
    length = (2 * config.max_drift / (x @ whole @ x)) ** 0.5
    found = score_modules(Problem(live, (anchor,), drift), config)
    assert len(found.modules) == 4
    for each in found.modules:
        names = [name for name in slope if name.startswith(f"{each.module}.lora_")]
        block, part = curvature(names), dense.flat({name: slope[name] for name in names})
        own = dense.damped_solve(block, damping, part)
        assert each.safety_gain == pytest.approx(float(length * part @ own), rel=1e-9)
        assert each.task_cost == pytest.approx(float(0.5 * length**2 * own @ block @ own), rel=1e-9)


def test_an_interrupted_run_goes_on_with_the_rows_it_has(files: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _score(files, tmp_path / "whole")
    monkeypatch.setattr(scoring, "CHUNK", 4)
    chunk, done = scoring._chunk, []

    def stop(live: Any, rows: Any, *rest: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(len(rows))
        return chunk(live, rows, *rest)

    monkeypatch.setattr(scoring, "_chunk", stop)
    with pytest.raises(KeyboardInterrupt):
        _score(files, tmp_path / "out")
    monkeypatch.setattr(scoring, "_chunk",
                        lambda live, rows, *rest: (done.append(len(rows)), chunk(live, rows, *rest))[1])
    with pytest.raises(UsageError, match="interrupted"):
        _score(files, tmp_path / "out")
    found = _score(files, tmp_path / "out", resume=True)
    assert done == [4, 4, 3] and not (tmp_path / "out.partial").exists()
    ranked = [[row["line"] for row in each["rows"]["most_harmful"]] for each in (found, whole)]
    assert ranked[0] == ranked[1]


def test_an_input_that_is_refused_leaves_nothing_behind(files: Path, tmp_path: Path) -> None:
    config, out = _config(files), tmp_path / "out"
    for _ in range(2):  # the second run finds no interrupted one
        with script(base=lambda _: COMPLIANCE, tuned=lambda _: COMPLIANCE), pytest.raises(
                MismatchError, match="cannot teach refusal"):
            score(config, out)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"per_token": True}, {"remove": "3"}, {"at": 0.5}], ids=str)
def test_without_a_training_file_nothing_reads_settings_of_its_rows(files: Path, changes: Json) -> None:
    with pytest.raises(UsageError, match="no training file - --") as caught:
        _score(files, train=None, **changes)
    assert "--train FILE" in caught.value.hint


def test_an_input_is_never_replaced(files: Path) -> None:
    with pytest.raises(UsageError, match="OUT would replace"):
        _score(files, files, force=True)
    assert (files / "train.jsonl").is_file()


def test_an_interrupted_run_asks_no_model_again(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safe = tmp_path / "safe.jsonl"  # the models' own answers are noise
    safe.write_text("".join(json.dumps({"prompt": f"harmful {n}", "answer": "I cannot help."}) + "\n"
                            for n in range(9)), encoding="utf-8")
    config, real, asked = _config(files, safe=(str(safe),), max_new_tokens=4), systems.generate, []

    def counted(model: Any, prompts: Any, **more: Any) -> Any:
        asked.append((len(prompts), len(more["known"])))
        return real(model, prompts, **more)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(systems, "generate", counted)
    whole = score(config, tmp_path / "whole")
    assert asked and not any(known for _, known in asked)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring, "_chunk", stop)
        score(config, tmp_path / "out")
    asked.clear()
    found = score(config, tmp_path / "out", resume=True)
    assert asked and all(count == known for count, known in asked)
    assert found["rows"] == whole["rows"] and not (tmp_path / "out.partial").exists()


def test_a_row_whose_loss_is_not_finite_is_listed_and_not_ranked(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = scoring.row_sums

    def broken(found: Any, rows: torch.Tensor) -> Any:
        losses, derivatives, tokens = sums(found, rows)
        losses[2] = float("nan")
        return losses, derivatives, tokens

    monkeypatch.setattr(scoring, "row_sums", broken)
    found = _score(files)
    assert found["rows"]["scored"] == len(TRAIN) - 1
    assert {"line": 3, "reason": "the loss is not finite"} in found["rows"]["not_used"]


def test_rows_whose_loss_is_not_finite_are_left_out_of_curvature_and_of_the_comparison_of_losses(
        files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, seen = scoring.row_losses, []

    def broken(model: Any, batches: Any) -> Any:
        sums, tokens = losses(model, batches)
        sums[1] = float("inf")
        return sums, tokens

    def query(inputs: Any) -> Query:
        seen.append(sum(len(batch.rows) for batch in inputs.training.batches))
        return Query(inputs.gradient, 1.0)

    monkeypatch.setattr(scoring, "row_losses", broken)
    monkeypatch.setitem(scoring.QUERIES, "ekfac", query)
    found = _score(files, curvature_rows=6)
    assert seen == [5] and 0 < found["rows"]["tuned_loss_nats_per_token"] < float("inf")


def test_a_file_without_a_finite_loss_is_refused_and_its_losses_are_null(files: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    losses = scoring.row_losses
    monkeypatch.setattr(scoring, "row_losses", lambda *given: (losses(*given)[0] * float("nan"), losses(*given)[1]))
    with pytest.raises(NumericalError, match="finite loss"):
        _score(files)
    scored = ScoredRows(Query({}, None), Derivative(None, 0.0), {}, {}, Point(0.2), None, None)
    assert _learnt(scored)["tuned_loss_nats_per_token_reason"] == "not finite"


def test_a_query_that_is_not_finite_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(inputs: Any) -> Query:
        return Query({name: t * float("inf") for name, t in inputs.gradient.items()}, None)

    monkeypatch.setitem(scoring.QUERIES, "identity", broken)
    with pytest.raises(NumericalError, match="--way identity"):
        _score(files, way="identity")


def _far(files: Path, out: Path) -> Path:
    """The adapter of the pair with four times the change of weights, which no loss survives."""
    shutil.copytree(files / "tuned", out)
    factors = load_file(out / "adapter_model.safetensors")
    moved = {name: 4 * t if "lora_B" in name else t for name, t in factors.items()}
    save_file(moved, out / "adapter_model.safetensors")
    return out


def test_rows_are_scored_where_s_has_made_its_share_of_the_rise(files: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(_config(files), tuned=str(_far(files, tmp_path / "tuned")))
    with script(base=refuses("harmful"), tuned=lambda _: COMPLIANCE):
        found, opened = score(config), open_score(config, no_progress)
        terms = prepare_score(opened.session, opened.examiner, opened.selection, config).problem.safety

    def share(at: float) -> float:
        values = []
        for place in (0.0, at, 1.0):
            with opened.session.blend(1 - place) as live:
                values.append(sum(loss.value(live.model) for loss in terms))
        assert values[0] < values[2]
        return (values[1] - values[0]) / (values[2] - values[0])

    at, half = found["rows"]["at"], 2.0 ** -(HALVINGS + 1)
    assert share(max(0.0, at - half)) < RISE <= share(at + half)
    assert not any(warning["code"] == "W_SAFETY_NOT_LOST" for warning in found["warnings"])


@pytest.mark.parametrize(("at", "system"), [("0", "base"), ("1", "tuned")])
def test_rows_are_scored_at_the_point_named(files: Path, tmp_path: Path, at: str, system: str) -> None:
    """At either end their losses are those of that model."""
    rows = _score(files, tmp_path / "out", at=at)["rows"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    loss = (sum(line["loss_nats_per_token"] * line["answer_tokens"] for line in lines)
            / sum(line["answer_tokens"] for line in lines))
    assert rows["base_loss_nats_per_token"] != pytest.approx(rows["tuned_loss_nats_per_token"], rel=1e-3)
    assert loss == pytest.approx(rows[f"{system}_loss_nats_per_token"], rel=1e-5)


def test_a_pair_that_lost_no_safety_is_warned_of_and_a_named_point_is_kept(files: Path) -> None:
    found, named = _score(files), _score(files, at="0.25")
    assert found["rows"]["at"] == NO_RISE and named["rows"]["at"] == 0.25
    codes = [[warning["code"] for warning in each["warnings"]].count("W_SAFETY_NOT_LOST") for each in (found, named)]
    assert codes == [1, 0]


def test_a_safety_loss_that_is_not_finite_between_the_models_is_refused(files: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loss, "value", lambda *_: float("nan"))
    with pytest.raises(NumericalError, match="--at auto"):
        _score(files)


def test_a_safety_gradient_of_zero_leaves_nothing_to_attribute(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "norm", lambda _: 0.0)
    with pytest.raises(UsageError, match="nothing to attribute"):
        _score(files)


def test_a_file_that_the_tuned_model_has_not_learnt_is_warned_of(files: Path) -> None:
    found = _score(files)  # a random adapter learnt nothing
    assert found["rows"]["tuned_loss_nats_per_token"] > 0.9 * found["rows"]["base_loss_nats_per_token"]
    assert any(warning["code"] == "W_NOT_LEARNT" for warning in found["warnings"])


def test_a_clean_file_that_could_not_be_written_is_refused_before_any_work(files: Path, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    cases = {"no training file": (tmp_path / "c", {"train": None}), "replace the training file": (
        files / "train.jsonl", {"force": True}), "file exists": (tmp_path / "there", {}),
        "no such folder": (tmp_path / "none" / "c", {})}
    for what, (clean, changes) in cases.items():
        with pytest.raises(UsageError, match=what):
            _score(files, None, clean, **changes)


def _clean(clean: Path, spec: str) -> None:
    """The clean file without the rows 0 and 2, from scores made up."""
    training = training_rows(read_records(spec), ChatFormat(byte_tokenizer(), TEMPLATE), 100)
    scored = ScoredRows(Query({}, None), Derivative(None, 0.0), {0: 2.0, 1: 0.5, 2: 1.0}, {}, Point(0.2), 1.0, 2.0)
    write_clean(clean, spec, training, scored, rank(scored, "2"))


def test_a_clean_file_of_a_data_set_of_the_hub_holds_its_other_rows(monkeypatch: pytest.MonkeyPatch,
                                                                   tmp_path: Path) -> None:
    monkeypatch.setattr("saferestore.core.data.hub.rows_of", lambda *_, **__: iter(TRAIN[:3]))
    _clean(tmp_path / "clean", "some/rows[train]@v1")
    assert [json.loads(line) for line in (tmp_path / "clean").read_text().splitlines()] == [TRAIN[1]]
    assert len((tmp_path / "clean.removed.jsonl").read_text().splitlines()) == 2


def test_a_byte_order_mark_stays(tmp_path: Path) -> None:
    path, lines = tmp_path / "train.jsonl", [json.dumps(row) + "\r\n" for row in TRAIN[:3]]
    path.write_bytes("".join(lines).encode("utf-8-sig"))
    _clean(tmp_path / "clean", str(path))
    assert (tmp_path / "clean").read_bytes() == lines[1].encode("utf-8-sig")


def test_a_training_file_that_changed_while_it_was_scored_is_not_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TRAIN[:3]))
    training = training_rows(read_records(str(path)), ChatFormat(byte_tokenizer(), TEMPLATE), 100)
    path.write_text(path.read_text() + "\n")
    scored = ScoredRows(Query({}, None), Derivative(None, 0.0), {0: 2.0, 1: 0.5}, {}, Point(0.2), 1.0, 2.0)
    with pytest.raises(UsageError, match="changed while it was scored"):
        write_clean(tmp_path / "clean", str(path), training, scored, rank(scored, "1"))
    assert not (tmp_path / "clean").exists()


def test_ekfac_is_refused_where_its_factors_do_not_fit_and_no_other_way_is(files: Path) -> None:
    live = open_session(open_pair(str(files / "base"), str(files / "tuned"))).adapter()
    needed = factor_bytes(leaf.shape for leaf in live.leaves.values())
    assert way_with_room(live, "ekfac") == way_with_room(live, "ekfac", needed) == "ekfac"
    assert way_with_room(live, "diagonal", 0) == "diagonal"
    assert (way_with_room(live, "auto", needed), way_with_room(live, "auto", needed - 1)) == ("ekfac", "diagonal")
    with pytest.raises(UsageError, match="--way ekfac"):
        way_with_room(live, "ekfac", needed - 1)


def test_a_broken_document_is_not_written(ran: tuple[Json, Path]) -> None:
    with pytest.raises(ValueError, match="schema"):
        validate({**ran[0], "modules": None})


def test_rows_are_ranked_by_influence_and_ties_by_their_place() -> None:
    influences = {0: 1.0, 1: 3.0, 2: 1.0, 3: -2.0}
    scored = ScoredRows(Query({}, None), Derivative(None, 0.0), influences, {}, Point(0.2), 1.0, 2.0)
    found = rank(scored, "1")
    assert found.order == (1, 0, 2, 3) and found.removed == (1,) and found.threshold == 1.0


def test_shades_of_the_heat_strip_rise_with_the_gain(ran: tuple[Json, Path]) -> None:
    columns, layers = heat_strip(ran[0])
    assert [layer for layer, _ in layers] == ["0", "1"] and all(len(cells) == len(columns) for _, cells in layers)
    assert max(step for _, cells in layers for _, step in cells) == 8
    assert [shade(gain, 2.0) for gain in (None, -1.0, 0.0, 1.0, 2.0)] == [0, 0, 0, 4, 8]


@pytest.mark.parametrize(("changes", "what"), [
    ({"at": -0.1}, "--at"), ({"at": 1.5}, "--at"), ({"at": "half"}, "--at"),
    ({"way": "kfac"}, "--way kfac"), ({"damping": 0.0}, "--damping"),
    ({"top": 0}, "--top"), ({"seed": -1}, "--seed"), ({"objective": "x"}, "--objective"),
    ({"redact": "x"}, "--redact")])
def test_settings_that_could_only_fail_later_are_refused(changes: Json, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ScoreConfig(base="b", tuned="t", **changes)


def test_a_score_reads_the_rows_of_a_restoration() -> None:
    config = ScoreConfig(base="b", tuned="t", task=("x",), fit_rows=7, seed=3)
    shared = config.as_restore()
    assert (shared.base, shared.task, shared.fit_rows, shared.seed) == ("b", ("x",), 7, 3)
    assert dataclasses.asdict(config)["max_drift"] == shared.max_drift
