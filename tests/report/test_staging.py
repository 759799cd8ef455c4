"""OUT appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from saferestore.core.errors import SaferestoreError, TakenError, UsageError
from saferestore.core.report.staging import check_folders, check_out, staged


def fill(out: Path, *, force: bool = False) -> None:
    """Write one file through the stage."""
    with staged(out, force=force) as folder:
        (folder / "file").write_text("new", encoding="utf-8")


def test_out_and_its_parents_appear_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with staged(out) as folder:
        (folder / "file").write_text("new", encoding="utf-8")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["file"]
    assert list(out.parent.iterdir()) == [out]


def test_out_has_the_rights_of_any_new_folder(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_files_that_a_library_wrote_for_their_owner_alone_have_the_rights_of_any_new_file(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as folder:
        (folder / "private").touch(mode=0o600)
    (tmp_path / "plain").touch()
    assert (tmp_path / "out" / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_empty_out_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert (tmp_path / "out" / "file").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(tmp_path / "a" / "out") as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    with pytest.raises(UsageError, match="OUT is not empty") as caught:
        check_out(tmp_path / "out")
    assert "--force" in caught.value.hint
    with pytest.raises(TakenError, match="OUT is not empty") as late, staged(tmp_path / "out"):
        pass
    assert "--resume" in late.value.hint and late.value.exit_code == 2


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "old").mkdir(parents=True)
    fill(tmp_path / "out", force=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_failure_under_force_keeps_the_old_folder(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True):
        raise RuntimeError
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "new"


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".staging-" in self.name:
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="broken"):
        fill(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "file").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_file_is_no_folder_to_write(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="OUT is not a folder"):
        check_out(tmp_path / "out", force=True)


@pytest.mark.parametrize("typed", ["in/base", "in/base@main", "in/base+in/tuned", "hub/id+in/tuned",
                                   "in/rows.csv:prompt"])
def test_what_is_read_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("in/base", "in/tuned"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "in" / "rows.csv").write_text("prompt\n", encoding="utf-8")
    with pytest.raises(UsageError, match="OUT would replace in/") as caught:
        check_out(Path("in"), force=True, reads=("-", "builtin:harmful", typed))
    assert "folder of its own" in caught.value.hint
    check_out(Path("in/out"), force=True, reads=(typed,))
    check_out(Path("in2"), force=True, reads=(typed,))


@pytest.mark.parametrize("here", [".", "work"])
def test_the_base_that_an_adapter_records_is_not_replaced_either(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    """Whether it lies beside the adapter or in the working folder."""
    (tmp_path / here).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / here)
    recorded = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"})
    for folder, name, text in (("base", "config.json", "{}"), ("tuned", "adapter_config.json", recorded)):
        place = tmp_path / (here if folder == "base" else ".") / folder
        place.mkdir()
        (place / name).write_text(text, encoding="utf-8")
    tuned = str(tmp_path / "tuned")
    with pytest.raises(UsageError, match="OUT would replace the base of .*tuned - base"):
        check_out(Path("base"), force=True, reads=(tuned,))
    check_out(Path("out"), force=True, reads=(tuned,))
    (tmp_path / "tuned" / "adapter_config.json").write_text("{", encoding="utf-8")  # said where it is opened
    check_out(Path("out"), force=True, reads=(tuned,))


@pytest.mark.parametrize(("out", "held"), [(".", "the folder you work in"), ("..", "the folder you work in"),
                                           ("~", "your home")])
def test_neither_home_nor_the_working_folder_is_replaced(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, held: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(UsageError, match=f"OUT would replace {held}"):
        check_out(Path(out).expanduser(), force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("pair", [("x", "x"), ("x", "x/y"), ("x/y", "x"), ("x", "link")])
def test_of_two_folders_to_write_neither_lies_in_the_other(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str], force: bool) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    with pytest.raises(UsageError, match="one folder to write lies in another") as caught:
        check_folders(map(Path, pair), force=force, reads=())
    assert "a folder of its own" in caught.value.hint
    check_folders((Path("x"), Path("x2"), None), force=force, reads=())


@pytest.mark.parametrize("out", ["/proc/nowhere/out", "/dev/null/out"])
def test_an_unwritable_place_is_found_before_any_work(out: str) -> None:
    with pytest.raises(UsageError, match="cannot write OUT"):
        check_out(Path(out))


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_out(tmp_path / "a" / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SaferestoreError, match="no space left") as caught, staged(tmp_path / "out") as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            full.write("x")
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_recognised_through_a_library_that_wraps_it(tmp_path: Path) -> None:
    with pytest.raises(SaferestoreError, match="no space left"), staged(tmp_path / "out"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_full_disk_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(SaferestoreError, match="no space left"):
        check_out(tmp_path / "out")


def test_what_a_killed_run_left_is_cleared_and_a_living_one_is_spared(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    stale, foreign = tmp_path / f".out.staging-{killed.pid}", tmp_path / f".out.staging-{os.getppid()}"
    other = tmp_path / f".other.staging-{killed.pid}"
    for folder in (stale, foreign, other):
        folder.mkdir()
    fill(tmp_path / "out")
    assert not stale.exists() and foreign.exists() and other.exists()


def test_a_link_to_a_folder_keeps_being_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    fill(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "real" / "file").exists()
