"""Nothing that leaves the machine shows where it was made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from saferestore.core.config import RestoreConfig, read_yaml, to_yaml
from saferestore.core.report.share import command_line, environment, requirements, shareable, shareable_settings


@pytest.mark.parametrize(("text", "expected"), [
    ("owner/name", "owner/name"), ("owner/name@main+other/adapter@v1", "owner/name@main+other/adapter@v1"),
    ("relative/file.jsonl:chat", "relative/file.jsonl:chat"), ("/secret/place/base", "base"), ("-", "-"),
    ("/secret/base+/secret/adapter@main", "base+adapter@main"), ("/secret/rows.csv:alpaca", "rows.csv:alpaca"),
    ("~/models/base", "base"), ("../base", "../base"),
    ("suffix:/secret/words.txt", "suffix:words.txt"), ("suffix:~/secret/words.txt", "suffix:words.txt"),
    ("mine=/secret/rows.csv:chat", "mine=rows.csv:chat"), ("a=suffix:/secret/words.txt", "a=suffix:words.txt"),
    ("suffix:words/a.txt", "suffix:words/a.txt"), ("prefill:2", "prefill:2"),
    ("./mine.yaml=/secret/guard", "./mine.yaml=guard"), ("rubrics/mine.yaml=~/guard", "rubrics/mine.yaml=guard"),
    ("/secret/mine.yaml=/secret/guard@main", "mine.yaml=guard@main"), ("arc,/secret/own.yaml", "arc,own.yaml"),
    ("/secret/a.yaml,/secret/b.yaml", "a.yaml,b.yaml"), ("mine=https://example.org/a", "mine=https://example.org/a"),
    ("mood:~nobody-here", "mood:~nobody-here"),
    ("https://example.org/a/b", "https://example.org/a/b"), ("http://example.org/a", "http://example.org/a")])
def test_absolute_paths_are_cut(text: str, expected: str) -> None:
    assert shareable(text) == expected


def test_a_path_inside_the_working_folder_stays_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shareable(f"{tmp_path}/a/base") == "a/base"


def test_the_command_repeats_every_setting_that_is_no_default() -> None:
    config = RestoreConfig(base="a b", tuned="t", task=("x.jsonl", "y.csv:alpaca"), max_drift=0.02, controls=False,
                           low_memory=True, system_prompt="be kind", force=True, limit=6.0)
    assert command_line(config) == ("saferestore restore 'a b' t --task x.jsonl --task y.csv:alpaca --max-drift 0.02 "
                                    "--limit 6 --low-memory --no-controls --system-prompt 'be kind' -o OUT")


def test_settings_come_back_from_the_file_that_is_written(tmp_path: Path) -> None:
    config = RestoreConfig(base="b", tuned="t", task=("x.jsonl",), max_drift=0.02)
    (tmp_path / "config.yaml").write_text(to_yaml(shareable_settings(config)), encoding="utf-8")
    names = [field.name for field in dataclasses.fields(RestoreConfig)]
    assert RestoreConfig(**read_yaml(tmp_path / "config.yaml", names)) == config


def test_repeating_never_overwrites() -> None:
    assert not yaml.safe_load(to_yaml(shareable_settings(RestoreConfig(base="b", tuned="t", force=True))))["force"]


def test_versions_are_listed_and_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch==" in requirements() and requirements().startswith("# saferestore ")
    assert {"python", "torch", "platform"} <= set(environment())
    assert not [value for value in environment().values() if "/" in value]


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saferestore.core.report.share.PACKAGES", ("numpy", "no-such-package"))
    assert "no-such-package" not in requirements() and "no-such-package" not in environment()
