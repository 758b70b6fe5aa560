"""exp, sigmoid, tanh and what is made of them, in stated float32 steps (docs/numerics.md, section 6).

No mathematical library takes part: every step is one IEEE operation on float32, elementwise, so that
a kernel on any machine gives the same bits. Largest errors, over 36 million numbers
of 2^-10 to 8: exp 8.1e-8 of its value, sigmoid 8.9e-8, tanh 9.0e-8, erf 6.7e-7; tests/runtime/test_functions.py
holds 1e-7 and 7e-7.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LOWEST_EXPONENT, HIGHEST_EXPONENT = np.float32(-87), np.float32(88)
"""exp is constant beyond: its value is neither subnormal nor infinite."""
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""ln 2 in two parts, the first with 9 bits, so that a whole number times it is exact (Cody and Waite)."""
_EXP = tuple(map(np.float32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2)))
_EXP_LOW = tuple(map(np.float32, (1.6666665459e-1, 5.0000001201e-1)))
_TANH = tuple(map(np.float32, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2)))
_TANH_LOW = tuple(map(np.float32, (1.33314422036e-1, -3.33332819422e-1)))
_TANH_BORDER = np.float32(0.625)
_ERF = tuple(map(np.float32, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)))
_ERF_P = np.float32(0.3275911)
_SQRT_HALF = np.float32(0.70710678)
_GELU_TANH = np.float32(0.7978845608), np.float32(0.044715)
_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)


def _polynomial(x: Floats, coefficients: tuple[np.float32, ...]) -> Floats:
    """Horner's rule, highest power first; every product and every sum rounded."""
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def exp(x: Floats) -> Floats:
    """e**x for x clipped to [-87, 88]: n = floor(x log2(e) + 0.5), r = x - n ln 2 in two steps, then
    `(((p(r) r^2) + r) + 1) 2^n` with p of degree 5 (Cephes' expf).

    >>> exp(np.zeros(1, np.float32)).tolist()
    [1.0]
    """
    x = np.minimum(np.maximum(np.asarray(x, np.float32), LOWEST_EXPONENT), HIGHEST_EXPONENT)
    n = np.floor(x * _LOG2_E + _HALF)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _polynomial(r, (*_EXP, *_EXP_LOW))
    value = (p * (r * r) + r) + _ONE
    return value * ((n.astype(np.int32) + 127) << 23).view(np.float32)


def sigmoid(x: Floats) -> Floats:
    """With e = exp(-|x|): 1 / (1 + e) where x >= 0, e / (1 + e) elsewhere.

    >>> sigmoid(np.zeros(1, np.float32)).tolist()
    [0.5]
    """
    x = np.asarray(x, np.float32)
    e = exp(-np.abs(x))
    return np.where(x >= 0, _ONE, e) / (_ONE + e)


def tanh(x: Floats) -> Floats:
    """Where |x| < 0.625 `(p(x^2) x^2) x + x` (Cephes' tanhf); beyond, with e = exp(-2 |x|), (1 - e) / (1 + e) under
    the sign of x.

    >>> tanh(np.zeros(1, np.float32)).tolist()
    [0.0]
    """
    x = np.asarray(x, np.float32)
    is_near = np.abs(x) < _TANH_BORDER
    small = np.where(is_near, x, np.float32(0))  # the polynomial would overflow beyond
    square = small * small
    near = (_polynomial(square, (*_TANH, *_TANH_LOW)) * square) * small + small
    with np.errstate(over="ignore"):  # infinity is clipped by exp
        e = exp(-_TWO * np.abs(x))
    far = np.copysign((_ONE - e) / (_ONE + e), x)
    return np.where(is_near, near, far)


def erf(x: Floats) -> Floats:
    """With t = 1 / (1 + 0.3275911 |x|): 1 - (q(t) t) exp(-x^2) under the sign of x (Abramowitz and Stegun, 7.1.26)."""
    x = np.asarray(x, np.float32)
    t = _ONE / (_ONE + _ERF_P * np.abs(x))
    with np.errstate(over="ignore"):  # infinity is clipped by exp
        square = x * x
    return np.copysign(_ONE - (_polynomial(t, _ERF) * t) * exp(-square), x)


def silu(x: Floats) -> Floats:
    """`x sigmoid(x)`: Swish."""
    return x * sigmoid(x)


def gelu(x: Floats) -> Floats:
    """`(x / 2) (1 + erf(x / sqrt(2)))`."""
    return (_HALF * x) * (_ONE + erf(x * _SQRT_HALF))


def gelu_tanh(x: Floats) -> Floats:
    """`(x / 2) (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`."""
    root, cubic = _GELU_TANH
    with np.errstate(over="ignore"):  # tanh of infinity is 1
        inner = root * (x + (cubic * x) * (x * x))
    return (_HALF * x) * (_ONE + tanh(inner))


FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "sigmoid": sigmoid,
    "tanh": tanh,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "exp": exp,
}

LANES = 16
"""Sums along a row are taken in so many lanes."""


def lane_sum(values: Floats) -> Floats:
    """Sum over the last axis in 16 lanes: lane i takes values i, i + 16, ... ascending, from +0; then lanes
    i and i + 8, i + 4, i + 2, i + 1 are added.

    >>> lane_sum(np.ones((2, 20), np.float32)).tolist()
    [20.0, 20.0]
    """
    width = values.shape[-1]
    blocks = -(-width // LANES)
    padded = np.zeros((*values.shape[:-1], blocks * LANES), np.float32)
    padded[..., :width] = values
    lanes = np.zeros((*values.shape[:-1], LANES), np.float32)
    for block in range(blocks):
        lanes += padded[..., block * LANES : (block + 1) * LANES]
    for distance in (8, 4, 2, 1):
        lanes = lanes[..., :distance] + lanes[..., distance : 2 * distance]
    return lanes[..., 0]


def normalized(values: Floats, epsilon: float) -> Floats:
    """`(x - mean) * (1 / sqrt(variance + epsilon))` over the last axis; both sums in lanes, divided by the width."""
    width = np.float32(values.shape[-1])
    centred = values - (lane_sum(values) / width)[..., None]
    variance = lane_sum(centred * centred) / width
    return centred * (_ONE / np.sqrt(variance + np.float32(epsilon)))[..., None]
