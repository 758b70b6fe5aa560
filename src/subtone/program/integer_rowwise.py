"""Operations of an integer-only program that work on each row by itself: functions, GLU, LayerNorm, embeddings.

What a function reads is in units of a power of two, 2**-fraction_bits, so that its constants hold for every scale
(docs/numerics.md, section 7). What it gives is in units of its own, and enters a total with `multiplier` as a
product does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from subtone.program.integers import (
    Bounds,
    IntegerOperation,
    OfLevels,
    integers_of,
    require_integers,
    require_multiplier,
    require_shift,
    require_total,
)
from subtone.program.operation import MAX_SIZE, Constants, require
from subtone.program.rowwise import Embedding, Function, Glu

MOST_FRACTION_BITS = 16
"""Of what a function reads; inside, it has exactly so many."""
MOST_COLUMNS = 2**15
"""Of a row of scores or of a norm, and distances of sinusoids: 21 minutes of frames of 40 ms."""
MAX_NORMALIZED = 2**30
"""Of a normalized value: sqrt(MOST_COLUMNS) in units of 2**-22 is less."""
MAX_EPSILON = MAX_OFFSET = 2**61


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfFunction(IntegerOperation):
    """What reads x in units of 2**-fraction_bits and gives `total = multiplier * f(x)`."""

    fraction_bits: int
    multiplier: int
    shift: int

    def check_function(self, most: int, where: str) -> None:
        """ValueError unless a value f(x) of at most `most` fits a total."""
        require_fraction_bits(self.fraction_bits, where)
        require_shift(self.shift, where)
        require_multiplier(self.multiplier, "multiplier", where)
        require_total(float(abs(self.multiplier)) * most, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerFunction(OfFunction, Function):
    """`total = multiplier * function(x)`, x in units of 2**-fraction_bits.

    Units of function(x): 2**-15 of sigmoid and tanh, 2**-30 of exp, 2**-(fraction_bits + 15) of silu, gelu and
    gelu_tanh. x: 16 bits; of exp 0 and below.
    """

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        x = bounds["input"]
        require_16_bits(x, f"the function {self.function}", where)
        if self.function == "exp":
            require(x.high <= 0, f"{where} reads levels up to {x.high}; an integer exp takes 0 and below")
            self.check_function(2**30, where)
        else:
            is_bounded = self.function in ("sigmoid", "tanh")
            self.check_function(2**15 if is_bounded else x.magnitude << 15, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerGlu(OfFunction, Glu):
    """`total = multiplier * (a * sigmoid(b))`, a the first and b the second half of the row, both of 16 bits.

    b in units of 2**-fraction_bits, its sigmoid in units of 2**-15; a in any.
    """

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        require_16_bits(bounds["input"], "a GLU", where)
        self.check_function(bounds["input"].magnitude << 15, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerLayerNorm(IntegerOperation):
    """`total = y * multiplier[n] + offset[n]`, y the row normalized, in units of 2**-22.

    `multiplier` int32 (width,), `offset` int64 (width,): the norm's gain and bias on the scale of the result.
    `epsilon` in units of (unit of x / width)**2. x: 16 bits, 1 to 2**15 columns.
    """

    ROLES: ClassVar = ("multiplier", "offset")
    REQUIRED: ClassVar = ("multiplier",)
    input: str
    multiplier: str
    shift: int
    epsilon: int
    offset: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width = widths["input"]
        require(
            width <= MOST_COLUMNS, f"{where} normalizes {width} columns; an integer norm takes {MOST_COLUMNS}"
        )
        require(
            0 <= self.epsilon <= MAX_EPSILON, f"{where} has epsilon={self.epsilon}; use 0 to {MAX_EPSILON}"
        )
        require_integers(constants, self.multiplier, "multiplier", (width,), where)
        require_integers(constants, self.offset, "offset", (width,), where, dtype=np.int64)
        return width

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        require_16_bits(bounds["input"], "a norm", where)
        require_shift(self.shift, where)
        total = MAX_NORMALIZED * np.abs(integers_of(constants, self.multiplier).astype(np.float64))
        if self.offset:
            offset = np.abs(integers_of(constants, self.offset).astype(np.float64))
            require(offset.max() <= MAX_OFFSET, f"{where} has an offset of {offset.max():.3g}, beyond 2**61")
            total += offset
        require_total(float(total.max()), where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerEmbedding(OfLevels, Embedding):
    """`total = multiplier[x,g] * level + correction[x,g]` of each column of row x of the weight, g its group.

    x (T, 1) whole numbers of 0 to rows - 1; others take the nearest end.
    """

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        shape = self.check_weight(constants, where)
        require(
            len(shape) == 2 and max(shape) <= MAX_SIZE,
            f"{where} needs a weight (rows, width), {self.weight} has {shape}",
        )
        require(widths["input"] == 1, f"{where} reads {widths['input']} columns; an index is one")
        return shape[1]

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        total = 128.0 * np.abs(integers_of(constants, self.multiplier).astype(np.float64))
        if self.correction:
            total += np.abs(integers_of(constants, self.correction).astype(np.float64))
        require_total(float(total.max()), where)


# What operations check -------------------------------------------------------------------


def require_16_bits(x: Bounds, what: str, where: str) -> None:
    require(
        x.low >= -(2**15) and x.high < 2**15,
        f"{where} reads levels of {x.low} to {x.high}; {what} takes 16 bits",
    )


def require_fraction_bits(fraction_bits: int, where: str) -> None:
    require(
        0 <= fraction_bits <= MOST_FRACTION_BITS,
        f"{where} has fraction_bits={fraction_bits}; use 0 to {MOST_FRACTION_BITS}",
    )
