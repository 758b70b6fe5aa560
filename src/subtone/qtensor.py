"""QTensor: the only form in which a weight crosses from training to the device.

One equation holds for all methods (docs/numerics.md):

    real = scale * (level - zero_point),  level = codebook[code] if there is one, else code

Granularity is the shape of `scale`, never a flag.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from subtone import numerics

FLOAT16_MAX = 65504.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Codes(abc.ABC):
    """What is stored of a weight in 1 to 8 bits, whatever a level is worth: of it are QTensor and IntegerWeight.

    Rows are output channels (or embedding rows); columns are the rest, flattened (taps, in).

    * `codes`: uint8 (out, columns), below `2**bits`; below `num_levels` with a codebook.
    * `shape`: the weight's own torch shape: (out, in), (out, in, width) or (out, in, height,
      width), never empty; its product is the number of codes, its first entry the number of rows.
    * `codebook`: int8 (2**bits,), ascending, k of k/128, padded by repeating the last; or None.
    * `num_levels`: how many of the codebook's entries are meant; `2**bits` without one.

    `validate()` checks this same list and runs on construction.
    """

    codes: NDArray[np.uint8]
    shape: tuple[int, ...]
    bits: int
    codebook: NDArray[np.int8] | None = None
    num_levels: int = 0

    def __post_init__(self) -> None:
        if not self.num_levels:
            object.__setattr__(self, "num_levels", 2 ** numerics.check_bits(self.bits))
        self.validate()

    @property
    def num_rows(self) -> int:
        return self.codes.shape[0]

    @property
    def num_columns(self) -> int:
        return self.codes.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes that the codes and all that decodes them take when packed, without padding."""
        book = 0 if self.codebook is None else self.codebook.nbytes
        return math.ceil(self.codes.size * self.bits / 8) + book

    @property
    def code_offset(self) -> int:
        """What `levels()` subtracts from an affine code: `2**(bits-1)`; 0 with a codebook."""
        return 0 if self.codebook is not None else 2 ** (self.bits - 1)

    def levels(self) -> NDArray[np.int8]:
        """int8 (out, columns): what the integer product multiplies.

        Codebook levels as they are; affine codes less `2**(bits-1)`, so that 8 bits fit int8.
        """
        if self.codebook is not None:
            return self.codebook[self.codes]
        return (self.codes.astype(np.int16) - self.code_offset).astype(np.int8)

    def validate(self) -> None:
        """Raise ValueError at the first invariant of the class docstring that does not hold."""
        numerics.check_bits(self.bits)
        codes, book = self.codes, self.codebook
        self._require(
            codes.dtype == np.uint8 and codes.ndim == 2,
            f"codes are {codes.dtype} {codes.shape}, not uint8 (out, columns)",
        )
        self._require(
            2 <= len(self.shape) <= 4 and min(self.shape) >= 1,
            f"shape={self.shape} is not (out, in), (out, in, width) or (out, in, height, width), each 1 or more",
        )
        self._require(
            math.prod(self.shape) == codes.size, f"shape={self.shape} does not hold {codes.size} codes"
        )
        self._require(
            self.shape[0] == codes.shape[0], f"shape={self.shape} does not have {codes.shape[0]} rows"
        )
        self._require(
            1 <= self.num_levels <= 2**self.bits,
            f"num_levels={self.num_levels} does not fit bits={self.bits}",
        )
        self._require(
            int(codes.max()) < self.num_levels,
            f"a code is {int(codes.max())}, beyond the {self.num_levels} levels",
        )
        if book is None:
            self._require(self.num_levels == 2**self.bits, f"num_levels={self.num_levels} without a codebook")
            return
        self._require(
            book.dtype == np.int8 and book.shape == (2**self.bits,),
            f"codebook is {book.dtype} {book.shape}",
        )
        self._require(bool(np.all(book[1:] >= book[:-1])), "codebook does not ascend")
        self._require(
            bool(np.all(book[self.num_levels - 1 :] == book[-1])),
            "codebook is not padded by its last level",
        )

    @classmethod
    def _require(cls, holds: bool, complaint: str) -> None:
        if not holds:
            raise ValueError(f"not {'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}: {complaint}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QTensor(Codes):
    """A weight in 1 to 8 bits: its codes, and what a level is worth.

    Beside those of `Codes`:

    * `scale`: real units per level; (1, 1) per tensor, (out, 1) per channel, both float32;
      (out, groups) per group, float16. Finite. Negative where a negative BatchNorm multiplier
      was folded in; 0 for a group of zeros.
    * `zero_point`: the level that means real 0; (1, 1) or the shape of `scale`, the dtype of
      `scale`, finite, not necessarily whole. With a codebook it is 0.
    * Groups divide the input channels: a group lies along the inputs of one tap. A kernel with
      one input channel (depthwise) has none.

    >>> weight = np.array([[-1.0, 0.0, 0.5, 1.0]], np.float32)
    >>> grid = numerics.symmetric_grid(np.array([[1.0]]), bits=4)
    >>> QTensor.on_grid(weight, grid, bits=4, is_symmetric=True).codes.tolist()
    [[1, 8, 12, 15]]
    """

    scale: NDArray[np.float32] | NDArray[np.float16]
    zero_point: NDArray[np.float32] | NDArray[np.float16]

    # Construction ------------------------------------------------------------------------

    @classmethod
    def on_grid(
        cls, weight: NDArray[np.float32], grid: numerics.Grid, bits: int, *, is_symmetric: bool
    ) -> QTensor:
        """`weight` (torch shape) rounded to `grid`, whose arrays are (1, 1), (out, 1) or (out, groups).

        Group scales and zero points are rounded to float16 *before* the codes are chosen.
        """
        flat = flatten_weight(weight)
        scale, zero_point = as_stored(grid.scale), as_stored(grid.zero_point, like=grid.scale)
        spread = [spread_columns(part.astype(np.float32), flat.shape[1]) for part in (scale, zero_point)]
        codes = numerics.codes_on_grid(flat, numerics.Grid(*spread), bits, is_symmetric=is_symmetric)
        return cls(codes=codes, shape=weight.shape, scale=scale, zero_point=zero_point, bits=bits)

    @classmethod
    def on_codebook(
        cls, weight: NDArray[np.float32], scale: NDArray[np.float32], levels: NDArray[np.int8], bits: int
    ) -> QTensor:
        """`weight` at the nearest of `scale * levels`; `levels` int8 ascending, `scale` (1, 1) or (out, 1)."""
        scale = np.asarray(scale, np.float32)
        codes = numerics.codes_on_codebook(flatten_weight(weight), scale, levels)
        return cls(
            codes=codes,
            shape=weight.shape,
            scale=scale,
            zero_point=np.zeros((1, 1), np.float32),
            bits=bits,
            codebook=numerics.pad_codebook(levels, bits),
            num_levels=len(levels),
        )

    # Facts -------------------------------------------------------------------------------

    @property
    def group_size(self) -> int | None:
        """Consecutive columns that share a scale; None per tensor and per channel."""
        groups = self.scale.shape[1]
        return None if groups == 1 else self.num_columns // groups

    @property
    def granularity(self) -> str:
        if self.group_size is not None:
            return f"group of {self.group_size}"
        return "channel" if self.scale.shape[0] > 1 else "tensor"

    @property
    def grid(self) -> str:
        """`codebook`, `symmetric` (zero_point in the middle) or `asymmetric`."""
        if self.codebook is not None:
            return "codebook"
        middle = 0.5 if self.bits == 1 else 2.0 ** (self.bits - 1)
        return "symmetric" if np.all(self.zero_point == middle) else "asymmetric"

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self.scale.nbytes + self.zero_point.nbytes

    # Values ------------------------------------------------------------------------------

    def level_zero_point(self) -> NDArray[np.float32]:
        """`zero_point` in the units of `levels()`, float32, in the shape of `zero_point`."""
        return self.zero_point.astype(np.float32) - np.float32(self.code_offset)

    def dequantize(self) -> NDArray[np.float32]:
        """The weight in its own shape, float32: one subtraction and one product per value."""
        columns = self.num_columns
        level = self.codes if self.codebook is None else self.codebook[self.codes]
        zero_point = spread_columns(self.zero_point.astype(np.float32), columns)
        scale = spread_columns(self.scale.astype(np.float32), columns)
        return unflatten_weight(scale * (level.astype(np.float32) - zero_point), self.shape)

    def validate(self) -> None:
        """Raise ValueError at the first invariant of the class docstring that does not hold."""
        super().validate()
        scale, zero_point = self.scale, self.zero_point
        self._require(
            scale.ndim == 2 and scale.shape[0] in (1, self.num_rows) and scale.shape[1] >= 1,
            f"scale has shape {scale.shape}",
        )
        groups = scale.shape[1]
        if groups > 1:
            self._require(
                scale.shape[0] == self.num_rows,
                f"scale of shape {scale.shape} has groups but not one row a channel",
            )
            self._require(
                self.shape[1] > 1, f"a kernel with one input has one scale a channel, not {groups} groups"
            )
            self._require(
                self.num_columns % groups == 0, f"{groups} groups do not divide {self.num_columns} columns"
            )
            check_group_size(self.shape, self.num_columns // groups)
        stored = np.float16 if groups > 1 else np.float32
        self._require(scale.dtype == stored, f"scale is {scale.dtype}, stored as {np.dtype(stored)}")
        self._require(
            zero_point.dtype == stored, f"zero_point is {zero_point.dtype}, stored as {np.dtype(stored)}"
        )
        self._require(
            zero_point.shape in ((1, 1), scale.shape),
            f"zero_point of shape {zero_point.shape} does not fit scale {scale.shape}",
        )
        self._require(bool(np.isfinite(scale).all()), "scale is not finite")
        self._require(bool(np.isfinite(zero_point).all()), "zero_point is not finite")
        self._require(
            self.codebook is None or (groups == 1 and not np.any(zero_point)),
            "a codebook has one scale per tensor or channel and zero_point 0",
        )


def flatten_weight(weight: NDArray) -> NDArray:
    """(out, in, *taps) as (out, taps * in): the inputs of one tap lie together.

    >>> flatten_weight(np.arange(6).reshape(1, 2, 3)).tolist()
    [[0, 3, 1, 4, 2, 5]]
    """
    return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)


def unflatten_weight(flat: NDArray, shape: tuple[int, ...]) -> NDArray:
    """The inverse of `flatten_weight`: (out, taps * in) in the weight's own `shape`."""
    out, inputs, *taps = shape
    return np.ascontiguousarray(np.moveaxis(flat.reshape(out, *taps, inputs), -1, 1))


def check_group_size(shape: tuple[int, ...], group_size: int, *, name: str = "the weight") -> int:
    """`group_size` as a count of groups in a row, if it divides the input channels of `shape`."""
    inputs, taps = shape[1], math.prod(shape[2:])
    if group_size < 1 or inputs % group_size:
        divisors = [size for size in (128, 64, 32, 16, 8, 4, 2) if inputs % size == 0]
        remedy = (
            f"use a divisor such as {' or '.join(map(str, divisors[:2]))}"
            if divisors
            else "use one scale a channel"
        )
        raise ValueError(f"group_size={group_size} does not divide {inputs} inputs of {name}; {remedy}")
    return taps * (inputs // group_size)


def as_stored(values: NDArray, like: NDArray | None = None) -> NDArray[np.float32] | NDArray[np.float16]:
    """Scales in the precision in which they are stored: float16 per group, else float32.

    `like` decides the precision for a zero_point, which may be smaller than its scale.
    """
    groups = (values if like is None else like).shape[1]
    if groups == 1:
        return np.asarray(values, np.float32)
    if np.any(np.abs(values) > FLOAT16_MAX):
        raise ValueError(
            "a group's scale or zero_point exceeds float16; use one scale a channel for this weight"
        )
    return np.asarray(values, np.float16)


def spread_columns(values: NDArray, columns: int) -> NDArray:
    """(rows, groups) repeated along the columns each group covers: (rows, 1) or (rows, columns)."""
    groups = values.shape[1]
    return values if groups == 1 else np.repeat(values, columns // groups, axis=1)
