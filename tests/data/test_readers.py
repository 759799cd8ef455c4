"""Files in, records out: detection, line numbers, and every way a file can be unusable."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from saferestore.core.data import builtin
from saferestore.core.data.readers import read_records
from saferestore.core.errors import UsageError

# file name, content, format it is detected as, (prompt, answer) of its rows
GOOD_FILES = {
    "chat lines": ("a.jsonl", '{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yes"}]}\n',
                   "chat", [("Hi", "Yes")]),
    "alpaca array": ("a.json", '[{"instruction":"Add","input":"2 3","output":"5"},\n'
                     '{"instruction":"Greet","input":"","output":"Hello"}]', "alpaca",
                     [("Add\n\n2 3", "5"), ("Greet", "Hello")]),
    "alpaca lines with an empty list of inputs": ("a.json", '{"instruction":"No","inputs":[],"output":"Sorry"}\n',
                                                  "alpaca", [("No", "Sorry")]),
    "prompt lines": ("a.jsonl", '{"prompt":"P","response":"R"}\n\n{"prompt":"Q"}\n', "prompt",
                     [("P", "R"), ("Q", None)]),
    "an array of texts": ("a.json", '["One", "Two"]', "prompt", [("One", None), ("Two", None)]),
    "csv with aliases": ("a.csv", 'question,completion\n"Why, then?",So\n', "prompt", [("Why, then?", "So")]),
    "csv whose header is in capitals": ("a.csv", "Prompt,Answer\nP,A\n", "prompt", [("P", "A")]),
    "tab separated": ("a.tsv", "prompt\tanswer\nP, q\tA\n", "prompt", [("P, q", "A")]),
    "csv with semicolons": ("a.csv", 'prompt;answer\nP, q;A\n"R; s";B\n', "prompt", [("P, q", "A"), ("R; s", "B")]),
    "csv with quotes and semicolons": ("a.csv", '\n"id";"Prompt"\n"1";"P"\n', "prompt", [("P", None)]),
    "csv with tabs": ("a.csv", "prompt\tanswer\nP, q\tA\n", "prompt", [("P, q", "A")]),
    "tsv with semicolons": ("a.tsv", "prompt;answer\nP;A\n", "prompt", [("P", "A")]),
    "semicolons without a suffix": ("a", "goal;target\nG;Sure\n", "advbench", [("G", "Sure")]),
    "semicolons in csv without a header": ("a.csv", "Wait; then go\nGo; wait\n", "prompt", [("Wait; then go", None),
                                                                                          ("Go; wait", None)]),
    "semicolons in text": ("a.txt", "prompt;answer\n", "prompt", [("prompt;answer", None)]),
    "csv with the line ends of old": ("a.csv", "prompt,answer\rP,A\r", "prompt", [("P", "A")]),
    "csv without a header": ("a.csv", '"First, row"\nSecond row\n', "prompt", [("First, row", None),
                                                                             ("Second row", None)]),
    "csv content without a suffix": ("a", "goal,target\nG,Sure\n", "advbench", [("G", "Sure")]),
    "plain text": ("a.txt", "First, line\n\n  Second line \r\n", "prompt", [("First, line", None),
                                                                          ("Second line", None)]),
    "text that begins with a bracket": ("a.txt", "[INST] Hi\n{not json\n", "prompt", [("[INST] Hi", None),
                                                                                   ("{not json", None)]),
    "text that begins as a zip archive does": ("a.txt", "PK is a bank\n", "prompt", [("PK is a bank", None)]),
    "a byte order mark": ("a.csv", "\ufeffprompt\nP\n", "prompt", [("P", None)]),
    "json in a file called txt": ("a.txt", '{"prompt":"P"}\n', "prompt", [("P", None)]),
}


@pytest.mark.parametrize("case", GOOD_FILES)
def test_a_file_is_read_by_what_it_holds(case: str, tmp_path: Path) -> None:
    name, content, form, expected = GOOD_FILES[case]
    (tmp_path / name).write_bytes(content.encode())
    result = read_records(str(tmp_path / name))
    assert [(r.prompt, r.answer) for r in result.records] == expected
    assert (result.format, result.name, result.rejected) == (form, name, ())
    assert result.sha256 == hashlib.sha256(content.encode()).hexdigest()


# file name, content, words of the error
BAD_FILES = {
    "empty": ("a.jsonl", b"", "empty file"),
    "blank": ("a.txt", b" \n\n", "empty file"),
    "latin1": ("a.csv", b"prompt\nok\ncaf\xe9\n", "not UTF-8 - {}, line 3"),
    "latin1 in more lines than are named": ("a.jsonl", b'["\xe9"]\n' * 4 + b'["e"]\n' + b'["\xe9"]\n' * 2,
                                            "not UTF-8 - {}, 6 lines: 1, 2, 3, 4, 6, ..."),
    "latin1 in two lines of text": ("a.txt", b"caf\xe9\r\nok\r\ncaf\xe9", "not UTF-8 - {}, 2 lines: 1, 3"),
    "a letter cut off at the end of a line": ("a.txt", b"caf\xc3\n\xa9\n", "not UTF-8 - {}, 2 lines: 1, 2"),
    "utf-16": ("a.jsonl", '{"prompt": "P"}\n'.encode("utf-16"), "not UTF-8 - {}: it begins as UTF-16 does"),
    "gzip": ("a.jsonl.gz", gzip.compress(b'{"prompt": "P"}\n'), "not text but gzip - {}"),
    "zip": ("a.xlsx", b"PK\x03\x04\x14\x00\x00\x00", "not text but a zip archive or a spreadsheet - {}"),
    "parquet": ("a.parquet", b"PAR1\x15\x04\x15\x80PAR1", "not text but Parquet - {}"),
    "NUL in text": ("a.txt", b"One\nTw\0o\n", "not text but binary, with NUL bytes - {}"),
    "no row": ("a.jsonl", b'{"prompt": ""}\n', "no usable row - {}, line 1: no text in a prompt column"),
    "no row parses": ("a.jsonl", b"hello\nthere\n", "no usable row - {}, line 1: not JSON"),
    "only a header": ("a.csv", b"prompt,answer\n", "no usable row"),
    "unknown json keys": ("a.jsonl", b'{"foo": 1, "bar": "x"}\n', "no known column - {}: foo, bar"),
    "unknown csv columns": ("a.csv", b"foo,bar\n1,2\n", "no known column - {}: foo, bar"),
    "broken array": ("a.json", b'[{"prompt": "P"},\n{"prompt": }]', "not a JSON array - {}, line 2"),
    "unclosed array": ("a.json", b'[{"prompt": "P"},\n', "not a JSON array - {}, line 2"),
    "unclosed quote": ("a.csv", b'prompt\n"abc\ndef\n', "not CSV - {}, line 2"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_unusable_file_names_itself_and_the_line(case: str, tmp_path: Path) -> None:
    name, content, words = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_records(str(path))
    assert words.format(path) in error.value.what
    assert error.value.exit_code == 2
    assert error.value.hint


@pytest.mark.parametrize("encoding", ["latin1", "utf-16"])
def test_the_way_out_of_another_encoding_leads_out(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("prompt\ncaf\xe9\n".encode(encoding))
    with pytest.raises(UsageError, match="not UTF-8") as error:
        read_records(str(path))
    command = (error.value.hint or "").removeprefix("convert it: ").split()
    assert command == ["iconv", "-f", encoding, "-t", "utf-8", str(path)]
    path.write_text(path.read_bytes().decode(command[2]), encoding=command[4])
    assert [r.prompt for r in read_records(str(path)).records] == ["caf\xe9"]


def test_the_way_out_of_gzip_leads_out(tmp_path: Path) -> None:
    path = tmp_path / "my rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "P"}\n'))
    with pytest.raises(UsageError, match="gzip") as error:
        read_records(str(path))
    subprocess.run(error.value.hint.removeprefix("unpack it: "), shell=True, check=True)
    assert [r.prompt for r in read_records(str(path.with_suffix(""))).records] == ["P"]


def test_lines_among_good_utf8_are_to_be_mended_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("caf\xe9\n".encode() + "caf\xe9\n".encode("latin1"))
    with pytest.raises(UsageError, match="line 2") as error:
        read_records(str(path))
    assert "iconv" not in error.value.hint and "these lines alone" in error.value.hint


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for spec in (str(tmp_path / "none.csv"), str(tmp_path)):
        with pytest.raises(UsageError, match="cannot read file"):
            read_records(spec)


def test_malformed_rows_are_counted_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt":"P"}\nnot json\n{"prompt":7.5}\n[1]\n{"prompt":null}\n' + "[" * 100_000 + "\n")
    result = read_records(str(path))
    assert [r.prompt for r in result.records] == ["P", "7.5"]
    assert [line for line, _ in result.rejected] == [2, 4, 5, 6]


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt":"P \\ud83d\\ude00"}\n{"prompt":"P \\ud83d"}\n')
    result = read_records(str(path))
    assert [record.prompt for record in result.records] == ["P \U0001f600"]
    assert result.rejected == ((2, "half of a surrogate pair, which is no text"),)


def test_lines_of_csv_count_the_line_ends_inside_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,answer\n"two\nlines",A\nshort\nP,A\n')
    result = read_records(str(path))
    assert [r.prompt for r in result.records] == ["two\nlines", "P"]
    assert result.rejected == ((4, "1 cells under a header of 2"),)


def test_lines_of_an_array_are_those_of_its_elements(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"prompt": "P"}, {"prompt": ""}, 3], indent=1))
    assert [line for line, _ in read_records(str(path)).rejected] == [5, 8]


def test_a_cell_of_a_megabyte_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt\n" + "x" * 1_000_000 + "\n")
    assert len(read_records(str(path)).records[0].prompt) == 1_000_000


def test_a_format_can_be_forced_and_a_wrong_name_gets_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("foo,bar\nbaz\n")
    assert [r.prompt for r in read_records(f"{path}:text").records] == ["foo,bar", "baz"]
    with pytest.raises(UsageError, match="unknown format `textt`") as error:
        read_records(f"{path}:textt")
    assert error.value.hint == "did you mean text?"


def test_an_existing_path_with_a_colon_wins_over_a_format(tmp_path: Path) -> None:
    path = tmp_path / "a:text"
    path.write_text("Hello there\n")
    assert read_records(str(path)).name == "a:text"


def test_built_in_sets_are_read_by_name_and_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'{"prompt":"P","category":"c","subject":"s","wording":"w"}\n'
    monkeypatch.setattr("saferestore.core.data.readers.builtin_bytes", lambda name: content)
    result = read_records("builtin:harmful")
    record = result.records[0]
    assert (result.name, record.category, record.group) == ("builtin:harmful", "c", "s")
    assert record.meta["wording"] == "w"
    monkeypatch.undo()
    with pytest.raises(UsageError, match="no built-in set") as error:
        read_records("builtin:harmfull")
    assert error.value.hint == "did you mean harmful?"


@pytest.mark.parametrize("name", builtin.SETS)
def test_every_shipped_set_has_usable_rows_only(name: str) -> None:
    result = read_records(f"builtin:{name}")
    assert result.rejected == result.left_out == ()
    assert len({record.prompt for record in result.records}) == len(result.records)
