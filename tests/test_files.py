"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path

import pytest

from subtone.files import claimed, replacing, write_text


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    for failure in (OSError("disk full"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), replacing(tmp_path / "a.txt") as beside:
            beside.write_text("half of the n")
            raise failure
    assert (tmp_path / "a.txt").read_text() == "old"
    assert leftovers(tmp_path) == ["a.txt"]


def test_success_replaces_a_file_and_a_folder(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_text(tmp_path / "a.txt", text)
        with replacing(tmp_path / "folder") as beside:
            beside.mkdir()
            (beside / text).write_text(text)
    assert (tmp_path / "a.txt").read_text() == "new"
    assert leftovers(tmp_path / "folder") == ["new"]
    assert leftovers(tmp_path) == ["a.txt", "folder"]


def test_a_folder_whose_exchange_fails_half_way_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    real, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="nothing was written"), replacing(tmp_path / "folder") as beside:
        beside.mkdir()
    assert leftovers(tmp_path / "folder") == ["old"]
    assert leftovers(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_put_back_is_said_to_lie_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    real, calls = os.replace, []

    def only_the_first_succeeds(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", only_the_first_succeeds)
    message = r"nothing was written, .* before lies in .*\.old; rename it"
    with pytest.raises(OSError, match=message) as caught, replacing(tmp_path / "folder") as beside:
        beside.mkdir()
    assert caught.value.filename == str(tmp_path / "folder")
    (aside,) = tmp_path.iterdir()
    assert str(aside) in str(caught.value)
    assert leftovers(aside) == ["old"]


def test_an_old_folder_that_cannot_be_removed_is_named_beside_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()

    def refuses(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuses)
    message = r"all was written, but .* is left in .*\.old; remove it"
    with pytest.raises(PermissionError, match=message), replacing(tmp_path / "folder") as beside:
        beside.mkdir()
        (beside / "new").write_text("new")
    assert leftovers(tmp_path / "folder") == ["new"]


def test_a_last_flush_that_fails_does_not_unsay_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a.txt", "old")
    real = os.fsync

    def fails_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails_for_folders)
    with pytest.raises(OSError, match="all was written, but a power cut may still undo it") as caught:
        write_text(tmp_path / "a.txt", "new")
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert leftovers(tmp_path) == ["a.txt"]


def test_a_ctrl_c_between_the_two_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    real, calls = os.replace, []

    def interrupted_behind_the_first(source: Path, target: Path) -> None:
        calls.append(target)
        real(source, target)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted_behind_the_first)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "folder") as beside:
        beside.mkdir()
    assert leftovers(tmp_path / "folder") == ["old"]
    assert leftovers(tmp_path) == ["folder"]


def test_a_folder_that_failed_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "folder") as beside:
        beside.mkdir()
        (beside / "half").write_text("")
        raise KeyboardInterrupt
    assert leftovers(tmp_path / "folder") == ["old"]
    assert leftovers(tmp_path) == ["folder"]


def test_a_folder_is_claimed_by_one_at_a_time_and_free_again_afterwards(tmp_path):
    for _ in range(2):  # a lock file that somebody left is no lock
        with (
            claimed(tmp_path / "run"),
            pytest.raises(ValueError, match=f"another process trains in {tmp_path}/run; wait for it"),
            claimed(tmp_path / "run"),
        ):
            pass


def test_where_no_locks_are_to_be_had_nobody_is_kept_out(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path / "run"), claimed(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
