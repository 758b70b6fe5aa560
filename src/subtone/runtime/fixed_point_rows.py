"""Softmax, LayerNorm and sinusoids in integers (docs/numerics.md, section 7); as runtime/fixed_point.py.

Where I-BERT rounds its mean, its variance and its softmax factor to whole numbers, nothing is rounded here before
it has 22 bits or more: mean and variance are held as exact multiples of 1 / width and 1 / width^2, which 64 bits
hold, so that adding a number to a whole row changes no bit of its norm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtone.numerics import requantize_total
from subtone.program import MOST_COLUMNS
from subtone.runtime.fixed_point import (
    ONE,
    UNIT_BITS,
    Int32,
    Int64,
    Integers,
    bit_length,
    check_16_bits,
    exp,
    floor_sqrt,
    round_shift,
)

WEIGHT_BITS = 22
"""The weights of a row of softmax sum to about 2^22: 2^22 * 127 lies within 2^29, so that products with levels sum in int32."""
UNSEEN = -(2**62)
"""Below every score."""
NORM_BITS = 22
"""Fraction bits of a normalized value: sqrt(2^15) * 2^22 lies within 2^30."""
LARGEST_GAIN, LARGEST_BIAS = 2**31 - 1, 2**61
POSITION_LIMIT = 127
"""Levels of sinusoids: their scale is 1 / 127."""


def softmax_weights(
    scores: Integers, fraction_bits: int, *, is_seen: NDArray[np.bool_] | None = None
) -> Int32:
    """exp(score) / sum exp(score) along the last axis in units of 2^-22, exactly 0 where not `is_seen`.

    With `e = exp(score - max)`: `factor = floor(2^61 / sum e)`, `weight = round(e * factor >> 39)`. Where n are seen,
    the weights sum to 2^22 within 0.502 n, and each is within `0.51 + (7e-6 + 3.1e-5 n / 2^15) weight` of its value.
    A row of which nothing is seen has weights 0.

    Args:
        scores: (..., n) of up to 32 bits, in units of 2^-fraction_bits, n at most 2^15.
        is_seen: broadcast against scores; all of them unless given.

    >>> softmax_weights(np.array([[5, 5, -90]]), 0).tolist()
    [[2097152, 2097152, 0]]
    """
    scores = np.asarray(scores, np.int64)
    if scores.shape[-1] > MOST_COLUMNS:
        raise ValueError(f"scores of width={scores.shape[-1]} are longer than 32768; cut the utterance")
    seen = np.broadcast_to(np.bool_(True) if is_seen is None else is_seen, scores.shape)
    highest = np.max(np.where(seen, scores, UNSEEN), axis=-1, keepdims=True, initial=UNSEEN)
    exponentials = np.where(seen, exp(scores - highest, fraction_bits).astype(np.int64), 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    factor = (1 << 61) // np.maximum(total, ONE)  # the highest score adds 1
    return round_shift(exponentials * factor, 61 - WEIGHT_BITS).astype(np.int32)


def normalize(x: Integers, *, epsilon: int = 0) -> Int32:
    """(x - mean) / sqrt(variance + epsilon) along the last axis in units of 2^-22, |y| < 2^30.

    With n columns, `d = n x - sum x` and `v = n sum(x x) - (sum x)^2 + epsilon` exactly, v = 0 counting as 1. Even s
    bring v into 2^60 <= v 2^s < 2^62; `root = floor(sqrt(v 2^s))`; `inverse = floor(2^61 / root)`;
    `y = round(d inverse >> (39 - s / 2))`. Within `2^-23 + 2^-29 |y|` of its value. A constant row gives 0.

    Args:
        x: (..., n) of 16 bits, n from 1 to 2^15, in any units u.
        epsilon: in units of u^2 / n^2, 0 to 2^61: `round(n^2 epsilon / u^2)`, which costs y at most 1 / (4 (n - 1)) of
            it, and that only where a single column is one unit apart.

    >>> normalize(np.array([[1, 1, 3, 3]])).tolist()
    [[-4194304, -4194304, 4194304, 4194304]]
    """
    x = check_16_bits(x)
    width = x.shape[-1]
    if not 1 <= width <= MOST_COLUMNS:
        raise ValueError(f"x of width={width} cannot be normalized in 64 bits; use 1 to 32768 columns")
    if not 0 <= epsilon <= 2**61:
        raise ValueError(f"epsilon={epsilon} must lie in 0..2**61; give x coarser units")
    total = x.sum(axis=-1, keepdims=True)
    centred = width * x - total
    variance = np.maximum(width * (x * x).sum(axis=-1, keepdims=True) - total * total + epsilon, 1)
    half_shift = (62 - bit_length(variance)) >> 1
    inverse = (1 << 61) // floor_sqrt(variance << (2 * half_shift))
    return round_shift(centred * inverse, 61 - NORM_BITS - half_shift).astype(np.int32)


def layer_norm(
    x: Integers, gain: Int32, bias: Int64, *, shift: int, epsilon: int = 0, low: int = -127, high: int = 127
) -> Int32:
    """`requantize_total(normalize(x) * gain + bias, shift, low, high)`; a constant row gives round(bias / 2^shift).

    With the real gain G, bias B and the scale S of what comes out, `gain = round(2^(shift - 22) G / S)` and
    `bias = round(2^shift B / S)`.

    Args:
        x: as `normalize` takes it, epsilon too.
        gain: (n,), |gain| < 2^31.
        bias: (n,), |bias| <= 2^61.

    >>> one, ten = np.full(4, 1 << 10, np.int32), np.full(4, 10 << 32)
    >>> layer_norm(np.array([[1, 1, 3, 3]]), one * 100, ten, shift=32).tolist()
    [[-90, -90, 110, 110]]
    """
    gain, bias = np.asarray(gain, np.int64), np.asarray(bias, np.int64)
    for name, values, most in (("gain", gain, LARGEST_GAIN), ("bias", bias, LARGEST_BIAS)):
        if values.size and max(-int(values.min()), int(values.max())) > most:
            raise ValueError(
                f"{name}={values.min()}..{values.max()} exceeds {most} in magnitude; use a smaller shift"
            )
    return requantize_total(normalize(x, epsilon=epsilon).astype(np.int64) * gain + bias, shift, low, high)


def sinusoids(num_rows: int, rotation: Integers) -> Int32:
    """(2 num_rows - 1, columns) levels of scale 1/127 for distances num_rows - 1 down to -(num_rows - 1).

    As `runtime.sequence_ops.sinusoid_table`, from sine 0 and cosine 2^30, one turn a distance, each with one rounding:
    `s' = round((s C + c S) >> 30)`, `c' = round((c C - s S) >> 30)`; the level is `round(127 s >> 30)`, its negative at a
    negative distance. After 2^15 turns sine and cosine are within 4.4e-5 of theirs, levels within 0.51 of 127 times them.

    Args:
        num_rows: 1 to 2^15.
        rotation: (columns / 2, 2), sine S and cosine C of each column pair's turn, `floor(2^30 sine + 0.5)`.

    >>> sinusoids(2, np.array([[1 << 29, 929887697]])).tolist()
    [[64, 110], [0, 127], [-64, 110]]
    """
    if not 1 <= num_rows <= MOST_COLUMNS:
        raise ValueError(f"num_rows={num_rows} of sinusoids must lie in 1..32768; cut the utterance")
    turn_sine, turn_cosine = np.asarray(rotation, np.int64).T
    sine, cosine = np.zeros_like(turn_sine), np.full_like(turn_cosine, ONE)
    table = np.empty((2 * num_rows - 1, len(sine), 2), np.int32)
    for distance in range(num_rows):
        levels = round_shift(POSITION_LIMIT * np.stack([sine, cosine], axis=-1), UNIT_BITS)
        table[num_rows - 1 - distance] = levels
        table[num_rows - 1 + distance] = levels * (-1, 1)
        sine, cosine = (
            round_shift(sine * turn_cosine + cosine * turn_sine, UNIT_BITS),
            round_shift(cosine * turn_cosine - sine * turn_sine, UNIT_BITS),
        )
    return table.reshape(2 * num_rows - 1, -1)
