"""A whole comparison of tiny models: its document, the same twice, its page and its pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from saferestore.core import pipeline
from saferestore.core.config import CompareConfig
from saferestore.core.errors import UsageError
from saferestore.core.geometry.verdict import LABELS
from saferestore.core.report.compare_figures import FIGURES
from saferestore.core.report.compare_rows import modules, shares, spread_text
from saferestore.core.report.compare_schema import validate
from saferestore.core.report.figures import draw

from ..talk import COMPLIANCE, refuses, save_pair, script

SMALL: dict[str, Any] = {"rows": 12, "points": 3, "directions": 10, "draws": 2, "top": 3, "device": "cpu",
                         "max_new_tokens": 40, "reach": 0.5}


def rows_file(folder: Path, name: str) -> str:
    """Twelve short prompts."""
    file = folder / f"{name}.jsonl"
    answer = {"answer": "done"} if name == "task" else {}
    turns = [[{"role": "user", "content": f"{name} {i}"}, {"role": "assistant", "content": "done " * (1 + i % 4)}]
             for i in range(12)]
    lines = [{"messages": turn} if answer else {"prompt": turn[0]["content"]} for turn in turns]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(file)


def run(folder: Path, out: Path | None = None, **changes: Any) -> dict[str, Any]:
    base, tuned = folder / "base", folder / "tuned"
    files = {name: (rows_file(folder, name),) for name in ("harmful", "benign", "task")}
    with script(tuned=lambda prompt: COMPLIANCE, base=refuses("harmful")):
        return pipeline.compare(CompareConfig(base=str(base), tuned=str(tuned), **(files | SMALL | changes)), out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pair")
    save_pair(made)
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return run(folder, folder / "out")


def test_the_document_keeps_its_contract_and_holds_every_measure(found: dict[str, Any]) -> None:
    validate(found)
    told = {(row["against"], row["set"], row["measure"]) for row in found["similarity"]}
    assert {("tuned", name, measure) for name in ("harmful", "benign", "task") for measure in LABELS} <= told
    assert ("shuffled", "harmful", "surface_pearson") in told and ("itself", "task", "eigenspace_overlap") in told
    assert {row["gradient"] for row in found["shares"]} == {"harmful", "benign", "task", "safety"}
    assert {row["system"] for row in found["losses"]} == {"base", "tuned", "shuffled"}


def test_the_base_is_not_wholly_like_itself_with_other_labels_drawn(found: dict[str, Any]) -> None:
    most = {(row["set"], row["measure"]): row["value"] for row in found["similarity"] if row["against"] == "itself"}
    assert len(most) == 6
    for name in ("harmful", "benign", "task"):
        assert 0 < most[name, "eigenspace_overlap"] < 0.99
        assert most[name, "spectral_distance_decades"] > 0.001


def test_the_line_ends_at_both_models(found: dict[str, Any]) -> None:
    losses = {(row["system"], row["set"]): row["loss_nats_per_token"] for row in found["losses"]}
    line = found["interpolation"]
    for place, system in ((line["steps"].index(0), "base"), (line["steps"].index(1), "tuned")):
        for name, values in line["losses_nats_per_token"].items():
            assert values[place] == pytest.approx(losses[system, name], rel=1e-5)


def test_the_middle_of_each_landscape_is_its_model(found: dict[str, Any]) -> None:
    for row in found["losses"]:
        surface = found["landscapes"]["systems"][row["system"]]["losses_nats_per_token"][row["set"]]
        assert surface[1][1] == pytest.approx(row["loss_nats_per_token"], rel=1e-6)


def test_the_same_seed_gives_the_same_document_apart_from_run(folder: Path, found: dict[str, Any]) -> None:
    again = run(folder)
    assert json.dumps({**again, "run": {}}) == json.dumps({**found, "run": {}})


def test_every_file_is_written_and_the_page_needs_no_other(folder: Path, found: dict[str, Any]) -> None:
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"report.json", "report.html", *(f"{name}.svg" for name in FIGURES)}
    page = (folder / "out/report.html").read_text(encoding="utf-8")
    assert page.count("<svg ") == len(FIGURES) and "<script" not in page
    named_only = re.sub(r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", page, flags=re.DOTALL)
    assert "://" not in named_only and 'src="' not in named_only
    assert all(re.escape(sentence.split(":")[0]) in re.escape(page) for sentence in found["sentences"])
    assert json.loads((folder / "out/report.json").read_text(encoding="utf-8")) == found


def test_pictures_are_the_same_twice_and_need_no_style_sheet(found: dict[str, Any]) -> None:
    first, second = draw(FIGURES, found), draw(FIGURES, found)
    assert first == second
    assert all(svg.startswith("<svg") and "style" not in svg for svg in first.values())


def test_gaps_are_drawn_and_numbers_that_are_not_known_are_dashes(found: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(found))
    surface = broken["landscapes"]["systems"]["tuned"]
    surface["losses_nats_per_token"]["harmful"] = [[None] * 3 for _ in range(3)]
    surface["gaps"]["harmful"] = 9
    broken["shares"], broken["similarity"] = [], []
    validate(broken)
    assert draw(FIGURES, broken)["landscapes"] != draw(FIGURES, found)["landscapes"]
    assert spread_text(None, {}) == "-" and not list(shares(broken)) and modules(found)


def test_a_document_that_breaks_its_contract_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="verdict"):
        validate({**found, "verdict": "maybe"})


def test_an_eigenspace_of_more_dimensions_than_rows_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="as many rows as dimensions - --top 13, 12 rows"):
        run(folder, top=13)


def test_an_input_is_never_replaced(folder: Path) -> None:
    with pytest.raises(UsageError, match="OUT would replace"):
        run(folder, folder, force=True)
    assert (folder / "tuned").is_dir()
