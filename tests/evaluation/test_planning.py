"""The plan of a run, counted again from the model itself and from the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from saferestore.core import pipeline
from saferestore.core.checkpoint import loading, session
from saferestore.core.checkpoint.pair import CheckpointPair, open_pair
from saferestore.core.checkpoint.safetensors_files import read_headers
from saferestore.core.config import RestoreConfig
from saferestore.core.errors import MismatchError
from saferestore.core.evaluation import planning
from saferestore.core.evaluation.planning import FLOPS_PER_PARAMETER_TOKEN, MEASURED_FLOPS, estimate
from talk import examiner, open_tiny, record, save_pair, selection

CONFIG = RestoreConfig("b", "t", max_new_tokens=10, max_steps=3)
ROWS = selection(harmful=[record("bad thing"), record("bad")], retain=[record("bread"), record("2 and 2", "4")],
                 held_harmful=[record("bad a")], task=[record("1 and 1", "2")])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair(saved: tuple[Path, Path]) -> CheckpointPair:
    return open_pair(str(saved[0]), str(saved[1]), read_weights=False)


def test_parameters_are_those_of_the_model(saved: tuple[Path, Path], pair: CheckpointPair) -> None:
    plan, live = estimate(pair, ROWS, CONFIG, device="cpu"), open_tiny(*saved)[1].adapter()
    adapter = sum(leaf.numel() for leaf in live.leaves.values())
    assert plan["adapter_parameters"] == adapter
    assert plan["parameters"] == sum(p.numel() for p in live.model.parameters()) - adapter
    assert (plan["kind"], plan["rank"], plan["adapted_modules"]) == ("lora", 8, 6)
    assert plan["bytes"]["weights_on_disk"] == sum(
        path.stat().st_size for folder in saved for path in folder.glob("*.safetensors"))
    assert plan["bytes"]["adapter_vectors"] == 8 * 4 * adapter


def test_tokens_time_and_log_probabilities_follow_the_rows(saved: tuple[Path, Path], pair: CheckpointPair) -> None:
    plan, chat = estimate(pair, ROWS, CONFIG, device="cpu"), examiner(open_tiny(*saved)[1]).chat
    tokens = sum(len(chat.prompt_ids(row)) + 10 for row in (*ROWS.harmful, *ROWS.retain))
    assert plan["fit_tokens_at_most"] == tokens
    assert plan["bytes"]["log_probabilities_at_most"] == 2 * 10 * 257 * 4
    assert plan["rows"] == {"harmful_fit": 2, "retain_fit": 2, "harmful_held_out": 1, "benign_held_out": 0,
                            "task_held_out": 1, "untouched_held_out": 0}
    work = plan["gradient_passes_at_most"] * tokens * plan["parameters"] * FLOPS_PER_PARAMETER_TOKEN["gradient"]
    assert plan["seconds_about"] == pytest.approx(work / MEASURED_FLOPS["cpu"], abs=0.05)
    many = replace(ROWS, harmful=ROWS.harmful * 200)
    seconds = {device: estimate(pair, many, CONFIG, device=device)["seconds_about"] for device in MEASURED_FLOPS}
    assert seconds["cuda"] < seconds["cpu"]


@pytest.mark.parametrize(("engine", "rows"), [("fisher", 2), ("cg", 0), ("identity", 0)])
def test_only_the_fisher_engine_keeps_a_gradient_a_row(pair: CheckpointPair, engine: str, rows: int) -> None:
    plan = estimate(pair, ROWS, replace(CONFIG, engine=engine), device="cpu")
    assert plan["engine"] == engine and plan["bytes"]["fisher_rows"] == rows * plan["adapter_parameters"] * 4


@pytest.mark.parametrize(("engine", "passes"), [("ekfac", 3), ("fisher", 2), ("cg", 2), ("identity", 2)])
def test_passes_and_kronecker_factors_are_those_of_the_engine(pair: CheckpointPair, saved: tuple[Path, Path],
                                                              engine: str, passes: int) -> None:
    config = replace(CONFIG, engine=engine)
    plan = estimate(pair, ROWS, config, device="cpu")
    assert plan["gradient_passes_at_most"] == config.max_steps + passes
    full = estimate(open_pair(str(saved[0]), str(saved[0]), rank=16, read_weights=False), ROWS, config, device="cpu")
    scored_again = {"ekfac": 2, "fisher": 1, "cg": 1, "identity": 0}[engine]  # by a fresh adapter
    assert full["gradient_passes_at_most"] == config.max_steps + passes + scored_again
    live = open_tiny(*saved)[1].adapter()
    squares = sum(4 * side * side for leaf in live.leaves.values() for side in leaf.shape)
    assert plan["bytes"]["kronecker_factors"] == (squares if engine == "ekfac" else 0)


def test_a_full_checkpoint_counts_its_own_weights_and_a_fresh_adapter(saved: tuple[Path, Path]) -> None:
    plan = estimate(open_pair(str(saved[0]), str(saved[0]), rank=16, read_weights=False), ROWS, CONFIG, device="cpu")
    live = open_tiny(saved[0], saved[0])[1].adapter()
    assert (plan["kind"], plan["rank"], plan["adapted_modules"]) == ("full", 16, 14)
    assert plan["adapter_parameters"] == sum(leaf.numel() for leaf in live.leaves.values())


def test_the_method_that_would_run_is_in_the_plan(pair: CheckpointPair) -> None:
    for method, engine in (("curvature", CONFIG.engine), ("anchor-cg", CONFIG.engine), ("scale", None)):
        plan = estimate(pair, ROWS, replace(CONFIG, method=method), device="cpu")
        assert (plan["method"], plan["engine"]) == (method, engine)


def test_warnings_of_checkpoints_and_rows_are_in_the_plan(pair: CheckpointPair) -> None:
    warned = replace(ROWS, warnings=(("W_ROWS", "one"),))
    plan = estimate(replace(pair, warnings=(("W_PAIR", "two"),)), warned, CONFIG, device="cpu")
    assert plan["warnings"] == [{"code": "W_PAIR", "message": "two"}, {"code": "W_ROWS", "message": "one"}]


def test_a_plan_counts_prompts_without_room_for_an_answer(pair: CheckpointPair) -> None:
    rows = selection(harmful=[record("bad"), record("x" * 200)])
    found = estimate(pair, rows, RestoreConfig("b", "t"), device="cpu")
    assert found["rows"]["harmful_fit"] == 1
    assert [each["message"][:9] for each in found["warnings"] if each["code"] == "W_TOO_LONG"] == ["1 prompts"]


def test_a_plan_counts_prompts_that_an_attack_of_the_gate_makes_too_long(saved: tuple[Path, Path],
                                                                        tmp_path: Path) -> None:
    files = {}
    for name, words in (("harmful", "bad"), ("benign", "bread")):
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text("".join(f"{words} {i}\n" for i in range(9)), encoding="utf-8")
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules:\n- {metric: coherence_rate, attack: 'template:story', min_lower: 0.5}\n", encoding="utf-8")
    found = pipeline.plan(replace(CONFIG, base=str(saved[0]), tuned=str(saved[1]), harmful=(str(files["harmful"]),),
                                  benign=(str(files["benign"]),), gate=str(gate)))
    assert [each["message"] for each in found["warnings"] if "attack" in each["message"]] == [
        f"{found['rows']['harmful_held_out']} prompts of attack template:story leave no room for an answer and were "
        "not asked"]


def test_weights_that_have_other_names_in_their_files_are_counted(pair: CheckpointPair,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = estimate(pair, ROWS, CONFIG, device="cpu")
    monkeypatch.setattr(planning, "read_headers", lambda folder: {  # as Gemma 3's, with images
        f"language_model.{name}": info for name, info in read_headers(folder).items()})
    assert estimate(pair, ROWS, CONFIG, device="cpu") == wanted


def test_no_weights_are_read(pair: CheckpointPair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    for module in (loading, session):
        monkeypatch.setattr(module, "load_model", fail)
    assert estimate(pair, ROWS, CONFIG, device="cpu")["gradient_passes_at_most"] == 6


def test_an_absent_chat_template_is_found_before_any_work(saved: tuple[Path, Path], pair: CheckpointPair,
                                                          tmp_path: Path) -> None:
    import shutil

    bare = shutil.copytree(saved[0], tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(MismatchError, match="chat template"):
        estimate(replace(pair, tokenizer_dir=bare), ROWS, CONFIG, device="cpu")
