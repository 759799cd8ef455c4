"""What `--judge` may say, and what is answered to what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from saferestore.core.errors import UsageError
from saferestore.core.evaluation.judges import JUDGES, JudgeSpec, make_judge, parse_judge, parse_judges
from saferestore.core.evaluation.samples import Finding

RUBRIC = ("prompt: '{{ prompt }} {{ answer }}'\n"
          "parse: {harmful: {regex: '(yes|no)', positive: ['yes'], negative: ['no']}}\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own=strict.yaml"
    path.write_text(RUBRIC, encoding="utf-8")
    return path


def test_every_judge_of_the_table_can_be_asked_for() -> None:
    for name, row in JUDGES.items():
        spec = parse_judge(f"{name}=owner/model" if row.kind == "rubric" else name)
        assert (spec.name, spec.kind, spec.model) == (name, row.kind, "owner/model" if row.kind == "rubric" else None)
        assert (spec.rubric is not None) == (row.kind == "rubric")


@pytest.mark.parametrize("model", ["owner/model@main", "./a=b/model", "x.yaml=y"])
def test_a_rubric_file_and_a_model_may_have_an_equals_sign_in_their_names(own: Path, model: str) -> None:
    spec = parse_judge(f"{own}={model}")
    assert (spec.name, spec.kind, spec.model) == ("own=strict", "rubric", model)


# as typed -> (words of the error, hint)
WRONG = {
    "refusal-wordings": ("unknown judge - --judge refusal-wordings", "did you mean refusal-wording?"),
    "wild-guard=m": ("unknown judge", "did you mean wildguard?"),
    "": ("unknown judge", "one of: base-likelihood"),
    "refusal-wording=m": ("takes no model", "write --judge refusal-wording"),
    "harmbench": ("needs a model - --judge harmbench", "--judge harmbench=cais/HarmBench-Llama-2-13b-cls"),
    "harmbench=": ("needs a model", "--judge harmbench=cais/HarmBench-Llama-2-13b-cls"),
    "strongreject": ("needs a model", "--judge strongreject=ID_OR_PATH"),
    "none.yaml=m": ("cannot read rubric - none.yaml", "a rubric is a YAML file"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_judge_that_cannot_be_is_answered_with_the_way_out(text: str) -> None:
    what, hint = WRONG[text]
    with pytest.raises(UsageError, match=what) as error:
        parse_judge(text)
    assert error.value.hint.startswith(hint)


def test_a_rubric_file_of_the_users_needs_a_model_and_a_name_of_its_own(own: Path) -> None:
    with pytest.raises(UsageError, match="needs a model"):
        parse_judge(str(own))
    own.write_text("name: harmbench\n" + RUBRIC, encoding="utf-8")
    with pytest.raises(UsageError, match="the name `harmbench` is taken"):
        parse_judge(f"{own}=m")


def test_two_judges_of_one_name_are_refused() -> None:
    assert [spec.name for spec in parse_judges(["refusal-wording", "harmbench=m"])] == ["refusal-wording", "harmbench"]
    with pytest.raises(UsageError, match="two judges of one name `harmbench`"):
        parse_judges(["harmbench=m", "refusal-wording", "harmbench=other"])


def test_judges_are_the_same_only_with_the_same_rubric_and_model(own: Path) -> None:
    first = parse_judge(f"{own}=m")
    assert first.identity == parse_judge(f"{own}=m").identity != parse_judge(f"{own}=n").identity
    own.write_text(RUBRIC + "note: changed\n", encoding="utf-8")
    assert parse_judge(f"{own}=m").identity != first.identity
    assert parse_judge("refusal-wording").identity == "refusal-wording"


def test_a_judge_of_answers_needs_no_model() -> None:
    judge = make_judge(parse_judge("refusal-wording"))
    assert judge(["p"], ["I cannot help with that."]) == [Finding(harmful=False, refused=True)]


def test_the_judge_of_likelihoods_cannot_judge_answers() -> None:
    with pytest.raises(UsageError, match="needs the systems, not their answers"):
        make_judge(JudgeSpec("base-likelihood", "likelihood"))
