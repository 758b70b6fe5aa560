"""A packed model as one `.subtone` file: written atomically, read without trusting a byte of it.

docs/file-format.md is normative. The file is a safetensors file of two U8 payloads: `codes`, the
weights' codes, each from a multiple of 64 bytes on; and `rest`, scales, zero points, codebooks and
float vectors. The reader maps the file, checks everything once and unpacks a constant each time it
is asked for, so that the engine can re-pack one weight after the other without a second copy of
the model in memory. Rejected: one payload a weight, whose table costs QuartzNet 18 kB.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subtone.files import replacing
from subtone.pack.bits import pack_codes, unpack_codes
from subtone.pack.errors import PackedFileError, PackedFileReason
from subtone.pack.header import header_bytes, read_header
from subtone.pack.manifest import (
    ALIGNMENT,
    INTEGERS,
    KINDS,
    MAX_DIMENSIONS,
    OBJECTS,
    SMALL_ALIGNMENT,
    Entry,
    Section,
    check_name,
    float_row,
    integer_row,
    level_row,
    round_up,
    weight_row,
)
from subtone.pack.strict_json import check_json
from subtone.program import Constant, IntegerWeight, Program
from subtone.qtensor import QTensor

Chunk = bytes | memoryview
CHECKED_FRAMES = 1000
"""Input frames for which a program's shapes are checked: ten seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedModel:
    """All that a `.subtone` file holds.

    `program` hears the features; `parts` are the other entry points of a model that has several, by name:
    a transducer's "predictor" and "joiner", of which `program` is the encoder. `constants`: exactly those
    that all of them read. The four objects are JSON (text keys; text,
    numbers, lists) and are not interpreted here: `front_end` makes features of sound, `tokenizer`
    makes text of logits, `recipe` and `provenance` say how the model came to be.
    """

    program: Program
    constants: Mapping[str, Constant]
    front_end: dict
    tokenizer: dict
    recipe: dict
    provenance: dict
    parts: Mapping[str, Program] = dataclasses.field(default_factory=dict)

    @property
    def programs(self) -> tuple[Program, ...]:
        """All entry points, `program` first."""
        return (self.program, *self.parts.values())


class PackedConstants(Mapping[str, Constant]):
    """The constants of a mapped file by name; each access unpacks anew and keeps nothing.

    Weights come as QTensors, float arrays as writable copies. `read_packed` has compared every
    checksum before it hands this out; what is checked on access is that the bytes form a QTensor.
    """

    def __init__(
        self, memory: NDArray[np.uint8], entries: tuple[Entry, ...], *, path: str | os.PathLike[str]
    ) -> None:
        self._memory, self._path = memory, path
        self._entries = {entry.name: entry for entry in entries}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Constant:
        entry = self._entries[name]
        parts = {section.role: self._part(section) for section in entry.sections if section.role != "codes"}
        try:
            if not entry.bits:
                check_array(name, parts["value"])
                return parts["value"]
            codes = entry.sections[0]
            stream = self._memory[codes.offset : codes.offset + codes.num_bytes]
            flat = unpack_codes(stream, entry.bits, codes.shape[0] * codes.shape[1])
            kind = QTensor if entry.has_scale else IntegerWeight
            return kind(
                codes=flat.reshape(codes.shape),
                shape=entry.shape,
                bits=entry.bits,
                num_levels=entry.num_levels,
                **parts,
            )
        except ValueError as error:
            raise PackedFileError(
                PackedFileReason.INVALID_TENSOR,
                str(error),
                path=self._path,
                tensor=name,
                offset=entry.sections[0].offset,
            ) from None

    def _part(self, section: Section) -> NDArray:
        data = self._memory[section.offset : section.offset + section.num_bytes]
        return data.view(section.dtype).reshape(section.shape).astype(section.dtype.newbyteorder("="))


# Writing ---------------------------------------------------------------------------------


