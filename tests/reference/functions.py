"""docs/numerics.md, section 6: functions and sums in lanes, one number and one rounding a line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

F32 = np.float32
ZERO, HALF, ONE = F32(0), F32(0.5), F32(1)


def horner(x: np.float32, coefficients: Sequence[float]) -> np.float32:
    total = F32(coefficients[0])
    for coefficient in coefficients[1:]:
        product = total * x
        total = product + F32(coefficient)
    return total


def exp(x: np.float32) -> np.float32:
    x = min(max(x, F32(-87)), F32(88))
    scaled = x * F32(1.44269504)
    n = math.floor(scaled + HALF)
    high = F32(n) * F32(0.693359375)
    low = F32(n) * F32(-2.1219444e-4)
    r = x - high
    r = r - low
    p = horner(
        r, (1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 0.16666665459, 0.50000001201)
    )
    square = r * r
    y = p * square
    y = y + r
    y = y + ONE
    return y * F32(2.0**n)


def sigmoid(x: np.float32) -> np.float32:
    e = exp(-abs(x))
    below = ONE + e
    return ONE / below if x >= 0 else e / below


def tanh(x: np.float32) -> np.float32:
    if abs(x) < F32(0.625):
        s = x * x
        p = horner(
            s, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 0.133314422036, -0.333332819422)
        )
        y = p * s
        y = y * x
        return y + x
    e = exp(F32(-2) * abs(x))
    above = ONE - e
    below = ONE + e
    return np.copysign(above / below, x)


def erf(x: np.float32) -> np.float32:
    below = F32(0.3275911) * abs(x)
    below = ONE + below
    t = ONE / below
    q = horner(t, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592))
    q = q * t
    square = x * x
    rest = q * exp(-square)
    return np.copysign(ONE - rest, x)


def silu(x: np.float32) -> np.float32:
    return x * sigmoid(x)


def gelu(x: np.float32) -> np.float32:
    half = HALF * x
    inner = x * F32(0.70710678)
    factor = ONE + erf(inner)
    return half * factor


def gelu_tanh(x: np.float32) -> np.float32:
    half = HALF * x
    square = x * x
    cubic = F32(0.044715) * x
    cubic = cubic * square
    inner = x + cubic
    inner = F32(0.7978845608) * inner
    factor = ONE + tanh(inner)
    return half * factor


FUNCTIONS = {
    "sigmoid": sigmoid,
    "tanh": tanh,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "exp": exp,
}


def sum_in_lanes(values: Sequence[np.float32]) -> np.float32:
    lanes = [ZERO] * 16
    for index, value in enumerate(values):
        lanes[index % 16] = lanes[index % 16] + value
    for distance in (8, 4, 2, 1):
        for lane in range(distance):
            lanes[lane] = lanes[lane] + lanes[lane + distance]
    return lanes[0]


def normalized(values: Sequence[np.float32], epsilon: float) -> list[np.float32]:
    """The row "norms", before gain and bias."""
    count = F32(len(values))
    mean = sum_in_lanes(values) / count
    distances = [value - mean for value in values]
    variance = sum_in_lanes([distance * distance for distance in distances]) / count
    root = np.sqrt(variance + F32(epsilon))
    inverse = ONE / root
    return [distance * inverse for distance in distances]
