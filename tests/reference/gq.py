"""The General Quantizer as its paper prints it: the whole (n, m) matrix, in float64; Eq. 1 to 5."""

from __future__ import annotations

import math

import numpy as np


def centroids(bits: int, mu: float) -> list[float]:
    """Eq. 5, dividing by mu, then section 3.3: the nearest k/128, k in [-128, 127]."""
    count = 2**bits
    snapped = []
    for index in range(count):
        z = -1 + 2 * index / (count - 1)
        warped = math.copysign(((1 + mu) ** abs(z) - 1) / mu, z) if mu else z
        snapped.append(min(max(math.floor(128 * warped + 0.5), -128), 127) / 128)
    return snapped


def assignment(weights: np.ndarray, z: np.ndarray, alpha: float) -> np.ndarray:
    """A_soft of Eq. 1 and 2, (n, m); the row's largest exponent is taken out of numerator and denominator."""
    exponents = -alpha * np.abs(weights[:, None] - z[None, :])
    powers = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def soft(weights: np.ndarray, z: np.ndarray, alpha: float) -> np.ndarray:
    """Eq. 3."""
    return assignment(weights, z, alpha) @ z


def hard(weights: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A_hard: one centroid each, the nearest; of two equally near the upper."""
    distances = np.abs(weights[:, None] - z[None, :])
    return z[len(z) - 1 - np.argmin(distances[:, ::-1], axis=1)]


def error_of_mu(weights: np.ndarray, bits: int, mu: float, alpha: float) -> float:
    """The quantization error that section 3.2 minimizes: the sum of squares of z' A_soft - w."""
    z = np.unique(centroids(bits, mu))
    assigned = hard(weights, z) if math.isinf(alpha) else soft(weights, z, alpha)
    return float(np.square(assigned - weights).sum())