def write_packed(path: str | os.PathLike[str], model: PackedModel) -> None:
    """Writes `model` to `path`, whole or not at all; equal models give equal bytes.

    The file is written beside `path` under another name and renamed when it is on the disk; where
    that fails (a full disk, Ctrl-C) what `path` held before is untouched and nothing is left over.

    Raises:
        ValueError: the model would not load again: the program does not fit its constants, a
            constant is not finite or is not read, an object is not JSON.
        OSError: `path` cannot be written.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; make it first")
    if target.exists() and not target.is_file():
        raise IsADirectoryError(f"{path} is not a file that can be replaced; give a file's name")
    chunks = packed_chunks(model)
    with replacing(target) as beside, open(beside, "xb") as file:
        for chunk in chunks:
            file.write(chunk)


def packed_chunks(model: PackedModel) -> list[Chunk]:
    """The bytes of `model`'s file in their order, header first: what `write_packed` writes."""
    _check_model(model)
    rows: dict[str, list[list]] = {kind: [] for kind in KINDS}
    codes: dict[str, list[Chunk]] = {kind: [] for kind in KINDS}
    rest: dict[str, list[Chunk]] = {kind: [] for kind in KINDS}
    for name in _names_read(model.programs):
        constant = model.constants[name]
        kind, row_of, parts = _stored(constant)
        if isinstance(constant, QTensor | IntegerWeight):
            packed = pack_codes(constant.codes, constant.bits).data
            codes[kind] += _padded([packed], ALIGNMENT)
            rows[kind].append(row_of(name, constant, _crc32(packed, *parts)))
        else:
            rows[kind].append(row_of(name, constant, _crc32(*parts)))
        for part in parts:
            rest[kind] += _padded([part], SMALL_ALIGNMENT)
    if not rows["levels"] and not rows["integers"]:
        rows = {kind: rows[kind] for kind in KINDS[:2]}
    payloads = [[chunk for of_kind in payload.values() for chunk in of_kind] for payload in (codes, rest)]
    payloads[1] = _padded(payloads[1], ALIGNMENT)
    objects = {name: getattr(model, name) for name in OBJECTS}
    programs: dict[str, Any] = {"program": model.program.to_json()}
    if model.parts:
        programs["parts"] = {name: program.to_json() for name, program in model.parts.items()}
    manifest = {**programs, **objects, "constants": rows}
    sizes = [_num_bytes(payload) for payload in payloads]
    return [header_bytes(manifest, *sizes), *payloads[0], *payloads[1]]


def _stored(constant: Constant) -> tuple[str, Callable[..., list], list[Chunk]]:
    """The list that has the row of `constant`, what makes its row, and what of it lies in `rest`."""
    if isinstance(constant, QTensor):
        roles = (constant.scale, constant.zero_point, constant.codebook)
        return "weights", weight_row, [_little_endian(part) for part in roles if part is not None]
    if isinstance(constant, IntegerWeight):
        book: list[Chunk] = [] if constant.codebook is None else [_little_endian(constant.codebook)]
        return "levels", level_row, book
    if constant.dtype == np.float32:
        return "floats", float_row, [_little_endian(constant)]
    return "integers", integer_row, [_little_endian(constant)]


def _check_model(model: PackedModel) -> None:
    """ValueError at the first thing that would keep the file from loading."""
    for name in OBJECTS:
        value = getattr(model, name)
        if not isinstance(value, dict):
            raise ValueError(f"{name} is a {type(value).__name__}; a packed file needs a dict")
        check_json(value, name)
    for name, constant in model.constants.items():
        check_name(name)
        if isinstance(constant, QTensor | IntegerWeight):
            try:
                constant.validate()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        else:
            check_array(name, constant)
        shape = tuple(constant.shape)
        if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 1:
            raise ValueError(
                f"{name} has the shape {shape}; a packed constant is not empty, nor a single number"
            )
    for program in model.programs:
        if Program.from_json(program.to_json()) != program:
            raise ValueError(
                "the program changes on its way through JSON; give its fields plain str, int and bool"
            )
    for name in model.parts:
        check_name(name)
    _check_programs(model.programs, model.constants)


def check_array(name: str, values: NDArray) -> None:
    """ValueError that names the constant unless it is an array of finite float32, of int32 or of int64."""
    if not isinstance(values, np.ndarray) or values.dtype.name not in ("float32", *INTEGERS):
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(
            f"{name} is {kind}; a constant is a QTensor, an IntegerWeight, or an array of float32, int32 or int64"
        )
    if not np.isfinite(values).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"{name} is {values[place]} at {list(place)}; a packed constant must be finite")


