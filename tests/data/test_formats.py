"""Rows of each published format, one or two a case, with what must come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saferestore.core.data.formats import FORMATS, detect
from saferestore.core.data.readers import ReadResult, read_records
from saferestore.core.data.records import Message, Record, Skipped


def turns(*pairs: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [dict(zip((role, content), pair.split(":"), strict=True)) for pair in pairs]


# row, format it is detected as, prompt, answer, category
ROWS = {
    "chat": ({"messages": turns("system:S", "user:U", "assistant:A")}, "chat", "U", "A", None),
    "chat ending with the user": ({"messages": turns("user:U"), "answer": "A"}, "chat", "U", "A", None),
    "chat in content parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "U"}]}]},
                              "chat", "U", None, None),
    "sharegpt": ({"conversations": turns("human:U", "gpt:A", role="from", content="value")}, "sharegpt",
                 "U", "A", None),
    "sharegpt with the keys of chat": ({"conversations": turns("user:U", "assistant:A")}, "sharegpt", "U", "A", None),
    "chat with the keys of sharegpt": ({"messages": turns("human:U", "gpt:A", role="from", content="value")}, "chat",
                                       "U", "A", None),
    "alpaca": ({"instruction": "I", "input": "N", "output": "O"}, "alpaca", "I\n\nN", "O", None),
    "alpaca that calls the output response": ({"instruction": "I", "input": "N", "response": "R"}, "alpaca",
                                              "I\n\nN", "R", None),
    "alpaca without answers": ({"instruction": "I", "input": "N"}, "alpaca", "I\n\nN", None, None),
    "dolly": ({"instruction": "I", "context": "N", "response": "R", "category": "closed_qa"}, "alpaca", "I\n\nN", "R",
              "closed_qa"),
    "dolly without a context": ({"instruction": "I", "context": "", "response": "R"}, "alpaca", "I", "R", None),
    "prompt and completion of turns": ({"prompt": turns("system:S", "user:U"), "completion": turns("assistant:A")},
                                       "prompt-turns", "U", "A", None),
    "a prompt of turns and a text": ({"prompt": turns("user:U"), "completion": "A"}, "prompt-turns", "U", "A", None),
    "a prompt of turns alone": ({"prompt": turns("user:U", "assistant:A", "user:V")}, "prompt-turns", "V", None, None),
    "a developer's turn": ({"messages": turns("developer:S", "user:U")}, "chat", "U", None, None),
    "a system turn of no words": ({"messages": turns("system: ", "user:U", "assistant:A")}, "chat", "U", "A", None),
    "an instruction alone": ({"instruction": "I", "response": "R"}, "prompt", "I", "R", None),
    "sorry-bench": ({"turns": ["T"], "category": 3}, "sorrybench", "T", None, "3"),
    "beavertails": ({"prompt": "P", "response": "R", "category": {"theft": False, "abuse": True}, "is_safe": False},
                    "beavertails", "P", "R", "abuse"),
    "do-not-answer": ({"question": "Q", "risk_area": "Malice"}, "prompt", "Q", None, "Malice"),
    "or-bench": ({"prompt": "P", "category": "deception"}, "prompt", "P", None, "deception"),
    "strongreject": ({"category": "C", "source": "s", "forbidden_prompt": "F"}, "strongreject", "F", None, "C"),
    "jailbreakbench": ({"goal": "G", "target": "Sure", "behavior": "B", "category": "C"}, "jailbreakbench",
                       "G", "Sure", "C"),
    "gsm8k": ({"question": "Q", "answer": "2 + 2\n#### 4"}, "gsm8k", "Q", "2 + 2\n#### 4", None),
    "questions that are not gsm8k": ({"question": "Q", "answer": "4"}, "prompt", "Q", "4", None),
    "multiple choice": ({"question": "Q", "choices": ["x", "y"], "answer": 1, "subject": "s"}, "choice", "Q", "y",
                        None),
    "xstest completion": ({"prompt": "P", "completion": "C", "final_label": "2_full_refusal", "type": "homonyms"},
                          "xstest-completions", "P", "C", "homonyms"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_is_recognised_and_read(case: str) -> None:
    row, form, prompt, answer, category = ROWS[case]
    assert detect(row) == form
    record = FORMATS[form].read(row)
    assert isinstance(record, Record)
    assert (record.prompt, record.answer, record.category) == (prompt, answer, category)


# row, format, why it is not used
UNUSABLE = {
    "no turns": ({"messages": []}, "chat", "`messages` is no list of turns"),
    "a turn that is a text": ({"messages": ["hi"]}, "chat", "a turn is no object"),
    "an unknown role": ({"messages": turns("oracle:U")}, "chat", "a turn of unknown role 'oracle'"),
    "an empty turn": ({"messages": turns("user: ")}, "chat", "an empty user turn"),
    "no words at all": ({"messages": turns("system: ")}, "chat", "no user turn before the answer"),
    "a prompt of no turns": ({"prompt": []}, "prompt-turns", "`prompt` is no list of turns"),
    "only an answer": ({"messages": turns("assistant:A")}, "chat", "no user turn before the answer"),
    "ending with the system": ({"messages": turns("user:U", "system:S")}, "chat", "no user turn before the answer"),
    "no instruction": ({"instruction": " ", "output": "O"}, "alpaca", "no text in `instruction`"),
    "a history that is a text": ({"instruction": "I", "output": "O", "history": "earlier"}, "alpaca",
                                 "`history` is no list of pairs of texts"),
    "a history of single turns": ({"instruction": "I", "output": "O", "history": [["U"]]}, "alpaca",
                                  "`history` is no list of pairs of texts"),
    "a history with an empty turn": ({"instruction": "I", "output": "O", "history": [["U", " "]]}, "alpaca",
                                     "`history` is no list of pairs of texts"),
    "sorry-bench without turns": ({"turns": []}, "sorrybench", "no text in a prompt column"),
    "choices that are a text": ({"question": "Q", "choices": "x y", "answer": 0}, "choice",
                                "`choices` is no list of at least two texts"),
    "one choice": ({"question": "Q", "choices": ["x"], "answer": 0}, "choice",
                   "`choices` is no list of at least two texts"),
    "an empty choice": ({"question": "Q", "choices": ["x", " "], "answer": 0}, "choice",
                        "`choices` is no list of at least two texts"),
    "a right choice that is not there": ({"question": "Q", "choices": ["x", "y"], "answer": 2}, "choice",
                                         "`answer` is none of the choices"),
    "no right choice": ({"question": "Q", "choices": ["x", "y"]}, "choice", "`answer` is none of the choices"),
    "choices without a question": ({"choices": ["x", "y"], "answer": 0}, "choice", "no text in a prompt column"),
    "context missing": ({"behavior": "B", "functionalcategory": "contextual", "contextstring": ""}, "harmbench",
                        "contextual behaviour without its context"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_row_says_why(case: str) -> None:
    row, form, reason = UNUSABLE[case]
    assert FORMATS[form].read(row) == Skipped(reason)


def read(tmp_path: Path, rows: list[dict[str, object]], form: str) -> ReadResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(f"{path}:{form}")


def test_harmbench_context_stands_before_the_behaviour_and_copyright_is_left_out(tmp_path: Path) -> None:
    rows = [{"Behavior": "Rewrite it", "FunctionalCategory": "contextual", "ContextString": "Text", "BehaviorID": "x"},
            {"Behavior": "Sing it", "FunctionalCategory": "copyright", "ContextString": "", "BehaviorID": "y"}]
    result = read(tmp_path, rows, "harmbench")
    assert [(r.id, r.prompt) for r in result.records] == [("x", "Text\n\n---\n\nRewrite it")]
    assert result.left_out == ((2, "copyright behaviour, judged by hash"),)
    assert len(read(tmp_path, rows, "harmbench-all").records) == 2


def test_the_older_xstest_file_takes_its_label_from_the_type(tmp_path: Path) -> None:
    rows = [{"prompt": "A", "type": "homonyms", "focus": "kill"},
            {"prompt": "B", "type": "contrast_homonyms", "focus": "kill"}]
    assert [r.meta["label"] for r in read(tmp_path, rows, "xstest").records] == ["safe", "unsafe"]
    safe = read(tmp_path, rows, "xstest-safe")
    assert ([r.prompt for r in safe.records], safe.left_out) == (["A"], ((2, "labelled unsafe"),))
    assert [r.prompt for r in read(tmp_path, rows, "xstest-unsafe").records] == ["B"]


def test_an_id_is_the_rows_own_or_depends_on_the_conversation_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "A", "id": "own"}, {"prompt": "A", "answer": "x"}, {"prompt": "A"}, {"prompt": "B"}]
    ids = [record.id for record in read(tmp_path, rows, "prompt").records]
    assert ids[0] == "own"
    assert ids[1] == ids[2] != ids[3]


@pytest.mark.parametrize(("form", "row"), [
    ("prompt", {"prompt": "P"}), ("chat", {"messages": turns("user:P", "assistant:A")}),
    ("sharegpt", {"conversations": turns("human:P", "gpt:A", role="from", content="value")}),
])
def test_a_system_column_becomes_the_system_turn(tmp_path: Path, form: str, row: dict[str, object]) -> None:
    record = read(tmp_path, [{**row, "system": "S"}], form).records[0]
    assert [(m.role, m.content) for m in record.messages] == [("system", "S"), ("user", "P")]


def test_a_conversation_with_a_system_turn_keeps_its_own(tmp_path: Path) -> None:
    row = {"messages": turns("system:own", "user:P"), "system": "S"}
    assert [m.content for m in read(tmp_path, [row], "chat").records[0].messages] == ["own", "P"]


def test_a_developer_speaks_as_the_system_and_one_that_says_nothing_is_left_out(tmp_path: Path) -> None:
    said = [{"messages": turns(first, "user:P")} for first in ("developer:S", "system:")]
    assert [[(m.role, m.content) for m in record.messages] for record in read(tmp_path, said, "chat").records] == [
        [("system", "S"), ("user", "P")], [("user", "P")]]


def test_earlier_turns_of_an_instruction_stand_before_it(tmp_path: Path) -> None:
    row = {"instruction": "I", "input": "", "output": "O", "system": "S", "history": [["U", "A"], ["V", "B"]]}
    alone = {"instruction": "I", "output": "O"}
    later, *others = read(tmp_path, [row, *({**alone, "history": empty} for empty in ([], None, float("nan"), "[]"))],
                          "alpaca").records
    assert [(m.role, m.content) for m in later.messages] == [
        ("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B"), ("user", "I")]
    assert [[m.content for m in other.messages] for other in others] == [["I"]] * 4


def test_a_turn_may_hold_null_under_the_keys_of_the_other_format(tmp_path: Path) -> None:
    """As in tables of both formats, where a turn has the keys of either."""
    said = [{"from": "human", "value": "U", "role": None, "content": None},
            {"from": None, "value": None, "role": "assistant", "content": "A"}]
    for column in ("conversations", "messages"):
        [record] = read(tmp_path, [{column: said}], {"conversations": "sharegpt", "messages": "chat"}[column]).records
        assert (record.messages, record.answer) == ((Message("user", "U"),), "A")


def test_a_cell_that_pandas_left_empty_is_no_text(tmp_path: Path) -> None:
    row = {"instruction": "I", "input": float("nan"), "output": "O", "id": float("nan")}
    [record] = read(tmp_path, [row], "alpaca").records
    assert (record.prompt, record.answer) == ("I", "O")
    assert record.id != "nan"


ARC = {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}


@pytest.mark.parametrize(("choices", "answer", "right"), [
    (["x", "y"], 0, 0), (["x", "y"], "B", 1), (["x", "y"], "b", 1), (["x", "y"], " y ", 1), (["x", "y"], "1", 1),
    (["1", "0"], "0", 1), (["B", "A"], "A", 1), (ARC, "3", 2), (["x", "y"], True, None), (["x", "y"], "C", None),
    (["x", "y"], -1, None), (["x", "y"], 0.0, None),
])
def test_the_right_choice_is_named_by_number_text_letter_or_label(choices: object, answer: object,
                                                                  right: int | None) -> None:
    column = "answerkey" if isinstance(choices, dict) else "answer"
    record = FORMATS["choice"].read({"question": "Q", "choices": choices, column: answer})
    assert (record.meta["right"] if isinstance(record, Record) else None) == right


def test_a_multiple_choice_row_keeps_its_choices_in_order(tmp_path: Path) -> None:
    [record] = read(tmp_path, [{"id": "q", "question": "Q", "choices": ["x", " y"], "answer": "A"}], "choice").records
    assert (record.id, record.meta, record.answer) == ("q", {"choices": ("x", "y"), "right": 0}, "x")
