"""docs/numerics.md, sections 1 to 5, one number at a time: each float32 step on its own line.

Floats are np.float32 scalars, one rounding a step; integers are Python's, which never overflow.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from tests.reference.runtime_ops import activation_levels

from subtone.qtensor import QTensor

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


def rounded(value: np.floating) -> int:
    """floor(x + 0.5), the sum in the precision of x."""
    total = value + value.dtype.type(0.5)
    return math.floor(total)


def clipped(value: int, lowest: int, highest: int) -> int:
    return min(max(value, lowest), highest)


# Weights ---------------------------------------------------------------------------------


def symmetric(absmax: np.float32, bits: int) -> tuple[np.float32, np.float32]:
    """(scale, zero_point), 2 to 8 bits."""
    return absmax / np.float32(2 ** (bits - 1) - 1), np.float32(2 ** (bits - 1))


def asymmetric(low: np.float32, high: np.float32, bits: int) -> tuple[np.float32, np.float32]:
    """(scale, zero_point), a constant range included."""
    if low == high:
        sign = int(low > 0) - int(low < 0)
        return abs(low), np.float32(-sign)
    width = high - low
    scale = width / np.float32(2**bits - 1)
    return scale, -low / scale


def code(weight: np.float32, scale: np.float32, zero_point: np.float32, bits: int, lowest: int = 0) -> int:
    """One code; `lowest` is 1 on a symmetric grid of 2 to 8 bits."""
    position = zero_point
    if scale != 0:
        quotient = weight / scale
        position = quotient + zero_point
    return clipped(rounded(position), lowest, 2**bits - 1)


def real(level: int, scale: np.float32, zero_point: np.float32) -> np.float32:
    """One decoded weight."""
    distance = np.float32(level) - zero_point
    return scale * distance


def snapped(value: np.float32) -> int:
    """k of the nearest k/128."""
    scaled = value * np.float32(128)
    return clipped(rounded(scaled), -128, 127)


def nearest_level(weight: np.float32, scale: np.float32, levels: list[int]) -> int:
    """Index in `levels`, ascending and not padded: as many as have their lower midpoint below."""
    position = ZERO if scale == 0 else weight / scale
    index = 0
    for lower, upper in itertools.pairwise(levels):
        midpoint = (np.float32(lower) + np.float32(upper)) * HALF
        if position >= midpoint:
            index += 1
    return index


def flattened(weight: np.ndarray) -> list[list[np.float32]]:
    """(out, in, *taps) as rows: tap after tap in reading order, within a tap input after input."""
    rows = []
    for kernel in weight:
        row = []
        for tap in np.ndindex(*weight.shape[2:]):
            for one_input in kernel:
                row.append(one_input[tap])
        rows.append(row)
    return rows


# Activations -----------------------------------------------------------------------------


def static_level(value: np.float32, scale: np.float32, lowest: int, highest: int) -> int:
    inverse = ONE / scale
    product = value * inverse
    return clipped(rounded(product), lowest, highest)


# Products --------------------------------------------------------------------------------


def integer_levels(weight: QTensor) -> tuple[list[list[int]], list[list[np.float32]]]:
    """`L` and `z` of section 4 for every weight, from what is stored."""
    levels, offsets = [], []
    size = weight.codes.shape[1] // weight.scale.shape[1]
    zero_points = np.broadcast_to(weight.zero_point, (weight.codes.shape[0], weight.scale.shape[1]))
    for codes_of_row, zero_points_of_row in zip(weight.codes.tolist(), zero_points, strict=True):
        if weight.codebook is not None:
            levels.append([int(weight.codebook[index]) for index in codes_of_row])
            offsets.append([ZERO] * len(codes_of_row))
        else:
            middle = 2 ** (weight.bits - 1)
            levels.append([index - middle for index in codes_of_row])
            offsets.append(
                [
                    np.float32(zero_points_of_row[k // size]) - np.float32(middle)
                    for k in range(len(codes_of_row))
                ]
            )
    return levels, offsets


def product(
    features: np.ndarray,
    weight: QTensor,
    bits: int,
    *,
    gain: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    relu: bool = False,
) -> np.ndarray:
    """(T, K) times (N, K) in integers, then gain, bias and ReLU: section 4 line by line."""
    levels, offsets = integer_levels(weight)
    num_rows, num_columns = weight.codes.shape
    scale = np.broadcast_to(weight.scale.astype(np.float32), (num_rows, weight.scale.shape[1]))
    size = num_columns // scale.shape[1]
    result = np.empty((len(features), num_rows), np.float32)
    for t, frame in enumerate(features):
        x, frame_scale = activation_levels(list(frame), bits)
        for n in range(num_rows):
            total = ZERO
            for start in range(0, num_columns, size):
                columns = range(start, start + size)
                sum_of_products = sum(levels[n][k] * x[k] for k in columns)
                sum_of_x = sum(x[k] for k in columns)
                second = offsets[n][start] * np.float32(sum_of_x)
                difference = np.float32(sum_of_products) - second
                scaled = difference * scale[n, start // size]
                total = total + scaled
            y = total * frame_scale
            if gain is not None:
                y = y * gain[n]
            if bias is not None:
                y = y + bias[n]
            if relu:
                y = y if y > 0 else ZERO
            result[t, n] = y
    return result


def requantized(accumulator: int, mantissa: int, shift: int, limit: int) -> int:
    """floor(q * mantissa / 2**shift + 1/2) in rational numbers, clipped to [-limit, limit]."""
    exact = Fraction(accumulator * mantissa, 2**shift)
    return clipped(math.floor(exact + Fraction(1, 2)), -limit, limit)
