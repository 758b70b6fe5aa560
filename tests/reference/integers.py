"""The operations of an integer-only program as loops over single numbers, in Python's integers, which never overflow."""

from __future__ import annotations

import numpy as np

from subtone.program import (
    Constants,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerMultiply,
    IntegerProduct,
    Rescale,
    levels_of,
    padding_behind,
)


def requantized(total: int, shift: int, low: int, high: int) -> int:
    """`(total + 2**(shift - 1)) / 2**shift`, rounded down, between `low` and `high`."""
    return min(max((total + 2 ** (shift - 1)) // 2**shift, low), high)


def product_value(op: IntegerProduct, constants: Constants, row: int, x: list[int]) -> int:
    """Output `row` of a product whose columns meet `x`: one group of columns at a time."""
    levels = levels_of(constants, op.weight).levels()[row].tolist()
    multipliers = constants[op.multiplier][row].tolist()
    corrections = constants[op.correction][row].tolist() if op.correction else [0] * len(multipliers)
    size = len(levels) // len(multipliers)
    total = int(constants[op.offset][row]) if op.offset else 0
    for group, (multiplier, correction) in enumerate(zip(multipliers, corrections, strict=True)):
        level_sum, product_sum = 0, 0
        for column in range(group * size, (group + 1) * size):
            level_sum += x[column]
            product_sum += levels[column] * x[column]
        total += multiplier * product_sum + correction * level_sum
    return requantized(total, int(constants[op.shift][row]), op.low, op.high)


def integer_conv1d(op: IntegerConv1d, x: np.ndarray, constants: Constants) -> np.ndarray:
    """x (T, in): zeros in front of the first row and behind the last; columns are (tap, input of the group)."""
    rows, outputs = len(x), levels_of(constants, op.weight).num_rows
    depth, per_group = x.shape[1] // op.groups, outputs // op.groups
    span = op.dilation * (op.kernel - 1) + 1
    num_frames = (rows + op.padding + padding_behind(op) - span) // op.stride + 1
    result = [[0] * outputs for _ in range(max(0, num_frames))]
    for t, frame in enumerate(result):
        for n in range(outputs):
            columns = []
            for tap in range(op.kernel):
                row = t * op.stride + tap * op.dilation - op.padding
                for k in range(depth):
                    exists = 0 <= row < rows
                    columns.append(int(x[row, n // per_group * depth + k]) if exists else 0)
            frame[n] = product_value(op, constants, n, columns)
    return np.array(result, np.int32).reshape(-1, outputs)


def integer_conv2d(op: IntegerConv2d, x: np.ndarray, constants: Constants) -> np.ndarray:
    """x (T, channels * features), channel by channel; columns are (tap in time, tap in features, channel of the group)."""
    rows, outputs = len(x), levels_of(constants, op.weight).num_rows
    features, depth = x.shape[1] // op.in_channels, op.in_channels // op.groups
    per_group, features_out = outputs // op.groups, op.features_out(features)
    num_frames = (rows + op.padding + padding_behind(op) - op.kernel) // op.stride + 1
    result = np.zeros((max(0, num_frames), outputs * features_out), np.int32)
    for t in range(len(result)):
        for n in range(outputs):
            for f in range(features_out):
                columns = []
                for tap in range(op.kernel):
                    row = t * op.stride + tap - op.padding
                    for place in range(op.feature_kernel):
                        feature = f * op.feature_stride + place - op.feature_padding
                        for k in range(depth):
                            channel = n // per_group * depth + k
                            exists = 0 <= row < rows and 0 <= feature < features
                            columns.append(int(x[row, channel * features + feature]) if exists else 0)
                result[t, n * features_out + f] = product_value(op, constants, n, columns)
    return result


def rowwise(
    op: IntegerAdd | IntegerMultiply | Rescale | IntegerAffine,
    x: np.ndarray,
    other: np.ndarray | None,
    constants: Constants,
) -> np.ndarray:
    """The operations that see one number of each input at a time."""
    result = np.zeros(x.shape, np.int32)
    for t, n in np.ndindex(x.shape):
        value = int(x[t, n])
        if isinstance(op, IntegerAdd):
            total = op.left_multiplier * value + op.right_multiplier * int(other[t, n])
        elif isinstance(op, IntegerMultiply):
            total = op.multiplier * (value * int(other[t, n]))
        elif isinstance(op, Rescale):
            total = op.multiplier * value
        else:
            total = int(constants[op.multiplier][n]) * value + int(constants[op.offset][n])
        shift = int(constants[op.shift][n]) if isinstance(op, IntegerAffine) else op.shift
        result[t, n] = requantized(total, shift, op.low, op.high)
    return result
