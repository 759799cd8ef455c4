"""References as typed, and where their files are."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from saferestore.core.checkpoint import reference
from saferestore.core.checkpoint.reference import Reference, locate, looks_like_path, parse_reference, shown
from saferestore.core.errors import UsageError


@pytest.mark.parametrize(("text", "parts"), [
    ("owner/name", ("owner/name", None, None, None)),
    ("owner/name@v1", ("owner/name", "v1", None, None)),
    ("owner/name+owner/adapter", ("owner/name", None, "owner/adapter", None)),
    ("owner/name@v1+owner/adapter@abc", ("owner/name", "v1", "owner/adapter", "abc")),
    ("./a@b", ("./a@b", None, None, None)),
    ("-", ("-", None, None, None)),
])
def test_a_reference_is_read_part_by_part(text: str, parts: tuple[str | None, ...]) -> None:
    assert parse_reference(text) == Reference(*parts, text)


def test_an_existing_folder_wins_over_revision_and_adapter_marks(tmp_path: Path) -> None:
    odd = tmp_path / "model@v1+x"
    odd.mkdir()
    assert parse_reference(str(odd)).base == str(odd)
    assert parse_reference(f"{odd}+owner/adapter@r") == Reference(str(odd), None, "owner/adapter", "r",
                                                                 f"{odd}+owner/adapter@r")


@pytest.mark.parametrize("text", ["", "+a/b", "a/b+"])
def test_an_incomplete_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="incomplete reference"):
        parse_reference(text)


@pytest.mark.parametrize("name", ["./x", "../x", "/x", "~/x", "a/b/c", "model.safetensors", "x/"])
def test_a_path_looking_name_never_reaches_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "snapshot_download", lambda *_, **__: pytest.fail("asked the network"))
    assert looks_like_path(name)
    with pytest.raises(UsageError, match="no such folder") as caught:
        locate(name)
    assert caught.value.exit_code == 2


def test_hub_ids_do_not_look_like_paths() -> None:
    assert not looks_like_path("gpt2")
    assert not looks_like_path("owner/name")


def test_a_folder_is_found_and_a_file_is_not_one(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path.resolve()
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UsageError, match="not a folder"):
        locate(str(file))


def _response() -> object:
    """A stand-in for the transport's response: the hub's errors read only these."""
    class Response:
        headers: dict[str, str] = {}
        request = None
        status_code = 404
        text = ""
    return Response()


@pytest.mark.parametrize(("error", "words"), [
    (HFValidationError("bad id"), "neither a folder nor a hub id"),
    (GatedRepoError("gated", response=_response()), "access to this repository is restricted"),
    (LocalEntryNotFoundError("nothing cached"), "not in the local cache"),
    (RepositoryNotFoundError("404", response=_response()), "the hub does not give it"),
    (RuntimeError("connection reset"), "the download failed"),
])
def test_each_failure_of_the_hub_says_what_to_do(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(reference, "snapshot_download", fail)
    with pytest.raises(UsageError, match=words) as caught:
        locate("owner/name", "v1")
    assert "owner/name" in caught.value.what
    assert caught.value.hint


def test_a_full_disk_while_downloading_is_not_blamed_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reference, "snapshot_download", fail)
    with pytest.raises(OSError, match="No space left"):
        locate("owner/name")


def test_a_download_takes_safetensors_only_and_hands_its_bytes_to_progress(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **settings: object) -> str:
        asked.update(settings, name=name)
        bars = settings["tqdm_class"]
        files, total = bars(total=2, desc="Fetching 2 files"), bars(total=0, unit="B")
        total.total = 30
        total.update(10)
        files.update(1)
        total.update(20)
        return str(tmp_path)

    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr(reference, "snapshot_download", download)
    assert locate("owner/name", "v1", offline=True, progress=lambda *row: seen.append(row)) == tmp_path
    assert seen == [("downloading owner/name", 10, 30), ("downloading owner/name", 30, 30)]
    assert asked["local_files_only"] is True
    assert asked["revision"] == "v1"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])
    assert capfd.readouterr().err == ""


def test_offline_and_not_cached_is_refused_without_a_connection(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="not in the local cache"):
        locate("owner/surely-not-there", offline=True)


def test_absolute_paths_are_never_shown() -> None:
    assert shown("/home/someone/models/base") == "base"
    assert shown("~/models/base") == "base"
    assert shown("sample_data/base") == "sample_data/base"
    assert shown("owner/name", "v1") == "owner/name@v1"
