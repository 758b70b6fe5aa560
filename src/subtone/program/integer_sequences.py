"""Operations of an integer-only program whose rows depend on many others: attention, recurrence, sinusoids.

Scores of an attention, gates and cells of an LSTM are in units of 2**-16, whatever the scales of what they are
made of: softmax, sigmoid and tanh need no more, and 32 bits hold 32,768 of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from subtone.program.integer_rowwise import MOST_COLUMNS, require_16_bits, require_fraction_bits
from subtone.program.integers import (
    MAX_LEVEL,
    Bounds,
    IntegerOperation,
    IntegerProduct,
    integers_of,
    require_integers,
    require_multiplier,
    require_shift,
    require_total,
)
from subtone.program.operation import Constants, require
from subtone.program.sequences import OverWindow, Sinusoids

STATE_BITS = 16
"""Fraction bits of scores, gates and cells."""
LARGEST_TURN = 2**30
"""Of a sine or cosine, in units of 2**-30."""
LARGEST_WEIGHTED = 2**30
"""Of probabilities in units of 2**-22 times levels of 8 bits, summed over MOST_COLUMNS rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerAttention(IntegerOperation, OverWindow):
    """Softmax attention over levels of 8 bits; rows, windows and positions as those of Attention.

        score_s = (content_multiplier * ((q_t + content_bias) . k_s)
                   + position_multiplier * ((q_t + position_bias) . positions[row])) >> score_shift

    rounded half up, within int32, in units of 2**-16; both products in int32. With the weights of the softmax in units
    of 2**-22, `total = multiplier * sum_s weight_s v_s`, the sum in int32.

    query, key, value, positions: int8. Biases int32 (width,), in units of q, and not clipped to its 8 bits.
    """

    ROLES: ClassVar = ("content_bias", "position_bias")
    content_multiplier: int
    score_shift: int
    multiplier: int
    shift: int
    position_multiplier: int = 0

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width = self.check_window(widths, where)
        for role in self.ROLES:
            require_integers(constants, getattr(self, role), role, (width,), where)
        if self.can_stream:
            require(
                self.left + self.right < MOST_COLUMNS,
                f"{where} sees {self.left + self.right + 1} rows; an integer softmax takes {MOST_COLUMNS}",
            )
        self._check_scores(width // self.heads, constants, where)
        return width

    def _check_scores(self, depth: int, constants: Constants, where: str) -> None:
        """ValueError where a head's products may overflow int32, or scores 2**62, whatever the 8 bits hold."""
        total = 0.0
        for field, role in zip(("content_multiplier", "position_multiplier"), self.ROLES, strict=True):
            bias, factor = getattr(self, role), getattr(self, field)
            levels = np.zeros(self.heads)
            if bias:
                of_head = np.abs(integers_of(constants, bias).astype(np.float64)).reshape(self.heads, depth)
                levels = of_head.sum(1)
            most = 128.0 * (128.0 * depth + float(levels.max()))
            require(
                most <= MAX_LEVEL,
                f"{where} sums products of queries up to {most:.0f} a head, which may overflow int32; give the query "
                f"a larger range, or {role} less",
            )
            require_multiplier(factor, field, where)
            total += abs(factor) * most
        require_total(total, where)

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        for field, x in bounds.items():
            require(
                x.low >= -128 and x.high <= 127,
                f"{where} reads {field} of {x.low} to {x.high}; an integer attention takes int8",
            )
        for shift in (self.score_shift, self.shift):
            require_shift(shift, where)
        require_multiplier(self.multiplier, "multiplier", where)
        require_total(float(abs(self.multiplier)) * LARGEST_WEIGHTED, where)

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        end = super().end(ends, is_last=is_last)
        if not self.can_stream:
            require_rows(end, "an integer softmax")
        return end


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerSinusoids(IntegerOperation, Sinusoids):
    """Sines and cosines of distances as levels of scale 1 / 127; rows and columns as those of Sinusoids.

    `rotation` int32 (columns / 2, 2): sine and cosine of each column pair's turn, in units of 2**-30.
    """

    ROLES: ClassVar = ("rotation",)
    REQUIRED: ClassVar = ("rotation",)
    rotation: str

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width = super().width(widths, constants, where)
        require_integers(constants, self.rotation, "rotation", (width // 2, 2), where)
        turns = integers_of(constants, self.rotation).astype(np.int64)
        require(
            int((turns * turns).sum(1).max()) <= LARGEST_TURN**2 + 2**31,
            f"{where} has a rotation longer than 2**30; use sines and cosines in units of 2**-30",
        )
        return width

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        require(
            self.low >= -127 and self.high <= 127,
            f"{where} has low={self.low} and high={self.high}; sinusoids have levels of -127 to 127",
        )

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        require_rows(ends["input"], "a table of integer sinusoids")
        return super().end(ends, is_last=is_last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntegerLstm(IntegerProduct):
    """The recurrence of an LSTM on levels: x (T, 4 D) what its input gave the gates, blocks i, f, g, o.

        gates = x * 2**(16 - fraction_bits) + ((W h) >> shift), W h a total as that of every product
        c = (sigmoid(f) * c + 2 * (sigmoid(i) * tanh(g))) >> 15
        h = (high * (sigmoid(o) * tanh(c))) >> 30

    shifts rounded half up, c and (W h) >> shift within int32; gates and c in units of 2**-16, sigmoid and tanh in units
    of 2**-15. h (`output`): scale 1 / high, `low = -high`, high 1 to 127; h and c (`cell`) 0 before the first row.
    x: 16 bits, in units of 2**-fraction_bits. W (4 D, D).
    """

    RESULTS: ClassVar = ("output", "cell")
    input: str
    cell: str
    fraction_bits: int

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        gates, shape = widths["input"], self.check_product(constants, where)
        require(gates % 4 == 0, f"{where} reads {gates} columns; four gates need a multiple of 4")
        require(
            shape == (gates, gates // 4),
            f"{where} needs a recurrent weight of {(gates, gates // 4)}, {self.weight} has {shape}",
        )
        return gates // 4

    def check_bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> None:
        require_16_bits(bounds["input"], "a gate", where)
        require_fraction_bits(self.fraction_bits, where)
        require(
            self.low == -self.high and 1 <= self.high <= 127,
            f"{where} has low={self.low} and high={self.high}; a hidden state takes -high to high, at most 127",
        )
        self.check_sums(Bounds(self.low, self.high), constants, where)

    def bounds(self, bounds: Mapping[str, Bounds], constants: Constants, where: str) -> dict[str, Bounds]:
        return {**super().bounds(bounds, constants, where), "cell": Bounds(-MAX_LEVEL, MAX_LEVEL)}

    @property
    def memory(self) -> int:
        return 1


def require_rows(rows: int, what: str) -> None:
    """ValueError where a whole utterance is longer than `what` can be."""
    require(
        rows <= MOST_COLUMNS, f"{rows} rows are more than {what} takes, {MOST_COLUMNS}; cut the utterance"
    )
