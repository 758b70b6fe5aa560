"""Files that are there whole or not at all."""

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
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield beside
        for written in [*beside.rglob("*"), beside] if beside.is_dir() else [beside]:
            _sync(written)
        if beside.is_dir() and target.is_dir():
            _exchange_folders(beside, target)
        else:
            os.replace(beside, target)
        _sync(target.parent)
    except OSError as error:
        reason = f"{error.strerror or error}; nothing was written, what was there before is unchanged"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def _exchange_folders(new: Path, target: Path) -> None:
    """`new` under the name of `target`, whose old folder goes only when that has succeeded.

    Two renames, since none exchanges folders everywhere: if the second fails, the first is undone.
    """
    aside = new.with_suffix(".old")
    try:
        os.replace(target, aside)
        os.replace(new, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    """Makes what was written last through a power cut, where that can be asked for."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """`text` in UTF-8 at `path`, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
