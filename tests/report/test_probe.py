"""What a probe writes: valid, the same bytes twice, readable without styles, hostile names harmless."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from probe_cases import probed, unmeasured
from saferestore.core.report.probe import numbers
from saferestore.core.report.probe_figures import figures_of, line
from saferestore.core.report.probe_files import interval, write_pictures, write_probe
from saferestore.core.report.probe_schema import validate

CASES = {"measured": probed(), "unmeasured": unmeasured(),
         "without curvature": probed(curvature=None, curvature_reason="--products 0"),
         "one point": probed(surface={"axes": [[0.0], [0.0]], "direction_seeds": [1, 2], "gaps": {"harmful": 0},
                                      "losses_nats_per_token": {"harmful": [[0.5]]}})}


@pytest.mark.parametrize("found", CASES.values(), ids=CASES)
def test_files_are_whole_and_the_same_bytes_twice(found: dict[str, Any], tmp_path: Path) -> None:
    validate(found)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_probe(folder, found)
    names = {path.name for path in folders[0].iterdir()}
    assert names == {"report.json", "report.html", *(f"{name}.svg" for name in figures_of(found))}
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)


def test_pictures_can_be_had_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, probed())
    assert {path.name for path in tmp_path.iterdir()} == {"surfaces.svg", "lines.svg", "spectra.svg", "modules.svg"}
    for path in tmp_path.iterdir():
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")


def test_pictures_need_no_style_sheet_and_have_no_date_or_colour(tmp_path: Path) -> None:
    write_probe(tmp_path, probed())
    for path in tmp_path.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "<style" not in text and ' style="' not in text and "<dc:date>" not in text
        colours = {match.lower() for match in re.findall(r"#[0-9a-fA-F]{6}\b", text)}
        assert all(colour[1:3] == colour[3:5] == colour[5:7] for colour in colours)


def test_pictures_in_one_page_have_ids_of_their_own_and_a_name(tmp_path: Path) -> None:
    write_probe(tmp_path, probed())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]*)"', page)
    meant = re.findall(r'(?:href="|url\()#([^")]*)', page)
    assert len(ids) == len(set(ids)) and meant and set(meant) <= set(ids)
    assert re.findall(r'<svg role="img" aria-label="(\w+)"', page) == ["surfaces", "lines", "spectra", "modules"]


def test_the_page_shows_every_number_without_scripts_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    hostile = probed(warnings=[{"code": "W_X", "message": "<script>alert(1)</script>"}])
    write_probe(tmp_path, hostile)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    for shown in ("LlamaForCausalLM", "rank 8", "it reads its own format", "0.5 (0.4 to 0.6)", "1 of harmful",
                  "3 &plusmn; 0.5", "-0.5 (&plusmn;0.01)", "0.25 (0.2 to 0.3)", "25% (20 to 30)", "10, 6, 14",
                  "Gauss-Newton", "Attention:\neager", "coordinates in float32"):
        assert shown in page


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    write_probe(tmp_path, unmeasured())
    assert "Not measured: the adapter has no exact LoRA form" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("changes", [{"verdict": "good"}, {"losses": [{"set": "a"}]}, {"surface": 3},
                                     {"exit_code": 5}, {"seed": float("nan")}], ids=str)
def test_a_document_that_breaks_its_contract_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="breaks its schema"):
        validate(probed(**changes))


def test_gaps_are_null() -> None:
    assert numbers(np.array([[1.0, np.nan], [np.nan, 2.0]])) == [[1.0, None], [None, 2.0]]


def test_a_line_goes_through_the_middle() -> None:
    heights = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
    assert line(heights, 0) == [2, 5, 8] and line(heights, 1) == [4, 5, 6]


def test_a_number_without_an_interval_stands_alone() -> None:
    assert interval({"value": 0.5, "ci_low": None, "ci_high": None}) == "0.5"
