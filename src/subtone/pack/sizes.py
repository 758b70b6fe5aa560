"""Where the bytes of a packed model go: what `subtone inspect` prints."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from subtone.pack.bits import num_packed_bytes
from subtone.pack.container import PackedModel, packed_chunks, read_packed
from subtone.pack.header import LENGTH_BYTES
from subtone.program import Constant
from subtone.qtensor import QTensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantSize:
    """One constant as stored; bytes without padding.

    `sections`: role -> bytes (codes, scale, zero_point, codebook; or value). A float array has
    `bits` 32, grid and granularity "" and `num_distinct` 0; of a weight `num_distinct` levels occur.
    """

    shape: tuple[int, ...]
    bits: int
    grid: str
    granularity: str
    num_distinct: int
    sections: dict[str, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.sections.values())

    @property
    def is_float(self) -> bool:
        return "value" in self.sections


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSizes:
    """A whole file: the bytes of its constants, of its header, and of all."""

    constants: dict[str, ConstantSize]
    header_bytes: int
    file_bytes: int

    @property
    def padding_bytes(self) -> int:
        return self.file_bytes - self.header_bytes - sum(self.sections.values())

    @property
    def sections(self) -> dict[str, int]:
        """Role -> bytes, summed over the constants."""
        totals: dict[str, int] = {}
        for constant in self.constants.values():
            for role, num_bytes in constant.sections.items():
                totals[role] = totals.get(role, 0) + num_bytes
        return totals


def packed_sizes(source: str | os.PathLike[str] | PackedModel) -> PackedSizes:
    """The sizes of a `.subtone` file, or of the file that a model would become.

    Raises what `read_packed` or `write_packed` would.
    """
    if isinstance(source, PackedModel):
        model = source
        header_bytes, *payloads = [len(chunk) for chunk in packed_chunks(model)]
        file_bytes = header_bytes + sum(payloads)
    else:
        model, file_bytes = read_packed(source), os.path.getsize(source)
        with open(source, "rb") as file:
            header_bytes = LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little")
    constants = {name: _size_of(constant) for name, constant in model.constants.items()}
    return PackedSizes(constants=constants, header_bytes=header_bytes, file_bytes=file_bytes)


def _size_of(constant: Constant) -> ConstantSize:
    if isinstance(constant, np.ndarray):
        return ConstantSize(
            shape=tuple(constant.shape),
            bits=8 * constant.itemsize,
            grid="",
            granularity="",
            num_distinct=0,
            sections={"value": constant.nbytes},
        )
    used = np.flatnonzero(np.bincount(constant.codes.reshape(-1)))
    sections = {"codes": num_packed_bytes(constant.codes.size, constant.bits)}
    grid, granularity = ("codebook" if constant.codebook is not None else "integers"), "row"
    if isinstance(constant, QTensor):
        sections |= {"scale": constant.scale.nbytes, "zero_point": constant.zero_point.nbytes}
        grid, granularity = constant.grid, constant.granularity
    if constant.codebook is not None:
        sections["codebook"] = constant.codebook.nbytes
    return ConstantSize(
        shape=tuple(constant.shape),
        bits=constant.bits,
        grid=grid,
        granularity=granularity,
        num_distinct=len(used if constant.codebook is None else np.unique(constant.codebook[used])),
        sections=sections,
    )
