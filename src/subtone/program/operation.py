"""What every operation of a program says of itself: what it reads, how wide it is, how far it has come.

A value is a float32 matrix (rows, width) that grows at its end: row t of it is the same whether the
utterance came whole or in chunks. So an operation states, beside its widths, which rows of its output
exist once so many rows of its inputs do (`end`), and from which row on it still needs an input for what
comes next (`first_needed`): all that a run time has to know to stream it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from subtone.program.integer_weight import IntegerWeight
from subtone.qtensor import QTensor

Integers = NDArray[Any]
"""int32, or int64."""
Constant = QTensor | IntegerWeight | NDArray[Any]
"""A weight with its scales, or its levels alone; or an array, of float32 or of integers."""
Constants = Mapping[str, Constant]

MAX_SIZE = 2**24
"""Of a width, kernel, stride, dilation, padding; native/subtone.h has the same limits."""
MAX_FRAMES = 2**31
"""Of one value."""
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_INTEGER_INPUTS = 2**16 - 1
"""Of a product in int32: 128 * 127 * 65535 < 2**30."""
UNLIMITED = -1
"""Of the rows an operation sees on one side of its own: all there are."""


class Operation(abc.ABC):
    """One step of a program; every subclass is a frozen dataclass of plain fields, as its JSON is.

    * `VALUES`: fields that name values which it reads; of them `OPTIONAL` may be "", absent.
    * `ROLES`: fields that name constants; "" where one is absent. `REQUIRED`: those it cannot do without.
    * `RESULTS`: fields that name values which it writes.
    * `ARITHMETIC`: what it computes in; "none" of an operation that only moves values, of either kind.

    By default an operation works row by row: its output has as many rows as its shortest input.
    """

    VALUES: ClassVar[tuple[str, ...]] = ("input",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    ROLES: ClassVar[tuple[str, ...]] = ()
    REQUIRED: ClassVar[tuple[str, ...]] = ()
    RESULTS: ClassVar[tuple[str, ...]] = ("output",)
    ARITHMETIC: ClassVar[Literal["float", "integer", "none"]] = "float"
    output: str
    source: str

    @abc.abstractmethod
    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        """Width of every result, from those of the values it reads by their fields; ValueError names `where`."""

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        """Rows of its results that exist once its inputs have `ends` rows, by their fields.

        `is_last`: nothing will follow, so that what lies beyond the end is known: zeros, or nothing.
        """
        return min(ends.values())

    def first_needed(self, row: int) -> dict[str, int]:
        """The first row of each input, by its field, that the results from `row` on depend on; below 0 is none."""
        return dict.fromkeys(self.VALUES, row)

    @property
    def memory(self) -> int:
        """Rows of its own results that the next row depends on."""
        return 0

    @property
    def can_stream(self) -> bool:
        """Whether it needs only so many rows, however long the utterance is."""
        return True


def inputs_of(op: Operation) -> tuple[str, ...]:
    """The values that `op` reads."""
    return tuple(getattr(op, field) for field in op.VALUES if getattr(op, field))


def results_of(op: Operation) -> tuple[str, ...]:
    """The values that `op` writes."""
    return tuple(getattr(op, field) for field in op.RESULTS)


def constants_of(op: Operation) -> dict[str, str]:
    """Role -> name of the constants that `op` reads."""
    return {role: getattr(op, role) for role in op.ROLES if getattr(op, role)}


def vector_of(constants: Constants, name: str) -> NDArray[np.float32]:
    """The gain or bias called `name`, which `Program.shapes` has found to be a float array."""
    value = constants[name]
    assert isinstance(value, np.ndarray)
    return value


# What operations check -------------------------------------------------------------------


def require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)


def require_size(op: Operation, field: str, where: str, *, lowest: int = 1, highest: int = MAX_SIZE) -> None:
    size = getattr(op, field)
    require(lowest <= size <= highest, f"{where} has {field}={size}; use {lowest} to {highest}")


def require_vector(constants: Constants, name: str, role: str, width: int, where: str) -> None:
    """ValueError unless `name` is absent or a float array (width,)."""
    if name:
        value = constants[name]
        fits = isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == (width,)
        require(fits, f"{where} needs {role} of {(width,)}, {name} does not fit")


def require_integer_product(
    bits: int, weight: Constant, inputs: int, where: str, *, field: str = "activation_bits"
) -> None:
    """ValueError unless `inputs` activations of `bits` bits may meet `weight` in integers."""
    require(2 <= bits <= 8, f"{where} has {field}={bits}; use 0 or 2..8")
    require(isinstance(weight, QTensor), f"{where} needs a quantized weight for integer activations")
    require(inputs <= MAX_INTEGER_INPUTS, f"{where} sums {inputs} products, which may overflow int32")


def is_float32(value: float) -> bool:
    """Whether `value` is finite and float32 holds it exactly."""
    return math.isfinite(value) and abs(value) <= MAX_FLOAT32 and float(np.float32(value)) == value
