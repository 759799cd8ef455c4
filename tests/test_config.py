"""Settings: what is refused when they are made, and their way through YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from saferestore.core import config
from saferestore.core.config import EvalConfig, RestoreConfig, no_progress, read_yaml, to_yaml
from saferestore.core.config.strict_yaml import load_yaml
from saferestore.core.errors import MismatchError, NumericalError, SaferestoreError, UsageError

FIELDS = [field.name for field in dataclasses.fields(RestoreConfig)]


@pytest.mark.parametrize(("field", "value", "hint"), [
    ("dtype", "float8", "did you mean float"),
    ("engine", "fischer", "did you mean fisher?"),
    ("redact", "everything?", "one of: all, auto, none"),
    ("objective", "anchor+acsent", "did you mean ascent?"),
    ("objective", "", "one of: anchor, ascent, match"),
])
def test_an_unknown_name_is_refused_with_the_nearest_known_one(field: str, value: str, hint: str):
    with pytest.raises(UsageError, match=f"--{field}") as caught:
        RestoreConfig("b", "t", **{field: value})
    assert hint in caught.value.hint


@pytest.mark.parametrize("field", ["max_steps", "fit_rows", "held_out_rows", "max_new_tokens", "batch_size", "rank",
                                   "max_drift"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_count_or_budget_that_is_not_positive_is_refused(field: str, value: float):
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')}"):
        RestoreConfig("b", "t", **{field: value})


@pytest.mark.parametrize("field", ["seed", "hold_out_categories", "relearn"])
def test_a_negative_seed_or_count_is_refused(field: str):
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} -1"):
        RestoreConfig("b", "t", **{field: -1})


def test_relearning_leaves_rows_to_ask():
    with pytest.raises(UsageError, match="no held-out row would be left to ask - --relearn 8"):
        RestoreConfig("b", "t", relearn=8, held_out_rows=8)
    assert RestoreConfig("b", "t", relearn=7, held_out_rows=8).relearn == 7


@pytest.mark.parametrize("value", ["", "large", "-3", "1.5", "0", 1.5, None])
def test_rows_a_batch_are_a_number_or_auto(value: object):
    with pytest.raises(UsageError, match="--batch-size"):
        RestoreConfig("b", "t", batch_size=value)
    assert (config.rows_a_batch("auto"), config.rows_a_batch("8"), config.rows_a_batch(8)) == ("auto", 8, 8)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_limit_is_positive(value: float):
    with pytest.raises(UsageError, match="--limit"):
        RestoreConfig("b", "t", limit=value)


@pytest.mark.parametrize("value", [1.7, 1.0000001, 20.5])
def test_a_limit_is_a_share_or_whole(value: float):
    for kind in (lambda: RestoreConfig("b", "t", limit=value), lambda: EvalConfig("m", limit=value)):
        with pytest.raises(UsageError, match=f"a whole number of rows or a share below 1 - --limit {value}") as caught:
            kind()
        assert f"give {int(value)} or {int(value) + 1}" in caught.value.hint
    assert [EvalConfig("m", limit=whole).limit for whole in (0.1, 1, 1.0, 20)] == [0.1, 1, 1, 20]


@pytest.mark.parametrize(("kind", "field"), [(RestoreConfig, "task"), (config.ScoreConfig, "harmful"),
                                             (config.CompareConfig, "benign")])
def test_one_file_without_its_comma_is_refused_and_not_read_letter_by_letter(kind: type, field: str):
    with pytest.raises(UsageError, match=f"several are meant - {field}='rows.jsonl'") as caught:
        kind("b", "t", **{field: "rows.jsonl"})
    assert caught.value.hint == "give ('rows.jsonl',)" and kind("b", "t", **{field: ("rows.jsonl",)})


def test_all_that_a_run_reads_is_known():
    made = RestoreConfig("b", "t", harmful=("h",), safe=("s",), task=("k", "l"), benign=("n",), untouched=("u",),
                         gate="g", method="resta", unaligned="w", chat_template="c")
    assert set(made.reads) == set("bthsklnugwc")


def test_sums_of_objectives_are_allowed():
    assert RestoreConfig("b", "t", objective="anchor+ascent+match").objective == "anchor+ascent+match"


def test_settings_cannot_change_after_they_were_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RestoreConfig("b", "t").engine = "nonsense"  # type: ignore[misc]


def test_yaml_that_was_written_reads_back_as_the_same_settings(tmp_path: Path):
    made = RestoreConfig("b", "t", harmful=("h.jsonl", "x.csv:csv"), max_drift=0.02, system_prompt="Sei höflich: ja?")
    (tmp_path / "c.yaml").write_text(to_yaml(made), encoding="utf-8")
    assert RestoreConfig(**read_yaml(tmp_path / "c.yaml", FIELDS)) == made


def test_yaml_keys_are_sorted_and_repeat_byte_for_byte():
    text = to_yaml(RestoreConfig("b", "t"))
    keys = [line.split(":")[0] for line in text.splitlines()]
    assert keys == sorted(FIELDS) and text == to_yaml(RestoreConfig("b", "t"))


def test_yaml_keys_may_be_written_with_dashes(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("max-drift: 0.5\nharmful: [a, b]\n", encoding="utf-8")
    assert read_yaml(tmp_path / "c.yaml", FIELDS) == {"max_drift": 0.5, "harmful": ("a", "b")}


@pytest.mark.parametrize("content", ["max_drift: 0.5\nseed: 1\nmax_drift: 0.05\n", "max_drift: 0.5\nmax-drift: 0.05\n"])
def test_a_setting_that_is_given_twice_is_refused(tmp_path: Path, content: str):
    (tmp_path / "c.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="`max.drift` is given twice") as caught:
        read_yaml(tmp_path / "c.yaml", FIELDS)
    assert "each setting once" in caught.value.hint


def test_a_setting_given_twice_is_refused_where_neither_key_is_the_fields_own(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("hold-out_categories: 1\nhold_out-categories: 2\n", encoding="utf-8")
    with pytest.raises(UsageError, match="`hold-out_categories` is given twice"):
        read_yaml(tmp_path / "c.yaml", FIELDS)


def test_a_mapping_that_takes_over_another_may_say_one_of_its_keys_anew():
    """`n` is made after `c`, which is why keys are looked at as they are written."""
    text = "a: &a {x: 1}\nn: {b: &b {<<: *a, x: 2}}\nc: {<<: *b}\n"
    assert load_yaml(text) == yaml.safe_load(text) == {"a": {"x": 1}, "n": {"b": {"x": 2}}, "c": {"x": 2}}


@pytest.mark.parametrize("text", ["!!map harm", "a: !!map [1]", "a: !!int many", "a: 2026-13-45", "a: !!bool maybe"])
def test_a_value_that_is_none_of_its_kind_is_no_yaml(text: str):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("max_drfit: 0.5\n", encoding="utf-8")
    with pytest.raises(UsageError, match="max_drfit") as caught:
        read_yaml(tmp_path / "c.yaml", FIELDS)
    assert caught.value.hint == "did you mean max_drift?"


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xfa", None], ids=["not-yaml", "not-utf-8", "missing"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="settings.yaml"):
        read_yaml(path, FIELDS)


@pytest.mark.parametrize("content", ["- a\n- b\n", "just text\n", ""])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, content: str):
    (tmp_path / "c.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="no mapping"):
        read_yaml(tmp_path / "c.yaml", FIELDS)


def test_a_name_far_from_all_is_answered_with_the_list():
    assert config.nearest("zzz", ("b", "a")) == "one of: a, b"


def test_every_error_has_two_lines_and_its_exit_code():
    kinds = {SaferestoreError: 1, UsageError: 2, MismatchError: 5, NumericalError: 1}
    for kind, code in kinds.items():
        error = kind("what", hint="way out")
        assert (str(error), error.what, error.hint, error.exit_code) == ("what", "what", "way out", code)


def test_progress_can_be_ignored():
    no_progress("stage", 1, 2)


def test_a_tilde_is_the_home_wherever_a_path_may_stand_and_a_path_is_text(monkeypatch: pytest.MonkeyPatch):
    """Shells leave `--task=~/x`, `NAME=~/x` and every `~` of a YAML file as they are."""
    monkeypatch.setenv("HOME", "/home/me")
    made = RestoreConfig(Path("base"), "~/tuned", task=("~/a.jsonl:chat", Path("b.jsonl"), "c~d"), system_prompt="~/x")
    assert (made.base, made.tuned, made.system_prompt) == ("base", "/home/me/tuned", "~/x")
    assert made.task == ("/home/me/a.jsonl:chat", "b.jsonl", "c~d")
    asked = EvalConfig("m", harmful=("mine=~/rows.csv", "~nobody-here/x"), attack=("suffix:~/words", "prefill:2"))
    assert asked.harmful == ("mine=/home/me/rows.csv", "~nobody-here/x")
    assert asked.attack == ("suffix:/home/me/words", "prefill:2")
    assert EvalConfig("https://host/~me/x").model == "https://host/~me/x"
