"""What functions, GLU, LayerNorm and embeddings of an integer-only program mean; as runtime/integer_ops.py.

Letters: T frames, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from subtone.numerics import requantize_total
from subtone.program import (
    Constants,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    integers_of,
    levels_of,
)
from subtone.runtime import fixed_point, fixed_point_rows
from subtone.runtime.rows import Rows

Levels = NDArray[np.int32]
Seen = Mapping[str, Rows]


def integer_function(
    op: IntegerFunction, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    """`multiplier * function(x)`, requantized."""
    value = fixed_point.FUNCTIONS[op.function](seen["input"][first:end], op.fraction_bits)
    return (requantize_total(op.multiplier * value.astype(np.int64), op.shift, op.low, op.high),)


def integer_glu(op: IntegerGlu, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Levels]:
    """`multiplier * (a * sigmoid(b))`, requantized."""
    rows = seen["input"][first:end].astype(np.int64)
    half = rows.shape[1] // 2
    value = rows[:, :half] * fixed_point.sigmoid(rows[:, half:], op.fraction_bits)
    return (requantize_total(op.multiplier * value, op.shift, op.low, op.high),)


def integer_layer_norm(
    op: IntegerLayerNorm, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    """`normalized(x) * multiplier + offset`, requantized."""
    multiplier = integers_of(constants, op.multiplier)
    offset = integers_of(constants, op.offset) if op.offset else np.zeros(len(multiplier), np.int64)
    x, settings = seen["input"][first:end], {"epsilon": op.epsilon, "low": op.low, "high": op.high}
    return (fixed_point_rows.layer_norm(x, multiplier, offset, shift=op.shift, **settings),)


def integer_embedding(
    op: IntegerEmbedding, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    """`multiplier * level + correction` of the row that x names, requantized."""
    weight = levels_of(constants, op.weight)
    row = np.clip(seen["input"][first:end][:, 0], 0, weight.num_rows - 1)
    multiplier = integers_of(constants, op.multiplier)[row].astype(np.int64)  # (T, groups)
    size = weight.num_columns // multiplier.shape[1]
    total = np.repeat(multiplier, size, axis=1) * weight.levels()[row]
    if op.correction:
        total += np.repeat(integers_of(constants, op.correction)[row], size, axis=1)
    shift = integers_of(constants, op.shift)[row, None]
    return (requantize_total(total, shift, op.low, op.high),)
