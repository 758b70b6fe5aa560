"""Packed models: codes to bytes and back, and the `.subtone` file (docs/file-format.md)."""

from subtone.pack.bits import pack_codes, unpack_codes
from subtone.pack.container import PackedConstants, PackedModel, read_packed, write_packed
from subtone.pack.errors import PackedFileError, PackedFileReason
from subtone.pack.sizes import ConstantSize, PackedSizes, packed_sizes

__all__ = [
    "ConstantSize",
    "PackedConstants",
    "PackedFileError",
    "PackedFileReason",
    "PackedModel",
    "PackedSizes",
    "pack_codes",
    "packed_sizes",
    "read_packed",
    "unpack_codes",
    "write_packed",
]
