"""Operations whose rows depend on many others: attention, recurrence, normalization over an utterance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from subtone.program.operation import (
    UNLIMITED,
    Constants,
    Operation,
    require,
    require_integer_product,
    require_size,
    require_vector,
)
from subtone.program.rowwise import require_epsilon


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverWindow(Operation):
    """What both attentions have: heads side by side, and the rows that they see."""

    VALUES: ClassVar = ("query", "key", "value", "positions")
    OPTIONAL: ClassVar = ("positions",)
    query: str
    key: str
    value: str
    output: str
    positions: str = ""
    content_bias: str = ""
    position_bias: str = ""
    heads: int = 1
    left: int = UNLIMITED
    right: int = UNLIMITED

    def check_window(self, widths: Mapping[str, int], where: str) -> int:
        """The width of the result; ValueError where heads, windows and widths do not fit."""
        width = widths["query"]
        require_size(self, "heads", where)
        for field in ("left", "right"):
            require_size(self, field, where, lowest=UNLIMITED)
        require(width % self.heads == 0, f"{where} has heads={self.heads}, which does not divide {width}")
        others = {field: widths[field] for field in self.VALUES if field in widths}
        require(set(others.values()) == {width}, f"{where} needs equal widths, not {others}")
        require(
            not self.position_bias or bool(self.positions),
            f"{where} has a position_bias and no positions",
        )
        return width

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        rows = min(ends["query"], ends["key"], ends["value"])
        if is_last:
            return rows
        return 0 if self.right == UNLIMITED else max(0, rows - self.right)

    def first_needed(self, row: int) -> dict[str, int]:
        first = 0 if self.left == UNLIMITED else row - self.left
        return {"query": row, "key": first, "value": first, "positions": 0}

    @property
    def can_stream(self) -> bool:
        return self.left != UNLIMITED and self.right != UNLIMITED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention(OverWindow):
    """Softmax attention in heads side by side, over the rows from `left` before to `right` after one's own.

    With d = width / heads, row t and head h: `score_s = (q_t + content_bias) . k_s`, with `positions` plus
    `(q_t + position_bias) . positions[row]`, row = left - (t - s), or T - 1 - (t - s) where both sides are
    unlimited; times 1 / sqrt(d); `y_t = sum_s softmax(score)_s v_s`. Rows outside the utterance are not seen.

    query, key, value (T, width); positions (left + right + 1, width), a table, or (2 T - 1, width), a value, where
    both sides are unlimited, which is -1: with positions both are, or none. Biases (width,), each if any.
    """

    ROLES: ClassVar = ("content_bias", "position_bias")
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width = self.check_window(widths, where)
        for role in self.ROLES:
            require_vector(constants, getattr(self, role), role, width, where)
        return width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sinusoids(Operation):
    """(2 T - 1, columns) for an input of T rows: row i holds distance d = T - 1 - i, column 2 j
    sin(d / 10000^(2 j / columns)) and column 2 j + 1 the cosine."""

    input: str
    output: str
    columns: int
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        require_size(self, "columns", where, lowest=2)
        require(self.columns % 2 == 0, f"{where} has columns={self.columns}; use an even number")
        return self.columns

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        return max(0, 2 * ends["input"] - 1) if is_last else 0

    def first_needed(self, row: int) -> dict[str, int]:
        return {"input": 0}

    @property
    def can_stream(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelNorm(Operation):
    """`y = (x - mean) / sqrt(variance + epsilon) * gain + bias` with each column's own mean and (biased)
    variance over the whole utterance: a GroupNorm with as many groups as channels."""

    ROLES: ClassVar = ("gain", "bias")
    input: str
    output: str
    epsilon: float
    gain: str = ""
    bias: str = ""
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        require_epsilon(self.epsilon, where)
        for role in self.ROLES:
            require_vector(constants, getattr(self, role), role, widths["input"], where)
        return widths["input"]

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        return ends["input"] if is_last else 0

    def first_needed(self, row: int) -> dict[str, int]:
        return {"input": 0}

    @property
    def can_stream(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lstm(Operation):
    """The recurrence of an LSTM, from what its input gave the gates: x (T, 4 D), blocks i, f, g, o.

    `gates = x + (W h + bias)`, `c = sigmoid(f) c + sigmoid(i) tanh(g)`, `h = sigmoid(o) tanh(c)`, h and c 0
    before the first row; W (4 D, D), bias (4 D,). Both h (`output`) and c (`cell`) are values (T, D).
    `activation_bits` 2..8: h meets W in integers, at the static scale 1 / limit (docs/numerics.md); 0: float.
    """

    ROLES: ClassVar = ("weight", "bias")
    REQUIRED: ClassVar = ("weight",)
    RESULTS: ClassVar = ("output", "cell")
    input: str
    output: str
    cell: str
    weight: str
    bias: str = ""
    activation_bits: int = 0
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return recurrent_width(
            widths["input"], self.weight, self.bias, self.activation_bits, constants, where
        )

    @property
    def memory(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwitchedLstm(Operation):
    """Two LSTMs over one state of D units, of which the gate takes one in each row.

    Where gate (T, 1) > 0 the large one: as Lstm, on x (T, 4 D). Elsewhere the small one, d <= D units, on
    small (T, 4 d): it reads and writes the first d units of h and c, and leaves the others as they are.
    """

    VALUES: ClassVar = ("input", "small", "gate")
    ROLES: ClassVar = ("weight", "bias", "small_weight", "small_bias")
    REQUIRED: ClassVar = ("weight", "small_weight")
    RESULTS: ClassVar = ("output", "cell")
    input: str
    small: str
    gate: str
    output: str
    cell: str
    weight: str
    small_weight: str
    bias: str = ""
    small_bias: str = ""
    activation_bits: int = 0
    small_activation_bits: int = 0
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width = recurrent_width(
            widths["input"], self.weight, self.bias, self.activation_bits, constants, where
        )
        small = recurrent_width(
            widths["small"], self.small_weight, self.small_bias, self.small_activation_bits, constants, where,
            prefix="small_",
        )  # fmt: skip
        require(small <= width, f"{where} has {small} units in the small LSTM and {width} in the large")
        require(widths["gate"] == 1, f"{where} has a gate of {widths['gate']} columns; use 1")
        return width

    @property
    def memory(self) -> int:
        return 1


def recurrent_width(
    gates: int,
    weight: str,
    bias: str,
    activation_bits: int,
    constants: Constants,
    where: str,
    *,
    prefix: str = "",
) -> int:
    """D of a recurrent weight (4 D, D) that fits `gates` columns; ValueError, its fields with `prefix`, otherwise."""
    require(gates % 4 == 0, f"{where} reads {gates} columns; four gates need a multiple of 4")
    units, shape = gates // 4, tuple(constants[weight].shape)
    require(
        shape == (gates, units),
        f"{where} needs a recurrent weight of {(gates, units)}, {weight} has {shape}",
    )
    if activation_bits:
        field = f"{prefix}activation_bits"
        require_integer_product(activation_bits, constants[weight], units, where, field=field)
    require_vector(constants, bias, f"{prefix}bias", gates, where)
    return units
