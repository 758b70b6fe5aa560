"""exp, sigmoid, tanh, Swish, GELU and the square root in integers (docs/numerics.md, section 7).

For a processor without floating-point numbers. A value is an integer in units of a power of two: x in units of
2^-f, f its `fraction_bits`, which each call names. So every constant below holds for every scale, and what an
input scale costs is paid once, where a value is brought to those units. Every multiplication is of two 32-bit
numbers and every division of a non-negative by a positive one; every right shift of a signed number rounds
half up, `(v + (1 << (s - 1))) >> s`, but where *floor* is said. No step here overflows: the page has the bound of each.

exp is 2^-t with t = -x log2(e): its whole part is a shift, its fraction goes through a polynomial of degree 4, the
best of those that are 1 at 0 and 1/2 at 1, so that exp(0) is exactly 1 and nothing jumps between two shifts.
Within 3.4e-6 of its value, where I-BERT's polynomial of degree 2 is within 1.9e-3; two more multiplications put
the error below the last bit of what follows. Rejected: degree 3 (1.03e-4, most of a unit of sigmoid's last place), and
I-BERT's erf for GELU (1.8e-2, against 4.8e-4 through sigmoid).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subtone.program import MOST_FRACTION_BITS

Integers = NDArray[np.integer]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

UNIT_BITS = 30
"""Fraction bits of exp's result and of every constant below."""
ONE = 1 << UNIT_BITS
PROBABILITY_BITS = 15
"""Fraction bits of sigmoid and tanh."""
LOG2_E = 1549082005
"""log2(e) in units of 2^-30, to nearest; so are the coefficients of 2^-r for 0 <= r < 1, of r^1 to r^4, which sum to -1/2."""
POWERS = (-744163075, 257059888, -57045411, 7277686)
LOWEST_EXPONENT = -22
"""exp is 0 from here down: e^-22 is less than half of 2^-30."""
GELU_LINEAR, GELU_CUBIC = 104580, 76616618
"""sqrt(8 / pi) in units of 2^-16, and 0.044715 times as much in units of 2^-30."""
GELU_FARTHEST = 8
"""Beyond, GELU is x or 0 to the last bit."""
SQRT_BITS, SQRT_STEPS = 62, 6


def round_shift(values: ArrayLike, shift: ArrayLike) -> Int64:
    """`(v + (1 << (shift - 1))) >> shift` in 64 bits, shift >= 1: v / 2^shift to nearest, a half goes up.

    >>> round_shift(np.array([-6, -2, 2, 6]), 2).tolist()
    [-1, 0, 1, 2]
    """
    shift = np.asarray(shift, np.int64)
    return (np.asarray(values, np.int64) + (np.int64(1) << (shift - 1))) >> shift


def exp(x: Integers, fraction_bits: int) -> Int32:
    """e^x for x <= 0, in units of 2^-30: 2^30 at 0, 0 from -22 down; never rises as x falls. x > 0 counts as 0.

    `m = -x` in units of 2^-16; `t = m * LOG2_E`; z its whole part, r its fraction cut to 30 bits; with p the
    polynomial by Horner's rule, each product rounded to 30 bits, `(p + (1 << (z - 1))) >> z` (p itself for z = 0).

    Args:
        x: up to 32 bits, in units of 2^-fraction_bits.
        fraction_bits: 0 to 16.

    >>> exp(np.array([0, -1, -2, -22]), 0).tolist()
    [1073741824, 395006579, 145314803, 0]
    """
    check_fraction_bits(fraction_bits)
    lowest = LOWEST_EXPONENT << fraction_bits
    m = -np.clip(np.asarray(x, np.int64), lowest, 0) << (MOST_FRACTION_BITS - fraction_bits)
    t = m * LOG2_E
    whole = t >> (MOST_FRACTION_BITS + UNIT_BITS)
    r = (t >> MOST_FRACTION_BITS) & (ONE - 1)
    power = np.full_like(r, POWERS[-1])
    for coefficient in (*POWERS[-2::-1], ONE):
        power = coefficient + round_shift(power * r, UNIT_BITS)
    return ((power + ((np.int64(1) << whole) >> 1)) >> whole).astype(np.int32)


def _one_plus_exp(x: Integers, fraction_bits: int) -> Int64:
    """1 + e^-|x| in units of 2^-16, 2^16 to 2^17."""
    return round_shift(ONE + exp(-np.abs(x), fraction_bits).astype(np.int64), UNIT_BITS - 16)


def sigmoid(x: Integers, fraction_bits: int) -> Int32:
    """1 / (1 + e^-x) in units of 2^-15, 0 to 2^15, within 0.78 of them; never falls; sigmoid(x) + sigmoid(-x) = 1.

    `d = 1 + e` in units of 2^-16, e = exp(-|x|); `floor((2^31 + (d >> 1)) / d)`, and 2^15 less that where x < 0.

    >>> sigmoid(np.array([-22, -1, 0, 1, 22]), 0).tolist()
    [0, 8813, 16384, 23955, 32768]
    """
    x = np.asarray(x, np.int64)
    below = _one_plus_exp(x, fraction_bits)
    value = ((1 << (16 + PROBABILITY_BITS)) + (below >> 1)) // below
    return np.where(x < 0, (1 << PROBABILITY_BITS) - value, value).astype(np.int32)


