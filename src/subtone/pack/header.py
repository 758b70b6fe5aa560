"""The front of a `.subtone` file: a safetensors header that announces two payloads and a manifest.

Written and read from docs/file-format.md, sections 2 and 3. The safetensors library is not used to
read: it trusts what we must check, and its messages name neither file nor tensor.
"""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.pack.errors import PackedFileError, PackedFileReason
from subtone.pack.manifest import ALIGNMENT, OBJECTS, Entry, check_name, entries_of, round_up
from subtone.pack.strict_json import dump_json, parse_json

MAGIC = b'{"__metadata__":{"format":"subtone",'
"""The bytes from byte 8 on, in every version."""
VERSION = 3
"""The newest that is read. A file is written in the oldest that can hold it: 3 where its constants are levels or
integers, 2 where it has `parts`."""
KEYS = ("program", *OBJECTS, "constants")
"""Of a manifest of version 1."""
MAX_HEADER_BYTES = 1 << 24
LENGTH_BYTES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What stands before the payloads: the manifest, where each constant lies, and its own size."""

    manifest: dict
    entries: tuple[Entry, ...]
    num_bytes: int


def header_bytes(manifest: dict, codes_bytes: int, rest_bytes: int) -> bytes:
    """Length and header of a file whose payloads have these sizes; its end is aligned with spaces."""
    text = dump_json(manifest)
    metadata = {
        "format": "subtone",
        "version": str(version_of(manifest)),
        "manifest_crc32": f"{zlib.crc32(text.encode()):08x}",
        "manifest": text,
    }
    header = dump_json({"__metadata__": metadata, **_table(codes_bytes, rest_bytes)}).encode()
    length = round_up(LENGTH_BYTES + len(header), ALIGNMENT) - LENGTH_BYTES
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"the header takes {length} bytes; a .subtone file holds {MAX_HEADER_BYTES} at most")
    return length.to_bytes(LENGTH_BYTES, "little") + header.ljust(length)


def version_of(manifest: dict) -> int:
    """The oldest that can hold `manifest`."""
    if "integers" in manifest["constants"]:
        return 3
    return 2 if "parts" in manifest else 1


def read_header(memory: NDArray[np.uint8], path: str | os.PathLike[str]) -> Header:
    """The header of the file whose bytes are `memory`, checked against the file's size.

    Raises PackedFileError (all reasons but those of tensors and program).
    """
    start = _payload_start(memory, path)
    try:
        document = parse_json(_unpadded(memory[LENGTH_BYTES:start].tobytes()).decode())
        text = _manifest_text(document, path)
        codes_bytes, rest_bytes = (_payload_bytes(document, name) for name in ("codes", "rest"))
        expected = {"__metadata__": document["__metadata__"], **_table(codes_bytes, rest_bytes)}
        _require(dump_json(document) == dump_json(expected), "the table of payloads contradicts itself")
    except PackedFileError:
        raise
    except ValueError as error:
        raise _corrupt(f"the header is not sound: {error}", path) from None
    _check_file_size(len(memory), start + codes_bytes + rest_bytes, path)
    try:
        manifest = parse_json(text)
        _require(
            isinstance(manifest, dict)
            and set(manifest) in ({*KEYS}, {*KEYS, "parts"} if _version(document) > 1 else {*KEYS}),
            "other keys",
        )
        parts = manifest.get("parts", {})
        _require(isinstance(parts, dict), "parts is not an object")
        _require(bool(parts) or "parts" not in manifest, "parts is empty")
        for name in parts:
            check_name(name)
        for name in OBJECTS:
            _require(isinstance(manifest[name], dict), f"{name} is not an object")
        entries = entries_of(
            manifest["constants"], start, start + codes_bytes, has_integers=_version(document) > 2
        )
        _check_ends(entries, start, codes_bytes, rest_bytes)
    except ValueError as error:
        raise _corrupt(f"the manifest is not sound: {error}", path) from None
    return Header(manifest=manifest, entries=entries, num_bytes=start)


def _payload_start(memory: NDArray[np.uint8], path: str | os.PathLike[str]) -> int:
    size = len(memory)
    seen = memory[LENGTH_BYTES : LENGTH_BYTES + len(MAGIC)].tobytes()
    if not MAGIC.startswith(seen):
        raise PackedFileError(PackedFileReason.NOT_SUBTONE, "this is not a .subtone file", path=path)
    if len(seen) < len(MAGIC):
        raise PackedFileError(
            PackedFileReason.TRUNCATED, f"the file ends after {size} bytes", path=path, offset=size
        )
    length = int.from_bytes(memory[:LENGTH_BYTES].tobytes(), "little")
    start = LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or start % ALIGNMENT:
        raise _corrupt(f"a header cannot have {length} bytes", path, offset=0)
    if size < start:
        raise _truncated(size, start, path)
    return start


def _check_file_size(size: int, announced: int, path: str | os.PathLike[str]) -> None:
    if size < announced:
        raise _truncated(size, announced, path)
    if size > announced:
        raise _corrupt(f"the file has {size} bytes, its header announces {announced}", path, offset=announced)


def _unpadded(header: bytes) -> bytes:
    """`header` without the spaces behind its last brace."""
    text = header.rstrip(b" ")
    _require(text.endswith(b"}") and len(header) - len(text) < ALIGNMENT, "it does not end in } and spaces")
    return text


def _manifest_text(document: Any, path: str | os.PathLike[str]) -> str:
    """The manifest, its checksum verified; a newer version is told before anything else is looked at."""
    metadata = document["__metadata__"]
    version = metadata.get("version")
    if not isinstance(version, str) or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise _corrupt(f"its version is {version!r:.40}", path)
    if int(version) > VERSION:
        raise PackedFileError(
            PackedFileReason.NEWER_VERSION,
            f"the file has version {version}, this subtone reads up to {VERSION}",
            path=path,
        )
    _require(
        set(metadata) == {"format", "version", "manifest_crc32", "manifest"}
        and all(isinstance(value, str) for value in metadata.values()),
        "its metadata has other keys or values",
    )
    _require(
        metadata["manifest_crc32"] == f"{zlib.crc32(metadata['manifest'].encode()):08x}",
        "the manifest differs from its checksum",
    )
    return metadata["manifest"]


def _version(document: Any) -> int:
    return int(document["__metadata__"]["version"])


def _payload_bytes(document: dict, name: str) -> int:
    entry = document.get(name)
    shape = entry.get("shape") if isinstance(entry, dict) else None
    size = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
    if type(size) is not int or size < 0 or size % ALIGNMENT:
        raise ValueError(f"its payload {name} is not one of a multiple of {ALIGNMENT} bytes")
    return size


def _table(codes_bytes: int, rest_bytes: int) -> dict:
    end = codes_bytes + rest_bytes
    return {
        "codes": {"dtype": "U8", "shape": [codes_bytes], "data_offsets": [0, codes_bytes]},
        "rest": {"dtype": "U8", "shape": [rest_bytes], "data_offsets": [codes_bytes, end]},
    }


def _check_ends(entries: tuple[Entry, ...], start: int, codes_bytes: int, rest_bytes: int) -> None:
    """The sections fill both payloads, no more and no less."""
    sections = [section for entry in entries for section in entry.sections]
    for payload, first, size in (("codes", start, codes_bytes), ("rest", start + codes_bytes, rest_bytes)):
        ends = [section.end for section in sections if (section.role == "codes") == (payload == "codes")]
        needed = round_up(max(ends, default=first) - first, ALIGNMENT)
        _require(needed == size, f"its constants fill {needed} bytes of {payload}, which has {size}")


def _truncated(size: int, announced: int, path: str | os.PathLike[str]) -> PackedFileError:
    what = f"the file ends after {size} bytes, its header announces {announced}"
    return PackedFileError(PackedFileReason.TRUNCATED, what, path=path, offset=size)


def _corrupt(what: str, path: str | os.PathLike[str], offset: int | None = None) -> PackedFileError:
    return PackedFileError(PackedFileReason.CORRUPT_HEADER, what, path=path, offset=offset)


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
