"""Eq. 2 of Kim et al. 2022 as loops over layers, channels and values, in float64 Python."""

from __future__ import annotations

import math


def gaussian_kl(mean: float, variance: float, other_mean: float, other_variance: float) -> float:
    """KL(N(mean, variance) || N(other_mean, other_variance))."""
    sigma, other = math.sqrt(variance), math.sqrt(other_variance)
    return math.log(other / sigma) - 0.5 * (1 - (variance + (mean - other_mean) ** 2) / other_variance)


def layer_divergence(
    entering: list[list[list[float]]], means: list[float], variances: list[float], epsilon: float
) -> float:
    """`entering` as [batch][channel][frame]: the divergence of each channel, then the mean of them."""
    total = 0.0
    for channel in range(len(means)):
        values = [value for utterance in entering for value in utterance[channel]]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        total += gaussian_kl(means[channel], variances[channel] + epsilon, mean, variance + epsilon)
    return total / len(means)


def depthwise(rows: list[list[float]], kernels: list[list[float]], padding: int, dilation: int) -> list:
    """`rows` as [channel][frame], one kernel a channel, zeros beyond both ends."""
    found = []
    for row, kernel in zip(rows, kernels, strict=True):
        span = dilation * (len(kernel) - 1) + 1
        padded = [0.0] * padding + row + [0.0] * padding
        found.append(
            [
                math.fsum(weight * padded[start + dilation * tap] for tap, weight in enumerate(kernel))
                for start in range(len(padded) - span + 1)
            ]
        )
    return found
