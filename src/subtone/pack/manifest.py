"""The manifest's rows: one for each constant, and where its bytes lie (docs/file-format.md, section 4).

A row says shape, bits and checksums; where the bytes lie follows from the order of the rows alone.
Nothing can overlap then, nothing can contradict itself, and a weight costs some 90 bytes of header
instead of 400: the reason why offsets, payload names and dtypes are not written down.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from subtone.pack.bits import num_packed_bytes
from subtone.program import IntegerWeight
from subtone.qtensor import QTensor

ALIGNMENT = 64
"""Bytes: of each payload and of each weight's codes, counted from the start of the file."""
SMALL_ALIGNMENT = 4
"""Bytes: of each section of the payload `rest`."""
MAX_DIMENSIONS = 8
MAX_NAME = 200
OBJECTS = ("front_end", "tokenizer", "recipe", "provenance")
"""JSON objects that travel in the manifest without being interpreted here."""

_FLOAT32, _FLOAT16, _INT8, _UINT8 = (np.dtype(kind) for kind in ("<f4", "<f2", "i1", "u1"))
INTEGERS: dict[str, np.dtype[Any]] = {"int32": np.dtype("<i4"), "int64": np.dtype("<i8")}
"""What an array of integers may be, by the name in its row."""
KINDS = ("weights", "floats", "levels", "integers")
"""Lists of rows, in the order of their bytes; the last two only in a file of version 3."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Bytes of one role of a constant: `num_bytes` from byte `offset` of the file, then zeros to `end`."""

    role: str
    dtype: np.dtype
    shape: tuple[int, ...]
    num_bytes: int
    crc32: str
    offset: int = 0
    end: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What the manifest says of one constant; `bits` 0 for an array, `num_levels` 0 without codebook.

    `has_scale`: whether it is a QTensor; an IntegerWeight has none.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    num_levels: int
    sections: tuple[Section, ...]
    has_scale: bool = False


# Rows ------------------------------------------------------------------------------------


def weight_row(name: str, weight: QTensor, crc32: str) -> list:
    """`[name, shape, bits, num_levels, shape of scale, shape of zero_point, checksums]`."""
    num_levels = 0 if weight.codebook is None else weight.num_levels
    shapes = [
        [int(size) for size in part] for part in (weight.shape, weight.scale.shape, weight.zero_point.shape)
    ]
    return [name, shapes[0], int(weight.bits), int(num_levels), shapes[1], shapes[2], crc32]


def float_row(name: str, values: np.ndarray, crc32: str) -> list:
    """`[name, shape, checksum]`."""
    return [name, list(values.shape), crc32]


def level_row(name: str, weight: IntegerWeight, crc32: str) -> list:
    """`[name, shape, bits, num_levels, checksums]`."""
    num_levels = 0 if weight.codebook is None else weight.num_levels
    return [name, [int(size) for size in weight.shape], int(weight.bits), int(num_levels), crc32]


def integer_row(name: str, values: np.ndarray, crc32: str) -> list:
    """`[name, shape, dtype, checksum]`."""
    return [name, list(values.shape), values.dtype.name, crc32]


def entries_of(constants: Any, codes_start: int, rest_start: int, *, has_integers: bool) -> tuple[Entry, ...]:
    """The manifest's `constants` as entries whose sections know their place in the file.

    ValueError where a row is not what docs/file-format.md says; no size is trusted beyond that: the
    caller compares the ends with the file.
    """
    _require_keys(constants, set(KINDS if has_integers else KINDS[:2]), "constants")
    cursors = {"codes": codes_start, "rest": rest_start}
    entries = []
    for kind in KINDS if has_integers else KINDS[:2]:
        read_row = _READERS[kind]
        _require(isinstance(constants[kind], list), f"constants.{kind} is not a list")
        for index, row in enumerate(constants[kind]):
            entry = read_row(row, f"constants.{kind}[{index}]")
            entries.append(dataclasses.replace(entry, sections=tuple(_placed(entry.sections, cursors))))
    names = [entry.name for entry in entries]
    _require(len(set(names)) == len(names), "a constant is listed twice")
    return tuple(entries)


def _placed(sections: tuple[Section, ...], cursors: dict[str, int]) -> Iterator[Section]:
    """Each section at its payload's cursor, which moves on to the next multiple of the alignment."""
    for section in sections:
        is_codes = section.role == "codes"
        payload, alignment = ("codes", ALIGNMENT) if is_codes else ("rest", SMALL_ALIGNMENT)
        offset = cursors[payload]
        cursors[payload] = offset + round_up(section.num_bytes, alignment)
        yield dataclasses.replace(section, offset=offset, end=cursors[payload])


