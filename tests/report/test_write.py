"""The bundle beside the adapter: whole, the same bytes twice, hostile text shown as text."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_cases import CONFIG, relearned, report, without_task
from saferestore.core.config import RestoreConfig
from saferestore.core.report.card import carrier_hub_id, escaped, model_card
from saferestore.core.report.html import bar, page
from saferestore.core.report.share import command_line
from saferestore.core.report.write import report_text, sha256, write_bundle

FILES = {"saferestore.json", "report.html", "README.md", "reproduce/config.yaml", "reproduce/COMMAND.txt",
         "reproduce/requirements.txt", "reproduce/SHA256SUMS"}
HOSTILE = "<script>alert(1)</script> [x](http://e.vil) **b** \x1b[31m | {{ 7*7 }}"


def test_a_card_loads_the_tokenizer_that_lies_beside_it_or_that_of_the_model_below() -> None:
    made = report()
    own = {**made, "outputs": {**made["outputs"], "tokenizer_config.json": {"sha256": "0" * 64, "bytes": 2}}}
    assert 'AutoTokenizer.from_pretrained(\'PATH_TO_THIS_FOLDER\')' in model_card(own, CONFIG)
    [loaded] = re.findall(r"AutoModelForCausalLM.from_pretrained\((.*)\)", model_card(made, CONFIG))
    assert f"AutoTokenizer.from_pretrained({loaded})" in model_card(made, CONFIG)


def gated(mode: str, name: str = "harm") -> dict[str, Any]:
    """A report whose gate failed although the verdict is `restored`."""
    rule = {"rule": name, "severity": "error", "text": f"fail: harmful_rate of restored on {name}: 0.1, (n 128)"}
    rules = [rule, {**rule, "rule": "aside", "severity": "warning"}]
    return report(exit_code=3, gate={"verdict": "fail", "mode": mode, "rules": rules})


def written(folder: Path, made: dict[str, Any], config: RestoreConfig = CONFIG) -> dict[str, bytes]:
    """All files of a bundle written next to an adapter, by name."""
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    write_bundle(folder, made, config, command_line(config))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hostile() -> dict[str, Any]:
    """A report in which every text of foreign origin tries to be more than text."""
    made = without_task()
    made["inputs"]["base"]["ref"] = made["inputs"]["tuned"]["ref"] = HOSTILE
    made["inputs"]["data"]["harmful"]["name"] = made["stopped_because"] = HOSTILE
    made["modules"][1]["module"] = made["warnings"][0]["message"] = HOSTILE
    made["after"]["task_accuracy_reason"] = HOSTILE
    return made


def test_every_promised_file_is_written(tmp_path: Path) -> None:
    assert set(written(tmp_path / "out", report())) == FILES | {"adapter_model.safetensors"}


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a", report()) == written(tmp_path / "b", copy.deepcopy(report()))


def test_times_and_memory_change_the_json_report_alone(tmp_path: Path) -> None:
    later = report(run={"started_utc": "2031-05-05T05:05:05Z", "seconds": {"total": 99.0}, "peak_memory_bytes": 5})
    first, second = written(tmp_path / "a", report()), written(tmp_path / "b", later)
    assert [name for name in first if first[name] != second[name]] == ["saferestore.json"]
    without_run = [{k: v for k, v in json.loads(f["saferestore.json"]).items() if k != "run"} for f in (first, second)]
    assert without_run[0] == without_run[1]


def test_the_written_report_is_the_report(tmp_path: Path) -> None:
    assert json.loads(written(tmp_path / "out", report())["saferestore.json"]) == report()


def test_a_broken_report_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="breaks its schema"):
        written(tmp_path / "out", report(verdict="fine"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter_model.safetensors"]


def test_a_number_that_is_not_finite_is_never_printed() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        report_text({"value": float("nan")})


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    files = written(tmp_path / "out", report())
    listed = {line.split("  ")[1] for line in files["reproduce/SHA256SUMS"].decode().splitlines()}
    assert listed == set(files) - {"saferestore.json", "reproduce/SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--strict", "reproduce/SHA256SUMS"], cwd=tmp_path / "out", check=True,
                   capture_output=True)
    assert sha256(tmp_path / "out" / "README.md") in files["reproduce/SHA256SUMS"].decode()


def test_no_file_shows_an_absolute_path(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, base=f"{tmp_path}/models/base", tuned="/secret/place/tuned",
                                 task=("/secret/place/task.jsonl:chat",))
    files = written(tmp_path / "out", report(), config)
    assert not [name for name, content in files.items() if b"/secret" in content or str(tmp_path).encode() in content]


class Outline(html.parser.HTMLParser):
    """The tags of a page, and whether each is closed."""

    VOID = frozenset({"meta", "rect", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("made", [report(), without_task(), hostile(), gated("enforce", HOSTILE), report(
    relearning=relearned(2, None)), report(
    controls=[], controls_reason="--no-controls", restored_fraction=None, restored_fraction_reason="base below tuned")])
def test_the_page_is_well_formed_and_has_no_scripts_or_links(made: dict[str, Any]) -> None:
    outline = Outline()
    outline.feed(page(made, CONFIG))
    outline.close()
    assert not outline.open
    assert not outline.seen & {"script", "a", "img", "link", "iframe"}


def test_the_page_shows_what_matters() -> None:
    text = page(without_task(), CONFIG)
    for expected in ("restored", "97.7% (94.7-100)", "W_NO_TASK_ROWS", "no task rows were given", "scale", "random",
                     "identity", "model.layers.1.self_attn.q_proj", "smoke test", "-o OUT",
                     "<th>control</th><th>drift, nats per token</th>"):
        assert expected in text


def test_relearning_stands_on_the_page_and_in_the_card_where_it_was_tried() -> None:
    made = report(relearning=relearned(18, None))
    text = page(made, CONFIG)
    assert "of 32 unseen harmful prompts" in " ".join(text.split()).replace("many of", "of")
    assert '<th scope="row">restored</th><td>not within 24 updates</td>' in text and "<td>0, 3, 17</td>" in text
    assert "Trained on 4 harmful rows, harm is back not within 24 updates (base: after 18 updates)." in model_card(
        made, CONFIG)
    assert "harmful rows" not in page(report(), CONFIG) and "harm is back" not in model_card(report(), CONFIG)


@pytest.mark.parametrize(("mode", "title"), [("enforce", "Gate: fail"), ("advisory", "Gate: fail (advisory)")])
def test_what_a_gate_found_stands_on_the_page_and_in_the_card(mode: str, title: str) -> None:
    text, card = page(gated(mode), CONFIG), model_card(gated(mode), CONFIG)
    assert f"<h2>{title}</h2>" in text and f"\n{title}.\n" in card
    for name in ("harm", "aside (warning)"):
        line = f"{name}: fail: harmful_rate of restored on harm: 0.1, (n 128)"
        assert f"<li>{line}</li>" in text and f"\n- {escaped(line)}\n" in card
    assert "Gate" not in page(report(), CONFIG) + model_card(report(), CONFIG)


def test_a_hostile_name_of_a_rule_stays_text() -> None:
    text, card = page(gated("enforce", HOSTILE), CONFIG), model_card(gated("enforce", HOSTILE), CONFIG)
    assert "<script>" not in text + card and "\x1b" not in text + card and "[x](http" not in card


def test_hostile_text_stays_text_on_the_page() -> None:
    text = page(hostile(), CONFIG)
    assert "&lt;script&gt;alert(1)" in text and "\x1b" not in text
    assert "{{ 7*7 }}" in text


@pytest.mark.parametrize(("value", "scale", "width"), [(0.5, 1, 50), (None, 1, 0), (3, 2, 100), (-1, 2, 0), (0, 1, 0)])
def test_a_bar_stays_in_its_track(value: float | None, scale: float, width: float) -> None:
    assert bar(value, scale) == width


def test_hostile_text_stays_text_in_the_card() -> None:
    text = model_card(hostile(), CONFIG)
    assert "<script>" not in text and "\x1b" not in text
    assert "[x](http" not in text and "\\[x\\](http" in text
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "peft"


def test_a_line_break_in_a_name_cannot_start_a_heading() -> None:
    assert escaped("a\n# b") == "a # b"


def test_a_command_cannot_leave_its_fence() -> None:
    config = dataclasses.replace(CONFIG, system_prompt="```\n# out")
    fenced = re.search(r"## Made by\n\n```\n(.*?)\n```\n\nSettings", model_card(report(), config), re.DOTALL)
    assert fenced and "```" not in fenced[1]


@pytest.mark.parametrize(("ref", "given", "expected"), [
    ("meta/Base-1.0@main", "meta/Base-1.0@main", "meta/Base-1.0"), ("meta/Base", "-", "meta/Base"),
    ("models/base", "models/base", None), ("base", "/abs/models/base", None), ("../base", "../base", None),
    ("base", "-", None)])
def test_only_a_hub_id_is_named_as_base_model(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, given: str, expected: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    made = report()
    made["inputs"]["base"]["ref"] = ref
    config = dataclasses.replace(CONFIG, base=given)
    assert carrier_hub_id(made, config) == expected
    front = yaml.safe_load(model_card(made, config).split("---\n")[1])
    assert front.get("base_model") == expected


def test_the_adapter_of_a_full_checkpoint_sits_on_the_tuned_model() -> None:
    made = report()
    made["inputs"]["tuned"] |= {"kind": "full", "ref": "owner/tuned-model"}
    config = dataclasses.replace(CONFIG, tuned="owner/tuned-model")
    front = yaml.safe_load(model_card(made, config).split("---\n")[1])
    assert front["base_model"] == "owner/tuned-model"