def tanh(x: Integers, fraction_bits: int) -> Int32:
    """The hyperbolic tangent in units of 2^-15, within 1.06 of them, |tanh| <= 2^15; odd, never falls.

    `d = 1 + e` in units of 2^-16, e = exp(-2 |x|); `floor((((2^17 - d) << 15) + (d >> 1)) / d)` with the sign of x.

    >>> tanh(np.array([-22, -1, 0, 1, 22]), 0).tolist()
    [-32768, -24956, 0, 24956, 32768]
    """
    check_fraction_bits(fraction_bits)
    x = np.asarray(x, np.int64)
    farthest = -LOWEST_EXPONENT << fraction_bits
    below = _one_plus_exp(2 * np.clip(x, -farthest, farthest), fraction_bits)
    value = ((((1 << 17) - below) << PROBABILITY_BITS) + (below >> 1)) // below
    return np.where(x < 0, -value, value).astype(np.int32)


def silu(x: Integers, fraction_bits: int) -> Int32:
    """`x sigmoid(x)` in units of 2^-(fraction_bits + 15), not rounded: within 0.78 |x| of them, |x| in units of x.

    What requantizes it rounds it for the first time; |silu| <= 2^30.

    >>> (silu(np.array([-32768, -256, 0, 256, 32767]), 8) >> 15).tolist()
    [0, -69, 0, 187, 32767]
    """
    x = check_16_bits(x)
    return (x * sigmoid(x, fraction_bits)).astype(np.int32)


def gelu(x: Integers, fraction_bits: int) -> Int32:
    """`x sigmoid(sqrt(8 / pi) (x + 0.044715 x^3))`, in units and bounds as `silu`, within 0.9 |x| of them.

    That is GELU's form by tanh, from which the one by erf differs by up to 4.8e-4. With c = x clipped to [-8, 8] in units of 2^-16: `s = round(c c >> 16)`,
    `w = GELU_LINEAR + round(s GELU_CUBIC >> 30)`, `u = round(c w >> 16)`, `x sigmoid(u)`.

    >>> (gelu(np.array([-32768, -256, 0, 256, 32767]), 8) >> 15).tolist()
    [0, -41, 0, 215, 32767]
    """
    check_fraction_bits(fraction_bits)
    x = check_16_bits(x)
    farthest = GELU_FARTHEST << fraction_bits
    clipped = np.clip(x, -farthest, farthest) << (MOST_FRACTION_BITS - fraction_bits)
    square = round_shift(clipped * clipped, 16)
    factor = GELU_LINEAR + round_shift(square * GELU_CUBIC, UNIT_BITS)
    argument = round_shift(clipped * factor, 16)
    return (x * sigmoid(argument, MOST_FRACTION_BITS)).astype(np.int32)


def bit_length(values: Integers) -> Int64:
    """Digits of each v >= 0 in base two: 0 of 0, else the b with 2^(b-1) <= v < 2^b.

    >>> bit_length(np.array([0, 1, 2, 3, 4])).tolist()
    [0, 1, 2, 2, 3]
    """
    left = np.array(values, np.int64)
    length = np.zeros_like(left)
    for step in (32, 16, 8, 4, 2, 1):
        amount = np.where(left >> step > 0, step, 0)
        left >>= amount
        length += amount
    return length + left


def floor_sqrt(values: Integers) -> Int64:
    """floor(sqrt(v)), exactly, for every 0 <= v < 2^62, by Newton's rule.

    From x = 2^ceil(b / 2), b the bits of v, six times `x = min(x, (x + floor(v / x)) >> 1)`. Six are enough, and
    fewer may stop where x falls no more (I-BERT, Algorithm 4): docs/numerics.md has the proof.

    >>> floor_sqrt(np.array([0, 1, 15, 16, 2**62 - 1])).tolist()
    [0, 1, 3, 4, 2147483647]
    """
    values = np.asarray(values, np.int64)
    if np.any((values < 0) | (values >> SQRT_BITS != 0)):
        raise ValueError(f"values={values.min()}..{values.max()} of a square root must lie in 0..2**62 - 1")
    root = np.int64(1) << ((bit_length(values) + 1) >> 1)
    for _ in range(SQRT_STEPS):
        root = np.minimum(root, (root + values // np.maximum(root, 1)) >> 1)
    return root


FUNCTIONS: dict[str, Callable[[Integers, int], Int32]] = {
    "sigmoid": sigmoid,
    "tanh": tanh,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu,
    "exp": exp,
}
"""As `runtime.functions.FUNCTIONS`, of (x, fraction_bits)."""


def check_fraction_bits(fraction_bits: int) -> None:
    if not 0 <= fraction_bits <= MOST_FRACTION_BITS:
        raise ValueError(f"fraction_bits={fraction_bits} of an integer function must lie in 0..16")


def check_16_bits(x: Integers) -> Int64:
    """x in 64 bits, if each value fits in 16."""
    wide = np.asarray(x, np.int64)
    if wide.size and not -(2**15) <= wide.min() <= wide.max() < 2**15:
        raise ValueError(
            f"x={wide.min()}..{wide.max()} is wider than 16 bits; rescale it to -32768..32767 first"
        )
    return wide
