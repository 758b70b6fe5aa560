"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; it takes `path`'s place on success.

    On any failure, Ctrl-C and a full disk included, what was written is removed and what stood at
    `path` is untouched. A folder replaces a folder, a file a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield beside
        if beside.is_dir():
            if path.is_dir():
                shutil.rmtree(path)
        else:
            with open(beside, "rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """`text` in UTF-8 at `path`, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
