"""Operations on integers alone: products by levels, sums, and the requantization that ends each of them.

In an integer-only program every value is an int32 matrix (rows, width); what one of it is worth, its scale, is
known when the program is made and is no part of it. Every operation ends in the same way: a 64-bit total is
shifted back, rounded half up, and clipped,

    y = clip((total + 2**(shift - 1)) >> shift, low, high),   1 <= shift <= 62

so that `low` and `high` bound the value; `low` 0 is a ReLU. From these bounds alone follows that no sum overflows:
`bounds` proves it for every operation, in Python, before anything runs (docs/numerics.md, section 7).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from subtone.program.convolutions import OverFeatures, OverFrames, check_conv1d, check_conv2d
from subtone.program.integer_weight import IntegerWeight
from subtone.program.operation import Constants, Integers, Operation, require
from subtone.program.rowwise import equal_width

MAX_LEVEL = 2**31 - 1
MAX_TOTAL = 2.0**62
"""Of a total and all that it is a sum of, so that its rounding term fits 64 bits too."""
MAX_SHIFT = 62


class Bounds(NamedTuple):
    """The lowest and the highest level that a value can have."""

    low: int
    high: int

    @property
    def magnitude(self) -> int:
        return max(-self.low, self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerOperation(Operation):
    """What ends in a requantization onto `low` to `high`."""

    ARITHMETIC: ClassVar = "integer"
    output: str
    low: int
    high: int
    source: str = ""

    @abc.abstractmethod
    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        """ValueError unless its inputs, within `bounds` by their fields, can overflow nothing."""

    def bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> dict[str, Bounds]:
        """Of every result by its field; ValueError as `check_bounds`."""
        require(
            -MAX_LEVEL <= self.low < self.high <= MAX_LEVEL,
            f"{where} has low={self.low} and high={self.high}; they must ascend within {-MAX_LEVEL} and {MAX_LEVEL}",
        )
        self.check_bounds(bounds, constants, where)
        return dict.fromkeys(self.RESULTS, Bounds(self.low, self.high))


def integers_of(constants: Constants, name: str) -> Integers:
    """The integer array called `name`, which `require_integers` has found to be one."""
    value = constants[name]
    assert isinstance(value, np.ndarray)
    return value


def levels_of(constants: Constants, name: str) -> IntegerWeight:
    weight = constants[name]
    assert isinstance(weight, IntegerWeight)
    return weight


def require_integers(
    constants: Constants, name: str, role: str, shape: tuple[int, ...], where: str, *, dtype: type = np.int32
) -> None:
    """ValueError unless `name` is absent or an array of `dtype` and `shape`."""
    if name:
        value = constants[name]
        fits = isinstance(value, np.ndarray) and value.dtype == dtype and value.shape == shape
        kind = np.dtype(dtype).name
        require(fits, f"{where} needs {role} of {shape} in {kind}, {name} does not fit")


def require_shift(shift: int, where: str) -> None:
    require(1 <= shift <= MAX_SHIFT, f"{where} has shift={shift}; use 1 to {MAX_SHIFT}")


def require_total(total: float, where: str) -> None:
    require(
        total < MAX_TOTAL,
        f"{where} may reach a total of {total:.3g}, beyond 2**62; give it a larger range or a smaller multiplier",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfLevels(IntegerOperation):
    """What reads the levels of a weight (rows, groups of columns): what a level of each group is worth.

    `multiplier` int32 (rows, groups); `correction` int64, the same shape: what a zero point takes; `shift` int32 (rows,).
    """

    ROLES: ClassVar[tuple[str, ...]] = ("weight", "multiplier", "shift", "correction")
    REQUIRED: ClassVar[tuple[str, ...]] = ("weight", "multiplier", "shift")
    weight: str
    multiplier: str
    shift: str
    correction: str = ""

    def check_weight(self, constants: Constants, where: str) -> tuple[int, ...]:
        """The weight's shape; ValueError unless the integers fit it."""
        weight = constants[self.weight]
        require(
            isinstance(weight, IntegerWeight),
            f"{where} reads the weight {self.weight}, which is not one of integers alone",
        )
        rows, columns = levels_of(constants, self.weight).codes.shape
        multiplier = constants[self.multiplier]
        groups = multiplier.shape[1] if isinstance(multiplier, np.ndarray) and multiplier.ndim == 2 else 1
        require(groups >= 1 and columns % groups == 0, f"{where} has {groups} groups for {columns} columns")
        require_integers(constants, self.multiplier, "multiplier", (rows, groups), where)
        require_integers(constants, self.correction, "correction", (rows, groups), where, dtype=np.int64)
        require_integers(constants, self.shift, "shift", (rows,), where)
        shifts = integers_of(constants, self.shift)
        for shift in (int(shifts.min()), int(shifts.max())):
            require_shift(shift, where)
        return tuple(weight.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerProduct(OfLevels):
    """What products by a weight have: of row n of its (rows, groups of columns),

        total = sum over groups g of (multiplier[n,g] * S[n,g] + correction[n,g] * Q[g]) + offset[n]

    S the sum of level times x over the columns of the group, in int32; Q the sum of x there; `offset` int64 (rows,):
    the bias. x is int8, or uint8.

    The bias is 64 bits wide, and not an int32 in the units of S: some trained rows are so faint that their bias is
    3e9 of those units (docs/lab-log.md).
    """

    ROLES: ClassVar = (*OfLevels.ROLES, "offset")
    offset: str = ""

    def check_product(self, constants: Constants, where: str) -> tuple[int, ...]:
        """The weight's shape; ValueError unless the integers fit it."""
        shape = self.check_weight(constants, where)
        require_integers(constants, self.offset, "offset", shape[:1], where, dtype=np.int64)
        return shape

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        self.check_sums(bounds["input"], constants, where)

    def check_sums(self, x: Bounds, constants: Constants, where: str) -> None:
        """ValueError unless x fits 8 bits and no sum over its columns overflows."""
        require(
            (x.low >= -128 and x.high <= 127) or (x.low >= 0 and x.high <= 255),
            f"{where} reads levels of {x.low} to {x.high}; a product takes int8 or uint8",
        )
        columns = levels_of(constants, self.weight).num_columns
        require(
            128 * x.magnitude * columns <= MAX_LEVEL,
            f"{where} sums {columns} products of {x.magnitude} by 128, which may overflow int32",
        )
        multiplier = np.abs(integers_of(constants, self.multiplier).astype(np.float64))
        of_group = x.magnitude * (columns // multiplier.shape[1])
        total = 128.0 * of_group * multiplier.sum(1)
        if self.correction:
            total += of_group * np.abs(integers_of(constants, self.correction).astype(np.float64)).sum(1)
        if self.offset:
            total += np.abs(integers_of(constants, self.offset).astype(np.float64))
        require_total(float(total.max()), where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerConv1d(IntegerProduct, OverFrames):
    """Convolution over frames of levels; shapes and rows as those of Conv1d.

    Columns are (taps, in / groups), so that of a pointwise or dense kernel a group of columns that share a
    multiplier lies within one tap.
    """

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return check_conv1d(self, widths["input"], self.check_product(constants, where), where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerConv2d(IntegerProduct, OverFeatures):
    """Convolution over frames and features of levels; shapes and rows as those of Conv2d."""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return check_conv2d(self, widths["input"], self.check_product(constants, where), where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerAdd(IntegerOperation):
    """`total = left_multiplier * left + right_multiplier * right`: both brought to one scale, then added."""

    VALUES: ClassVar = ("left", "right")
    left: str
    right: str
    left_multiplier: int
    right_multiplier: int
    shift: int

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return equal_width(widths, where, "adds")

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        require_shift(self.shift, where)
        total = 0.0
        for side in self.VALUES:
            factor = getattr(self, f"{side}_multiplier")
            require_multiplier(factor, f"{side}_multiplier", where)
            total += float(abs(factor)) * bounds[side].magnitude
        require_total(total, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerMultiply(IntegerOperation):
    """`total = multiplier * (left * right)`, the inner product within int32."""

    VALUES: ClassVar = ("left", "right")
    left: str
    right: str
    multiplier: int
    shift: int

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return equal_width(widths, where, "multiplies")

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        require_shift(self.shift, where)
        require_multiplier(self.multiplier, "multiplier", where)
        product = bounds["left"].magnitude * bounds["right"].magnitude
        require(product <= MAX_LEVEL, f"{where} multiplies levels up to {product}, which may overflow int32")
        require_total(float(abs(self.multiplier)) * product, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescale(IntegerOperation):
    """`total = multiplier * x`: another scale, a ReLU, a clip."""

    input: str
    multiplier: int
    shift: int

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return widths["input"]

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        require_shift(self.shift, where)
        require_multiplier(self.multiplier, "multiplier", where)
        require_total(float(abs(self.multiplier)) * bounds["input"].magnitude, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerAffine(IntegerOperation):
    """`total = multiplier[n] * x + offset[n]` per channel: a BatchNorm that no convolution could take in.

    `multiplier` and `shift` int32 (width,), `offset` int64 (width,).
    """

    ROLES: ClassVar = ("multiplier", "offset", "shift")
    REQUIRED: ClassVar = ("multiplier", "offset", "shift")
    input: str
    multiplier: str
    offset: str
    shift: str

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width = widths["input"]
        for role in ("multiplier", "shift"):
            require_integers(constants, getattr(self, role), role, (width,), where)
        require_integers(constants, self.offset, "offset", (width,), where, dtype=np.int64)
        shifts = integers_of(constants, self.shift)
        for shift in (int(shifts.min()), int(shifts.max())):
            require_shift(shift, where)
        return width

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        multiplier, offset = (
            np.abs(integers_of(constants, name).astype(np.float64)) for name in (self.multiplier, self.offset)
        )
        require_total(float((multiplier * bounds["input"].magnitude + offset).max()), where)


def require_multiplier(multiplier: int, field: str, where: str) -> None:
    require(
        abs(multiplier) <= MAX_LEVEL,
        f"{where} has {field}={multiplier}; use {-MAX_LEVEL} to {MAX_LEVEL}",
    )
