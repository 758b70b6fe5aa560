"""A file is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from subtone.files import replacing, write_text


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