def _check_programs(programs: Sequence[Program], constants: Mapping[str, Constant]) -> None:
    unread = sorted(set(constants) - set(_names_read(programs)))
    if unread:
        raise ValueError(f"no operation reads the constant {unread[0]} ({len(unread)} such); leave it out")
    for program in programs:
        program.shapes(CHECKED_FRAMES, constants)


def _names_read(programs: Sequence[Program]) -> list[str]:
    """The constants in the order in which the programs first read them: the order in the file."""
    return list(dict.fromkeys(name for program in programs for name in program.constants_read))


def _little_endian(values: NDArray) -> memoryview:
    """The bytes of `values` in row-major order."""
    stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(np.uint8).data


def _padded(parts: list, alignment: int) -> list:
    """`parts` and the zeros that bring their bytes to a multiple of `alignment`."""
    size = _num_bytes(parts)
    return [*parts, bytes(round_up(size, alignment) - size)]


def _num_bytes(chunks: list) -> int:
    return sum(len(chunk) for chunk in chunks)


def _crc32(*sections: Chunk) -> str:
    """Eight lower-case hexadecimal digits for each section, joined."""
    return "".join(f"{zlib.crc32(section):08x}" for section in sections)


# Reading ---------------------------------------------------------------------------------


def read_packed(path: str | os.PathLike[str]) -> PackedModel:
    """The model in the `.subtone` file at `path`, every byte of which has been checked.

    The file is mapped, not copied: its constants are unpacked when asked for (PackedConstants).

    Raises:
        PackedFileError: the file is not a sound `.subtone` file; says why, where and what to do.
        OSError: there is no such file, or it cannot be read.
    """
    memory = _map_file(path)
    header = read_header(memory, path)
    end = header.num_bytes
    for entry in header.entries:
        for section in entry.sections:
            _check_section(memory, entry.name, section, path)
            end = max(end, section.end)
    _check_zeros(memory, end, len(memory), "", path)
    constants = PackedConstants(memory, header.entries, path=path)
    try:
        program = Program.from_json(header.manifest["program"])
        parts = {name: Program.from_json(part) for name, part in header.manifest.get("parts", {}).items()}
        _check_programs((program, *parts.values()), constants)
    except PackedFileError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise PackedFileError(
            PackedFileReason.BAD_PROGRAM, f"the program does not hold together: {error}", path=path
        ) from None
    objects = {name: header.manifest[name] for name in OBJECTS}
    return PackedModel(program=program, parts=parts, constants=constants, **objects)


def _check_section(
    memory: NDArray[np.uint8], name: str, section: Section, path: str | os.PathLike[str]
) -> None:
    stop = section.offset + section.num_bytes
    if _crc32(memory[section.offset : stop].data) != section.crc32:
        raise PackedFileError(
            PackedFileReason.CORRUPT_TENSOR,
            f"the {section.num_bytes} bytes of its {section.role} differ from their checksum",
            path=path,
            tensor=name,
            offset=section.offset,
        )
    _check_zeros(memory, stop, section.end, name, path)


def _check_zeros(
    memory: NDArray[np.uint8], start: int, stop: int, name: str, path: str | os.PathLike[str]
) -> None:
    set_bytes = np.flatnonzero(memory[start:stop])
    if set_bytes.size:
        raise PackedFileError(
            PackedFileReason.CORRUPT_TENSOR,
            "padding is not zero",
            path=path,
            tensor=name,
            offset=start + int(set_bytes[0]),
        )


def _map_file(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The bytes of the file, mapped and read-only; pages stay with the file, not with the process."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; give the path of a .subtone file") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder; give the path of a .subtone file")
    if not stat.S_ISREG(mode):
        raise PackedFileError(
            PackedFileReason.NOT_SUBTONE, "this is a device or a pipe, not a file", path=path
        )
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise PackedFileError(PackedFileReason.TRUNCATED, "the file is empty", path=path, offset=0)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
