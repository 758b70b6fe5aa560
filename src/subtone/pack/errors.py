"""Why a packed file was refused: one error, a closed set of reasons, one line of text."""

from __future__ import annotations

import enum
import os


class PackedFileReason(enum.StrEnum):
    """The only reasons, each with one meaning (docs/file-format.md, section 7)."""

    NOT_SUBTONE = "not subtone"
    TRUNCATED = "truncated"
    NEWER_VERSION = "newer version"
    CORRUPT_HEADER = "corrupt header"
    CORRUPT_TENSOR = "corrupt tensor"
    INVALID_TENSOR = "invalid tensor"
    BAD_PROGRAM = "bad program"


REMEDIES = {
    PackedFileReason.NOT_SUBTONE: "give a file that `subtone pack` wrote",
    PackedFileReason.TRUNCATED: "copy, download or pack it again",
    PackedFileReason.NEWER_VERSION: "upgrade subtone, or pack the model again with this one",
    PackedFileReason.CORRUPT_HEADER: "copy, download or pack it again",
    PackedFileReason.CORRUPT_TENSOR: "copy, download or pack it again",
    PackedFileReason.INVALID_TENSOR: "pack the model again with this version of subtone",
    PackedFileReason.BAD_PROGRAM: "pack the model again with this version of subtone",
}


class PackedFileError(ValueError):
    """A file that is not a sound `.subtone` file; its text is one printable line.

    `reason` says which of the closed set, `tensor` the constant concerned ("" if none), `offset`
    the byte from the start of the file where the trouble lies (None if nowhere in particular).
    """

    def __init__(
        self,
        reason: PackedFileReason,
        what: str,
        *,
        path: str | os.PathLike[str],
        tensor: str = "",
        offset: int | None = None,
    ) -> None:
        self.reason, self.path, self.tensor, self.offset = reason, os.fspath(path), tensor, offset
        where = [f"tensor {one_line(tensor)}"] if tensor else []
        where += [f"byte {offset}"] if offset is not None else []
        place = f" ({', '.join(where)})" if where else ""
        super().__init__(f"{one_line(self.path, 1000)}: {one_line(what, 300)}{place}; {REMEDIES[reason]}")


def one_line(text: str, limit: int = 120) -> str:
    """`text` in printable characters only, cut at `limit`: what a file says must not move the cursor.

    >>> one_line("a\\nb")
    'a\\\\nb'
    """
    text = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
