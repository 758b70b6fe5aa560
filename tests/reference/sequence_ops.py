"""docs/numerics.md, section 6: operations of a program, one output after the other.

Values are float32 arrays of a whole utterance (T, width); floats np.float32 scalars, one rounding a line.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tests.reference import functions
from tests.reference import lstm as integer_lstm
from tests.reference.functions import F32, ONE, ZERO

from subtone import program
from subtone.qtensor import QTensor

Vector = np.ndarray | None


def decoded(weight: QTensor | np.ndarray) -> np.ndarray:
    return weight.dequantize() if isinstance(weight, QTensor) else weight


def row_count(rows: int, *, kernel: int, stride: int, dilation: int, in_front: int, behind: int) -> int:
    """How often the kernel, moved by `stride`, lies within the padded rows; never where there are none."""
    count = 0
    while rows and count * stride + (kernel - 1) * dilation < in_front + rows + behind:
        count += 1
    return count


def conv2d(x: np.ndarray, weight: np.ndarray, bias: Vector, op: program.Conv2d) -> np.ndarray:
    rows, features = len(x), x.shape[1] // op.in_channels
    behind = op.padding if op.padding_behind < 0 else op.padding_behind
    features_behind = op.feature_padding if op.feature_padding_behind < 0 else op.feature_padding_behind
    rows_out = row_count(
        rows, kernel=op.kernel, stride=op.stride, dilation=1, in_front=op.padding, behind=behind
    )
    features_out = row_count(
        features, kernel=op.feature_kernel, stride=op.feature_stride, dilation=1, in_front=op.feature_padding,
        behind=features_behind,
    )  # fmt: skip
    outputs, depth = weight.shape[:2]
    result = np.zeros((rows_out, outputs * features_out), np.float32)
    for t, n, f in np.ndindex(rows_out, outputs, features_out):
        group = n // (outputs // op.groups)
        total = ZERO
        for tap, place, k in np.ndindex(op.kernel, op.feature_kernel, depth):
            row = t * op.stride + tap - op.padding
            feature = f * op.feature_stride + place - op.feature_padding
            channel = group * depth + k
            is_inside = 0 <= row < rows and 0 <= feature < features
            value = x[row, channel * features + feature] if is_inside else ZERO
            product = value * weight[n, k, tap, place]
            total = total + product
        if bias is not None:
            total = total + bias[n]
        result[t, n * features_out + f] = total if not op.relu or total > 0 else ZERO
    return result


def norm(values: np.ndarray, epsilon: float, gain: Vector, bias: Vector, *, is_by_column: bool) -> np.ndarray:
    """`layer_norm`, or `channel_norm`: the same along columns; gain and bias belong to columns in both."""
    lines = values.T if is_by_column and len(values) else values
    result = np.empty_like(lines)
    for index, line in enumerate(lines):
        result[index] = functions.normalized(list(line), epsilon)
    result = result.T.copy() if is_by_column and len(values) else result
    for t, n in np.ndindex(*result.shape):
        if gain is not None:
            result[t, n] = result[t, n] * gain[n]
        if bias is not None:
            result[t, n] = result[t, n] + bias[n]
    return result


def glu(values: np.ndarray) -> np.ndarray:
    half = values.shape[1] // 2
    result = np.empty((len(values), half), np.float32)
    for t, n in np.ndindex(*result.shape):
        result[t, n] = values[t, n] * functions.sigmoid(values[t, half + n])
    return result


def embedding(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.array([table[min(max(int(value), 0), len(table) - 1)] for value in values[:, 0]], np.float32)


def sinusoids(rows: int, columns: int) -> np.ndarray:
    """Python's floats are float64; the turn itself comes from its mathematical library, once."""
    result = np.empty((max(0, 2 * rows - 1), columns), np.float32)
    for pair in range(columns // 2):
        turn = 10000.0 ** (-2 * pair / columns)
        turn_sine, turn_cosine = np.sin(turn), np.cos(turn)
        sine, cosine = 0.0, 1.0
        for distance in range(rows):
            for row, sign in ((rows - 1 - distance, 1), (rows - 1 + distance, -1 if distance else 1)):
                result[row, 2 * pair] = sign * sine
                result[row, 2 * pair + 1] = cosine
            sine, cosine = sine * turn_cosine + cosine * turn_sine, cosine * turn_cosine - sine * turn_sine
    return result


def dot(left: np.ndarray, right: np.ndarray) -> np.float32:
    total = ZERO
    for one, other in zip(left, right, strict=True):
        product = one * other
        total = total + product
    return total


def attention(
    op: program.Attention,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    positions: Vector = None,
    content_bias: Vector = None,
    position_bias: Vector = None,
) -> np.ndarray:
    rows, width = min(len(query), len(key), len(value)), query.shape[1]
    depth = width // op.heads
    content_query = query if content_bias is None else query + content_bias  # one sum each
    position_query = query if position_bias is None else query + position_bias
    factor = ONE / np.sqrt(F32(depth))
    result = np.empty((rows, width), np.float32)
    for t, head in np.ndindex(rows, op.heads):
        columns = slice(head * depth, (head + 1) * depth)
        first = 0 if op.left < 0 else max(0, t - op.left)
        last = rows - 1 if op.right < 0 else min(rows - 1, t + op.right)
        scores = []
        for s in range(first, last + 1):
            score = dot(content_query[t, columns], key[s, columns])
            if positions is not None:
                row = (rows - 1 if op.left < 0 else op.left) - (t - s)
                score = score + dot(position_query[t, columns], positions[row, columns])
            scores.append(score * factor)
        largest = max(scores)
        weights = [functions.exp(score - largest) for score in scores]
        mass = functions.sum_in_lanes(weights)
        for column in range(columns.start, columns.stop):
            result[t, column] = dot(weights, value[first : last + 1, column]) / mass
    return result


def recurrent_product(
    hidden: np.ndarray, weight: QTensor | np.ndarray, bias: Vector, bits: int
) -> np.ndarray:
    """`W h + bias` of one state (D,)."""
    if bits:
        assert isinstance(weight, QTensor)
        of = integer_lstm.Direction(weight_ih=weight, weight_hh=weight, bias_ih=None, bias_hh=bias, bits=bits)
        return integer_lstm.recurrent_product(hidden, of)
    result = np.array([dot(hidden, row) for row in decoded(weight)], np.float32)
    return result if bias is None else result + bias


def cell_step(gates: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden and cell state (D,) after gates (4 D,)."""
    units = len(cell)
    hidden_after, cell_after = np.empty_like(cell), np.empty_like(cell)
    for unit in range(units):
        taken, kept, candidate, given = (gates[gate * units + unit] for gate in range(4))
        old = functions.sigmoid(kept) * cell[unit]
        new = functions.sigmoid(taken) * functions.tanh(candidate)
        cell_after[unit] = old + new
        hidden_after[unit] = functions.sigmoid(given) * functions.tanh(cell_after[unit])
    return hidden_after, cell_after


def lstm(op: program.Lstm, x: np.ndarray, constants: Mapping) -> tuple[np.ndarray, np.ndarray]:
    units = x.shape[1] // 4
    hidden, cell = np.zeros(units, np.float32), np.zeros(units, np.float32)
    outputs, cells = (np.empty((len(x), units), np.float32) for _ in range(2))
    for t, row in enumerate(x):
        product = recurrent_product(hidden, constants[op.weight], constants.get(op.bias), op.activation_bits)
        hidden, cell = cell_step(row + product, cell)
        outputs[t], cells[t] = hidden, cell
    return outputs, cells


def switched_lstm(
    op: program.SwitchedLstm, x: np.ndarray, small: np.ndarray, gate: np.ndarray, constants: Mapping
) -> tuple[np.ndarray, np.ndarray]:
    units, few = x.shape[1] // 4, small.shape[1] // 4
    hidden, cell = np.zeros(units, np.float32), np.zeros(units, np.float32)
    outputs, cells = (np.empty((len(x), units), np.float32) for _ in range(2))
    for t in range(len(x)):
        if gate[t, 0] > 0:
            product = recurrent_product(
                hidden, constants[op.weight], constants.get(op.bias), op.activation_bits
            )
            hidden, cell = cell_step(x[t] + product, cell)
        else:
            product = recurrent_product(
                hidden[:few],
                constants[op.small_weight],
                constants.get(op.small_bias),
                op.small_activation_bits,
            )
            some_hidden, some_cell = cell_step(small[t] + product, cell[:few])
            hidden = np.concatenate([some_hidden, hidden[few:]])
            cell = np.concatenate([some_cell, cell[few:]])
        outputs[t], cells[t] = hidden, cell
    return outputs, cells
