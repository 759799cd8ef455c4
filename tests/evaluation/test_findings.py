"""From judged samples to rows: shots apart, agreements flat, errors counted, labels both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from saferestore.core.config import no_progress
from saferestore.core.data.generations import read_generations
from saferestore.core.errors import SaferestoreError
from saferestore.core.evaluation.examination import Examined
from saferestore.core.evaluation.findings import agreement_rows, calibrated, check_errors, given_answers, measured_of
from saferestore.core.evaluation.judges import HEX_PHI, parse_judges
from saferestore.core.evaluation.judges.run import Loading
from saferestore.core.evaluation.judging import judge_samples
from saferestore.core.evaluation.samples import Finding, Sample
from talk import COMPLIANCE, REFUSAL

HARM, SAFE, LOST = Finding(harmful=True, refused=False), Finding(harmful=False, refused=True), Finding(error="lost")


def sample(number: int, **findings: Finding) -> Sample:
    return Sample("base", "mine", "harmful", "none", "", f"r{number}", f"p{number}", "t", 1, True, findings=findings)


def task(number: int, shots: int, *, right: bool) -> Sample:
    return Sample("base", "t", "task", "none", "", f"r{number}", f"p{number}", "t", 1, True, correct=right,
                  shots=shots)


def test_rates_of_each_number_of_shots_have_their_own_name() -> None:
    found = measured_of([task(i, shots, right=i < right) for shots, right in ((0, 1), (4, 3)) for i in range(4)],
                        Examined(rows=[{"metric": "perplexity"}]))
    assert [(row["metric"], row.get("value")) for row in found.rows] == [
        ("task_accuracy", 0.25), ("task_accuracy@4", 0.75), ("perplexity", None)]


def test_agreement_is_a_flat_row_a_pair_and_a_question() -> None:
    samples = [sample(0, a=HARM, b=HARM), sample(1, a=SAFE, b=HARM), sample(2, a=SAFE, b=SAFE), sample(3, a=LOST,
                                                                                                       b=SAFE)]
    rows = agreement_rows(samples)
    assert [(r["first"], r["second"], r["about"], r["n"], r["left_out"]) for r in rows] == [
        ("a", "b", "harmful", 3, 1), ("a", "b", "refused", 3, 1)]
    assert rows[0]["agreement"] == pytest.approx(2 / 3)
    assert rows[0]["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))  # chance: (1/3)(2/3) + (2/3)(1/3)
    assert all(not isinstance(value, dict) for row in rows for value in row.values())


@pytest.mark.parametrize("most", [2, 3, -1])
def test_as_many_errors_as_allowed_are_no_failure(most: int) -> None:
    check_errors([sample(0, a=LOST, b=LOST), sample(1, a=HARM)], most)


def test_one_error_more_than_allowed_ends_the_run_and_shows_the_first() -> None:
    with pytest.raises(SaferestoreError, match="2 judgements could not be read - the first: lost") as caught:
        check_errors([sample(0, a=LOST), sample(1, a=replace(LOST, error="later"))], 1)
    assert caught.value.exit_code == 1 and "--max-errors" in caught.value.hint


XSTEST = "id,type,prompt,completion,final_label,gpt4_label\n" + "".join(
    f'v{i},{kind},"prompt {i}","{answer}",{label},{gpt}\n' for i, (kind, answer, label, gpt) in enumerate([
        ("homonyms", COMPLIANCE, "1_full_compliance", "1_full_compliance"),
        ("homonyms", REFUSAL, "2_full_refusal", "2_full_refusal"),
        ("contrast_homonyms", REFUSAL, "2_full_refusal", "I would say that it refuses."),
        ("contrast_homonyms", COMPLIANCE, "3_partial_refusal", "1_full_compliance")]))


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    path = tmp_path / "xstest_v2_completions_m_gpteval.csv"
    path.write_text(XSTEST, encoding="utf-8")
    return path


def test_answers_that_exist_are_samples_of_the_prompts_they_answer(completions: Path) -> None:
    samples = given_answers([read_generations(completions)]).samples
    assert [(s.system, s.set, s.role, s.text) for s in samples] == [
        ("m", "xstest-benign", "benign", COMPLIANCE), ("m", "xstest-benign", "benign", REFUSAL),
        ("m", "xstest-harmful", "harmful", REFUSAL), ("m", "xstest-harmful", "harmful", COMPLIANCE)]


def test_of_several_answers_to_one_prompt_the_worst_counts_wherever_they_stand(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, said in zip(files, ([("p", COMPLIANCE), ("p", REFUSAL), ("q", REFUSAL)], [("q", COMPLIANCE)]),
                          strict=True):
        file.write_text("".join(json.dumps({"prompt": prompt, "response": answer, "model": "m", "set": "s"}) + "\n"
                                for prompt, answer in (*said, ("r", REFUSAL))), encoding="utf-8")
    judged = judge_samples(given_answers(map(read_generations, files)).samples, parse_judges(("refusal-wording",)),
                           entries=(), keep=lambda entries: None, loading=Loading(device="cpu", offline=True),
                           progress=no_progress)
    found = measured_of(judged, Examined())
    assert sorted(found.verdicts[0]["hits"].values()) == [0, 1, 1]
    assert [(row["metric"], row["value"], row["n"], row["k"]) for row in found.rows[:2]] == [
        ("harmful_rate", 2 / 3, 3, 2), ("refusal_rate", 1 / 3, 3, 2)]


def test_answers_to_prompts_of_one_group_are_no_independent_evidence(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}", "response": REFUSAL, "subject": f"s{i // 5}"}) + "\n"
                            for i in range(20)), encoding="utf-8")
    assert [each.group for each in given_answers([read_generations(file)]).samples] == [f"s{i // 5}" for i in range(20)]


def test_labels_are_counted_both_ways_and_free_text_is_an_error_of_the_recorded_judge_alone(completions: Path) -> None:
    found = calibrated([str(completions)], parse_judges(("refusal-substrings",)), Loading(device="cpu", offline=True),
                       progress=no_progress)
    assert REFUSAL.startswith(tuple(HEX_PHI))
    shown = {(row["judge"], row["partial"]): (row["sensitivity"]["value"], row["sensitivity"]["n"],
                                              row["specificity"]["value"], row["specificity"]["n"], row["errors"])
             for row in found["calibration"]}
    assert shown == {("refusal-substrings", "as refusal"): (2 / 3, 3, 1.0, 1, 0),
                     ("refusal-substrings", "as compliance"): (1.0, 2, 1.0, 2, 0),
                     ("recorded", "as refusal"): (0.5, 2, 1.0, 1, 1),
                     ("recorded", "as compliance"): (1.0, 1, 1.0, 2, 1)}
    assert {row["model"] for row in found["calibration"]} == {"m"} and found["rejected"] == []


def test_an_answer_that_is_labelled_again_is_not_used_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "labelled.csv"
    path.write_text("prompt,answer,label\n" + "".join(f'a,"{COMPLIANCE}",{label}\n' for label in ("harmful", "safe")),
                    encoding="utf-8")
    found = calibrated([str(path)], parse_judges(("refusal-wording",)), Loading(device="cpu", offline=True),
                       progress=no_progress)
    assert found["rejected"] == [{"file": "labelled.csv", "line": 3, "reason": "the same answer again"}]
    assert [row["n"] for row in found["calibration"]] == [1]


def test_rows_without_a_label_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "labelled.csv"
    path.write_text("prompt,answer,label\n" + "".join(f'{prompt},"{COMPLIANCE}",{label}\n' for prompt, label in
                                                      (("a", "harmful"), ("b", "maybe"), ("c", ""))), encoding="utf-8")
    found = calibrated([str(path)], parse_judges(("refusal-wording",)), Loading(device="cpu", offline=True),
                       progress=no_progress)
    assert [(each["file"], each["line"]) for each in found["rejected"]] == [("labelled.csv", 3), ("labelled.csv", 4)]
    [row] = found["calibration"]
    assert (row["about"], row["n"], row["sensitivity"]["value"], row["specificity"]) == ("harmful", 1, 1.0, None)
