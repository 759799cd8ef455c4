"""The journal: what was written is there after a kill, a torn line is dropped, nothing else is taken for ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

import pytest
from saferestore.core.errors import MismatchError, NumericalError, SaferestoreError, TakenError, UsageError
from saferestore.core.report.journal import FILE, Journal, check_journal, digest, journal_folder, kept_until_done

SETTINGS = {"model": "m", "limit": 3}


def filled(folder: Path) -> Path:
    journal = Journal(folder, SETTINGS)
    journal.write([{"question": 0}, {"question": 1}])
    journal.write([{"question": 2, "text": "line\nbreak \ud800"}])
    journal.close()
    return folder / FILE


def test_the_journal_lies_beside_out(tmp_path: Path) -> None:
    assert journal_folder(tmp_path / "out") == (tmp_path / "out.partial").resolve()


def test_a_resumed_journal_has_every_entry_and_goes_on(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    again = Journal(tmp_path / "j", SETTINGS, resume=True)
    assert [entry["question"] for entry in again.entries] == [0, 1, 2]
    assert again.entries[2]["text"] == "line\nbreak \ud800"
    again.write([{"question": 3}])
    again.close()
    assert [e["question"] for e in Journal(tmp_path / "j", SETTINGS, resume=True).entries] == [0, 1, 2, 3]


def test_a_line_torn_at_any_byte_is_dropped_and_the_whole_ones_stay(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    content = path.read_bytes()
    whole = content.rstrip(b"\n").rfind(b"\n") + 1
    for end in (whole, whole + 1, len(content) - 1):
        path.write_bytes(content[:end])
        journal = Journal(tmp_path / "j", SETTINGS, resume=True)
        journal.write([{"question": 9}])
        journal.close()
        assert [e["question"] for e in Journal(tmp_path / "j", SETTINGS, resume=True).entries] == [0, 1, 9]


def test_a_journal_killed_in_its_first_line_begins_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    path.write_bytes(path.read_bytes()[:7])
    journal = Journal(tmp_path / "j", SETTINGS, resume=True)
    journal.write([{"question": 5}])
    journal.close()
    assert [e["question"] for e in Journal(tmp_path / "j", SETTINGS, resume=True).entries] == [5]


def test_an_interrupted_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with pytest.raises(UsageError, match="interrupted run"):
        Journal(tmp_path / "j", SETTINGS)
    assert Journal(tmp_path / "j", SETTINGS, restart=True).entries == []


@pytest.mark.parametrize(("resume", "restart"), [(False, False), (True, False), (False, True)])
def test_a_journal_that_another_run_writes_is_left_alone(tmp_path: Path, resume: bool, restart: bool) -> None:
    folder, busy = tmp_path / "out.partial", "another run is writing here"
    other = Journal(folder, {"a": 1})  # a lock is of an open file: two of one process meet as those of two do
    other.write([{"b": 2}])
    for begin in (lambda: Journal(folder, {"a": 1}, resume=resume, restart=restart),
                  lambda: check_journal(folder, resume=resume, restart=restart)):
        with pytest.raises(UsageError, match=busy):
            begin()
    other.write([{"c": 3}])
    other.close()
    assert Journal(folder, {"a": 1}, resume=True).entries == [{"b": 2}, {"c": 3}]


def test_a_file_system_without_locks_is_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", unknown)
    journal = Journal(tmp_path / "out.partial", {"a": 1})
    journal.write([{"b": 2}])
    assert journal.entries == [{"b": 2}]


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        Journal(tmp_path / "j", SETTINGS, resume=True)


def test_a_journal_of_other_settings_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with pytest.raises(UsageError, match="other settings"):
        Journal(tmp_path / "j", {**SETTINGS, "limit": 4}, resume=True)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    path.write_bytes(path.read_bytes().replace(b'{"question": 1}', b'{"question'))
    with pytest.raises(SaferestoreError, match="damaged"):
        Journal(tmp_path / "j", SETTINGS, resume=True)


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, SaferestoreError), (errno.EIO, OSError)])
def test_a_full_disk_is_said_and_other_errors_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int,
                                                   kind: type[Exception]) -> None:
    journal = Journal(tmp_path / "j", SETTINGS)

    def fails(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(kind):
        journal.write([{"question": 0}])


def test_a_run_without_out_keeps_nothing(tmp_path: Path) -> None:
    journal = Journal(None, SETTINGS)
    journal.write([{"question": 0}])
    journal.remove()
    assert journal.entries == [{"question": 0}] and not list(tmp_path.iterdir())


def test_removed_journals_leave_no_folder(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", SETTINGS)
    journal.remove()
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize(("error", "stays"), [
    (None, False), (UsageError("a - b", hint="c"), False), (MismatchError("a - b", hint="c"), False),
    (NumericalError("a - b", hint="c"), False), (SaferestoreError("no space - b", hint="c"), True),
    (TakenError("OUT is not empty - b", hint="c"), True),
    (KeyboardInterrupt(), True), (RuntimeError("out of memory"), True)])
def test_a_journal_stays_where_the_same_run_may_yet_come_to_its_end(tmp_path: Path, error: BaseException | None,
                                                                    stays: bool) -> None:
    with contextlib.suppress(SaferestoreError, KeyboardInterrupt, RuntimeError), kept_until_done(
            Journal(tmp_path / "j", SETTINGS)) as journal:
        journal.write([{"question": 0}])
        if error is not None:
            raise error
    assert (tmp_path / "j").exists() == stays
    if stays:
        assert Journal(tmp_path / "j", SETTINGS, resume=True).entries == [{"question": 0}]


def test_to_resume_and_to_restart_are_not_both_to_be_had(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with pytest.raises(UsageError, match="to go on and to begin again - --resume --restart"):
        Journal(tmp_path / "j", SETTINGS, resume=True, restart=True)
    assert Journal(tmp_path / "j", SETTINGS, resume=True).entries


def test_the_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
