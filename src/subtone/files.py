"""Files that are there whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; it takes `path`'s place on success.

    On any failure, Ctrl-C and a full disk included, what was written is removed and what stood at
    `path` is untouched. A folder replaces a folder, a file a file; a symbolic link is followed.

    OSError names `path` and says what stands there now: what was there before, or the new one where
    only what comes after the exchange failed (removing the old folder, the last flush to the disk).
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:8]}.part")
    aside = beside.with_suffix(".old")
    try:
        yield beside
        for written in [*beside.rglob("*"), beside] if beside.is_dir() else [beside]:
            _sync(written)
        if beside.is_dir() and target.is_dir():
            _exchange_folders(beside, target, aside)
        else:
            os.replace(beside, target)
    except OSError as error:
        now = f"lies in {aside}; rename it" if aside.exists() else "is unchanged"
        raise _failure(error, path, f"nothing was written, what was there before {now}") from error
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)
    try:
        if aside.exists():
            shutil.rmtree(aside)
    except OSError as error:
        raise _failure(
            error, path, f"all was written, but the folder it replaced is left in {aside}; remove it"
        ) from error
    try:
        _sync(target.parent)
    except OSError as error:
        raise _failure(error, path, "all was written, but a power cut may still undo it") from error


def _failure(error: OSError, path: Path | str, what_holds: str) -> OSError:
    return OSError(error.errno or errno.EIO, f"{error.strerror or error}; {what_holds}", str(path))


def _exchange_folders(new: Path, target: Path, aside: Path) -> None:
    """`new` under the name of `target`, whose old folder then lies in `aside`.

    Two renames, since none exchanges folders everywhere: if the second fails, the first is undone.
    """
    try:
        os.replace(target, aside)
        os.replace(new, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        raise


def _sync(path: Path) -> None:
    """Makes what was written last through a power cut, where that can be asked for."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """`folder`, made if need be, is this process's own meanwhile; ValueError if it is another's.

    By a lock on `folder/lock` that ends with the process, however it ends; the file stays. On a file
    system without locks nobody is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process trains in {folder}; wait for it, or choose another folder"
                ) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        yield


def check_file_to_write(path: Path | None) -> None:
    """ValueError where a folder has that name: before the work whose result is to go there."""
    if path is not None and path.is_dir():
        raise ValueError(f"out={path} is a folder; name a file in it")


def write_text(path: Path | str, text: str) -> None:
    """`text` in UTF-8 at `path`, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