def _read_weight_row(row: Any, where: str) -> Entry:
    _require(isinstance(row, list) and len(row) == 7, f"{where} is not a row of 7")
    name, shape, bits, num_levels, _, _, crc32 = row
    scale_shape, zero_point_shape = (_read_shape(row[index], where) for index in (4, 5))
    _require(len(scale_shape) == len(zero_point_shape) == 2, f"{where} has a scale with too few dimensions")
    stored = _FLOAT16 if scale_shape[1] > 1 else _FLOAT32
    parts = [
        ("scale", stored, scale_shape, math.prod(scale_shape) * stored.itemsize),
        ("zero_point", stored, zero_point_shape, math.prod(zero_point_shape) * stored.itemsize),
    ]
    entry = _read_codes((name, shape, bits, num_levels, crc32), parts, where)
    return dataclasses.replace(entry, has_scale=True)


def _read_level_row(row: Any, where: str) -> Entry:
    _require(isinstance(row, list) and len(row) == 5, f"{where} is not a row of 5")
    return _read_codes(tuple(row), [], where)


def _read_codes(head: tuple, between: list[tuple], where: str) -> Entry:
    """A constant of codes, then the sections `between`, then its codebook if it has one."""
    name, written_shape, bits, num_levels, crc32 = head
    check_name(name)
    shape = _read_shape(written_shape, where)
    _require(type(bits) is int and 1 <= bits <= 8, f"{where} has bits={bits!r}, not 1 to 8")
    _require(type(num_levels) is int and 0 <= num_levels <= 2**bits, f"{where} has num_levels={num_levels!r}")
    _require(len(shape) >= 2, f"{where} has a weight with too few dimensions")
    size = num_packed_bytes(math.prod(shape), bits)
    parts = [("codes", _UINT8, (shape[0], math.prod(shape[1:])), size), *between]
    if num_levels:
        parts.append(("codebook", _INT8, (2**bits,), 2**bits))
    sections = tuple(
        Section(role=role, dtype=dtype, shape=part, num_bytes=size, crc32=checksum)
        for (role, dtype, part, size), checksum in zip(
            parts, _read_crc32(crc32, len(parts), where), strict=True
        )
    )
    return Entry(name=name, shape=shape, bits=bits, num_levels=num_levels, sections=sections)


def _read_float_row(row: Any, where: str) -> Entry:
    _require(isinstance(row, list) and len(row) == 3, f"{where} is not a row of 3")
    name, shape, crc32 = row
    return _read_array((name, shape, crc32), _FLOAT32, where)


def _read_integer_row(row: Any, where: str) -> Entry:
    _require(isinstance(row, list) and len(row) == 4, f"{where} is not a row of 4")
    name, shape, kind, crc32 = row
    _require(
        isinstance(kind, str) and kind in INTEGERS, f"{where} has the type {kind!r:.40}, not int32 or int64"
    )
    return _read_array((name, shape, crc32), INTEGERS[kind], where)


def _read_array(head: tuple, dtype: np.dtype[Any], where: str) -> Entry:
    name, written_shape, crc32 = head
    check_name(name)
    shape = _read_shape(written_shape, where)
    (checksum,) = _read_crc32(crc32, 1, where)
    size = dtype.itemsize * math.prod(shape)
    value = Section(role="value", dtype=dtype, shape=shape, num_bytes=size, crc32=checksum)
    return Entry(name=name, shape=shape, bits=0, num_levels=0, sections=(value,))


_READERS = {
    "weights": _read_weight_row,
    "floats": _read_float_row,
    "levels": _read_level_row,
    "integers": _read_integer_row,
}


def _read_shape(shape: Any, where: str) -> tuple[int, ...]:
    _require(
        isinstance(shape, list)
        and 1 <= len(shape) <= MAX_DIMENSIONS
        and all(type(size) is int and 1 <= size < 2**40 for size in shape),
        f"{where} has the shape {shape!r:.80}",
    )
    return tuple(shape)


def _read_crc32(crc32: Any, count: int, where: str) -> list[str]:
    _require(
        isinstance(crc32, str) and re.fullmatch(f"[0-9a-f]{{{8 * count}}}", crc32) is not None,
        f"{where} has the checksums {crc32!r:.80}, not {count} of 8 hexadecimal digits",
    )
    return [crc32[8 * index : 8 * index + 8] for index in range(count)]


def check_name(name: object) -> None:
    """ValueError unless `name` may name a constant: 1 to 200 printable characters."""
    _require(
        isinstance(name, str) and 1 <= len(name) <= MAX_NAME and name.isprintable(),
        f"a constant is named {name!r:.80}; use 1 to {MAX_NAME} printable characters",
    )


def round_up(size: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not below `size`.

    >>> round_up(65, 64)
    128
    """
    return -(-size // alignment) * alignment


def _require_keys(value: Any, keys: set[str], where: str) -> None:
    _require(isinstance(value, dict) and set(value) == keys, f"{where} does not have the keys {sorted(keys)}")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
