"""What the operations of an integer-only program mean, in NumPy integers (docs/numerics.md, section 7).

This is the definition: native/ must give the same integers. Values are int32, totals int64, and a product of
levels is an int32 sum. Such sums have no order; they are taken in float64, where they are exact (below 2**53),
because NumPy multiplies those much faster than integers.

Letters: T frames, K columns, N outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from subtone.numerics import requantize_total
from subtone.program import (
    Constants,
    IntegerAdd,
    IntegerAffine,
    IntegerConv1d,
    IntegerConv2d,
    IntegerMultiply,
    IntegerProduct,
    Rescale,
    integers_of,
    levels_of,
)
from subtone.runtime.rows import Rows

Levels = NDArray[np.int32]
Seen = Mapping[str, Rows]


def weighted_total(
    op: IntegerProduct, x: NDArray, levels: NDArray, constants: Constants
) -> NDArray[np.int64]:
    """`sum over g of (multiplier S + correction Q) + offset` of IntegerProduct: int64 (T, N).

    x: (T, K), or (T, N, K) where every output has inputs of its own; levels (N, K).
    """
    multiplier = integers_of(constants, op.multiplier).astype(np.int64)
    groups = multiplier.shape[1]
    size = levels.shape[1] // groups
    has_own_inputs = x.ndim == 3
    total = np.zeros((len(x), len(levels)), np.int64)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        of_x, of_weight = x[..., columns].astype(np.float64), levels[:, columns].astype(np.float64)
        sums = (of_x * of_weight).sum(-1) if has_own_inputs else of_x @ of_weight.T
        total += multiplier[:, group] * sums.astype(np.int64)
        if op.correction:
            x_sums = of_x.sum(-1).astype(np.int64)
            correction = integers_of(constants, op.correction)[:, group]
            total += correction * (x_sums if has_own_inputs else x_sums[..., None])
    if op.offset:
        total += integers_of(constants, op.offset)
    return total


def integer_conv1d(
    op: IntegerConv1d, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    """A convolution over rows of levels, zeros beyond both ends of x."""
    weight, count = levels_of(constants, op.weight), end - first
    start = first * op.stride - op.padding
    span = (count - 1) * op.stride + op.dilation * (op.kernel - 1) + 1
    rows = seen["input"][start : start + span]
    outputs, depth = weight.shape[:2]
    reached = [
        rows[tap * op.dilation :][: (count - 1) * op.stride + 1 : op.stride] for tap in range(op.kernel)
    ]
    taps = np.stack(reached, axis=1)  # (T, taps, in)
    per_group = outputs // op.groups
    if op.groups == 1:
        columns = taps.reshape(count, -1)
    elif depth == per_group == 1:
        columns = taps.transpose(0, 2, 1)  # every output has its own channel
    else:
        parts = taps.reshape(count, op.kernel, op.groups, depth).transpose(0, 2, 1, 3)
        columns = np.repeat(parts.reshape(count, op.groups, -1), per_group, axis=1)
    total = weighted_total(op, columns, weight.levels(), constants)
    return (requantize_total(total, integers_of(constants, op.shift), op.low, op.high),)


def integer_conv2d(
    op: IntegerConv2d, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    """A convolution over rows and features of levels; zeros beyond the ends of both."""
    weight, count = levels_of(constants, op.weight), end - first
    start = first * op.stride - op.padding
    rows = seen["input"][start : start + (count - 1) * op.stride + op.kernel]
    features = rows.shape[1] // op.in_channels
    wide = op.features_out(features)
    image = np.zeros(
        (len(rows), op.in_channels, (wide - 1) * op.feature_stride + op.feature_kernel), np.int32
    )
    kept = max(0, min(features, image.shape[2] - op.feature_padding))
    image[:, :, op.feature_padding : op.feature_padding + kept] = rows.reshape(
        len(rows), op.in_channels, features
    )[:, :, :kept]
    reached = [
        image[tap:][: (count - 1) * op.stride + 1 : op.stride][:, :, place:][
            :, :, : (wide - 1) * op.feature_stride + 1 : op.feature_stride
        ]
        for tap in range(op.kernel)
        for place in range(op.feature_kernel)
    ]
    taps = np.stack(reached, axis=1)  # (T, taps, channels, features)
    outputs, depth = weight.shape[:2]
    per_group = outputs // op.groups
    parts = taps.reshape(count, -1, op.groups, depth, wide).transpose(
        4, 0, 2, 1, 3
    )  # (F, T, groups, taps, depth)
    columns = np.repeat(parts.reshape(wide, count, op.groups, -1), per_group, axis=2)
    levels, shift = weight.levels(), integers_of(constants, op.shift)
    results = [
        requantize_total(weighted_total(op, of_feature, levels, constants), shift, op.low, op.high)
        for of_feature in columns
    ]
    return (np.stack(results, axis=-1).reshape(count, outputs * wide),)


def integer_add(op: IntegerAdd, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Levels]:
    left, right = (seen[side][first:end].astype(np.int64) for side in op.VALUES)
    total = op.left_multiplier * left + op.right_multiplier * right
    return (requantize_total(total, op.shift, op.low, op.high),)


def integer_multiply(
    op: IntegerMultiply, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    left, right = (seen[side][first:end].astype(np.int64) for side in op.VALUES)
    return (requantize_total(op.multiplier * (left * right), op.shift, op.low, op.high),)


def rescale(op: Rescale, seen: Seen, constants: Constants, first: int, end: int) -> tuple[Levels]:
    total = op.multiplier * seen["input"][first:end].astype(np.int64)
    return (requantize_total(total, op.shift, op.low, op.high),)


def integer_affine(
    op: IntegerAffine, seen: Seen, constants: Constants, first: int, end: int
) -> tuple[Levels]:
    x = seen["input"][first:end].astype(np.int64)
    total = integers_of(constants, op.multiplier) * x + integers_of(constants, op.offset)
    return (requantize_total(total, integers_of(constants, op.shift), op.low, op.high),)
