"""Operations that work on each row by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from subtone.program.operation import (
    MAX_SIZE,
    Constants,
    Operation,
    is_float32,
    require,
    require_size,
    require_vector,
)

FUNCTIONS = ("sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "exp")
"""What `Function` computes; docs/numerics.md says how."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine(Operation):
    """`y = gain * x + bias` per channel: a BatchNorm that no convolution could take in."""

    ROLES: ClassVar = ("gain", "bias")
    REQUIRED: ClassVar = ("gain", "bias")
    input: str
    output: str
    gain: str
    bias: str
    relu: bool = False
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        for role in self.ROLES:
            require_vector(constants, getattr(self, role), role, widths["input"], where)
        return widths["input"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """`y = left + right`, then ReLU if `relu`."""

    VALUES: ClassVar = ("left", "right")
    left: str
    right: str
    output: str
    relu: bool = False
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return equal_width(widths, where, "adds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multiply(Operation):
    """`y = left * right`, value by value."""

    VALUES: ClassVar = ("left", "right")
    left: str
    right: str
    output: str
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return equal_width(widths, where, "multiplies")


def equal_width(widths: Mapping[str, int], where: str, does: str) -> int:
    require(
        widths["left"] == widths["right"], f"{where} {does} widths {widths['left']} and {widths['right']}"
    )
    return widths["left"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(Operation):
    """`y = factor * x`; the factor a value of float32."""

    input: str
    output: str
    factor: float
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        require(is_float32(self.factor), f"{where} has factor={self.factor}; use a finite value of float32")
        return widths["input"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relu(Operation):
    """`y = max(x, 0)`."""

    input: str
    output: str
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        return widths["input"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip(Operation):
    """`y = min(max(x, low), high)`: a hardtanh, a ReLU6, or a learned clip in front of a product.

    `low < high`, both finite and values of float32, which is what they are compared in.
    """

    input: str
    output: str
    low: float
    high: float
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        for field, end in (("low", self.low), ("high", self.high)):
            require(is_float32(end), f"{where} has {field}={end}; use a finite value of float32")
        require(self.low < self.high, f"{where} has low={self.low} and high={self.high}; they must ascend")
        return widths["input"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Function(Operation):
    """`y = function(x)`, value by value: one of FUNCTIONS."""

    input: str
    output: str
    function: str
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        require(
            self.function in FUNCTIONS,
            f"{where} has function={self.function!r}; use one of {', '.join(FUNCTIONS)}",
        )
        return widths["input"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glu(Operation):
    """`y = a * sigmoid(b)`, a the first and b the second half of the row."""

    input: str
    output: str
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        require(widths["input"] % 2 == 0, f"{where} halves {widths['input']} columns; use an even number")
        return widths["input"] // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNorm(Operation):
    """`y = (x - mean) / sqrt(variance + epsilon) * gain + bias`, mean and (biased) variance of the row."""

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


def require_epsilon(epsilon: float, where: str) -> None:
    require(
        is_float32(epsilon) and epsilon > 0, f"{where} has epsilon={epsilon}; use a float32 value above 0"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concat(Operation):
    """Two rows side by side: (T, A) and (T, B) to (T, A + B)."""

    ARITHMETIC: ClassVar = "none"
    VALUES: ClassVar = ("left", "right")
    left: str
    right: str
    output: str
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width = widths["left"] + widths["right"]
        require(width <= MAX_SIZE, f"{where} is {width} wide; use at most {MAX_SIZE}")
        return width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns(Operation):
    """Columns `first` to `first + count - 1` of each row."""

    ARITHMETIC: ClassVar = "none"
    input: str
    output: str
    first: int
    count: int
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        require_size(self, "first", where, lowest=0)
        require_size(self, "count", where)
        require(
            self.first + self.count <= widths["input"],
            f"{where} takes columns {self.first} to {self.first + self.count - 1} of {widths['input']}",
        )
        return self.count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding(Operation):
    """Row x of the weight (V, D), x (T, 1) whole numbers of 0 to V - 1; others take the nearest end."""

    ROLES: ClassVar[tuple[str, ...]] = ("weight",)
    REQUIRED: ClassVar[tuple[str, ...]] = ("weight",)
    input: str
    output: str
    weight: str
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        shape = tuple(constants[self.weight].shape)
        require(
            len(shape) == 2 and min(shape) >= 1 and max(shape) <= MAX_SIZE,
            f"{where} needs a weight (rows, width), {self.weight} has {shape}",
        )
        require(widths["input"] == 1, f"{where} reads {widths['input']} columns; an index is one")
        return shape[1]
