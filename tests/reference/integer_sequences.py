"""Functions, norms, attention and recurrences of an integer-only program as loops over single numbers.

In Python's integers, on the loops of tests/reference/fixed_point.py, which refuse what leaves the bits that
docs/numerics.md states; `fits` states those that are stated for these operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tests.reference import fixed_point
from tests.reference.fixed_point import fits, rescale

from subtone.program import (
    Constants,
    IntegerAttention,
    IntegerEmbedding,
    IntegerFunction,
    IntegerGlu,
    IntegerLayerNorm,
    IntegerLstm,
    IntegerSinusoids,
    levels_of,
)

LARGEST = 2**31 - 1
FUNCTIONS = {
    "sigmoid": fixed_point.sigmoid,
    "tanh": fixed_point.tanh,
    "silu": fixed_point.silu,
    "gelu": fixed_point.gelu,
    "gelu_tanh": fixed_point.gelu,
    "exp": fixed_point.exp,
}


def matrix(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array(rows, np.int32).reshape(-1, width)


def integer_function(op: IntegerFunction, x: np.ndarray, constants: Constants) -> np.ndarray:
    result = []
    for row in x.tolist():
        values = [FUNCTIONS[op.function](value, op.fraction_bits) for value in row]
        result.append(
            [rescale(fits(op.multiplier * value, 63), op.shift, op.low, op.high) for value in values]
        )
    return matrix(result, x.shape[1])


def integer_glu(op: IntegerGlu, x: np.ndarray, constants: Constants) -> np.ndarray:
    half, result = x.shape[1] // 2, []
    for row in x.tolist():
        made = []
        for column in range(half):
            gate = fixed_point.sigmoid(fits(row[half + column], 16), op.fraction_bits)
            value = fits(fits(row[column], 16) * gate, 32)
            made.append(rescale(fits(op.multiplier * value, 63), op.shift, op.low, op.high))
        result.append(made)
    return matrix(result, half)


def integer_layer_norm(op: IntegerLayerNorm, x: np.ndarray, constants: Constants) -> np.ndarray:
    multiplier = constants[op.multiplier].tolist()
    offset = constants[op.offset].tolist() if op.offset else [0] * len(multiplier)
    rows = [
        fixed_point.layer_norm(row, multiplier, offset, op.shift, op.epsilon, op.low, op.high)
        for row in x.tolist()
    ]
    return matrix(rows, x.shape[1])


def integer_embedding(op: IntegerEmbedding, x: np.ndarray, constants: Constants) -> np.ndarray:
    weight = levels_of(constants, op.weight)
    levels, multiplier = weight.levels().tolist(), constants[op.multiplier].tolist()
    width, groups, result = weight.num_columns, len(multiplier[0]), []
    for (index,) in x.tolist():
        row = min(max(index, 0), weight.num_rows - 1)
        made = []
        for column in range(width):
            group = column * groups // width
            total = multiplier[row][group] * levels[row][column]
            if op.correction:
                total += int(constants[op.correction][row, group])
            made.append(rescale(fits(total, 63), int(constants[op.shift][row]), op.low, op.high))
        result.append(made)
    return matrix(result, width)


def integer_attention(
    op: IntegerAttention,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    positions: np.ndarray | None,
    constants: Constants,
) -> np.ndarray:
    rows, width = query.shape
    depth = width // op.heads
    farthest = op.left if op.left >= 0 and op.right >= 0 else rows - 1
    content_bias = constants[op.content_bias].tolist() if op.content_bias else [0] * width
    position_bias = constants[op.position_bias].tolist() if op.position_bias else [0] * width
    result = [[0] * width for _ in range(rows)]
    for t in range(rows):
        first = 0 if op.left < 0 else max(0, t - op.left)
        last = rows - 1 if op.right < 0 else min(rows - 1, t + op.right)
        for head in range(op.heads):
            columns = range(head * depth, (head + 1) * depth)
            scores = []
            for s in range(first, last + 1):
                content = position = 0
                for column in columns:
                    q = int(query[t, column])
                    content = fits(content + (q + content_bias[column]) * int(key[s, column]), 32)
                    if positions is not None:
                        p = int(positions[farthest - (t - s), column])
                        position = fits(position + (q + position_bias[column]) * p, 32)
                total = fits(op.content_multiplier * content + op.position_multiplier * position, 63)
                scores.append(rescale(total, op.score_shift, -LARGEST, LARGEST))
            weights = fixed_point.softmax_weights(scores, 16, [True] * len(scores))
            for column in columns:
                mixed = 0
                for weight, s in zip(weights, range(first, last + 1), strict=True):
                    mixed = fits(mixed + weight * int(value[s, column]), 31)
                total = fits(op.multiplier * mixed, 63)
                result[t][column] = rescale(total, op.shift, op.low, op.high)
    return matrix(result, width)


def integer_sinusoids(op: IntegerSinusoids, x: np.ndarray, constants: Constants) -> np.ndarray:
    table = fixed_point.sinusoids(len(x), constants[op.rotation].tolist())
    clipped = [[min(max(level, op.low), op.high) for level in row] for row in table]
    return matrix(clipped, op.columns)


def product(
    levels: Sequence[int], x: Sequence[int], multiplier: Sequence[int], correction: Sequence[int], offset: int
) -> int:
    """The total of one row of a weight: one group of columns at a time."""
    size, total = len(levels) // len(multiplier), offset
    for group in range(len(multiplier)):
        products = sums = 0
        for column in range(group * size, (group + 1) * size):
            products = fits(products + levels[column] * x[column], 32)
            sums += x[column]
        total += multiplier[group] * products + correction[group] * sums
    return fits(total, 63)


def integer_lstm(op: IntegerLstm, x: np.ndarray, constants: Constants) -> tuple[np.ndarray, np.ndarray]:
    units = x.shape[1] // 4
    levels, multiplier = levels_of(constants, op.weight).levels().tolist(), constants[op.multiplier].tolist()
    nothing = [[0] * len(row) for row in multiplier]
    correction = constants[op.correction].tolist() if op.correction else nothing
    offset = constants[op.offset].tolist() if op.offset else [0] * len(levels)
    hidden, cell = [0] * units, [0] * units
    all_hidden, all_cells = [], []
    for row in x.tolist():
        gates = []
        for n in range(4 * units):
            total = product(levels[n], hidden, multiplier[n], correction[n], offset[n])
            of_hidden = rescale(total, int(constants[op.shift][n]), -LARGEST, LARGEST)
            gates.append(fits((fits(row[n], 16) << (16 - op.fraction_bits)) + of_hidden, 33))
        hidden, before = [], cell
        cell = []
        for unit in range(units):
            taken, kept, given = (fixed_point.sigmoid(gates[block * units + unit], 16) for block in (0, 1, 3))
            candidate = fixed_point.tanh(gates[2 * units + unit], 16)
            total = fits(kept * before[unit] + 2 * (taken * candidate), 48)
            cell.append(rescale(total, 15, -LARGEST, LARGEST))
            total = fits(op.high * (given * fixed_point.tanh(cell[unit], 16)), 38)
            hidden.append(rescale(total, 30, op.low, op.high))
        all_hidden.append(hidden)
        all_cells.append(cell)
    return matrix(all_hidden, units), matrix(all_cells, units)
