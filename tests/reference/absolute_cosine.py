"""MRACos, its gradients, gamma and the best layout of regions, as loops that read like S8BQAT's section 2.

Everything is float64 Python. `regions` are (low, high, theta): edges and frequency over weights in [-1, 1].
"""

from __future__ import annotations

import itertools
import math

Region = tuple[float, float, float]


def penalty(weights: list[float], regions: list[Region], strength: float) -> float:
    """Eq. 1. A border of two regions counts once; it is 0 in both."""
    total = 0.0
    for weight in weights:
        for low, high, theta in regions:
            if low <= weight < high:
                total += strength * (1 - abs(math.cos(math.pi * theta * weight)))
    return total


def gradient(weight: float, regions: list[Region], strength: float) -> float:
    """The derivative of Eq. 1: that of |cos| is -sin times the sign of the cosine."""
    for low, high, theta in regions:
        if low <= weight < high:
            sign = math.copysign(1.0, math.cos(math.pi * theta * weight))
            return theta * strength * math.pi * sign * math.sin(math.pi * theta * weight)
    return 0.0


def printed_gradient(weight: float, regions: list[Region], strength: float) -> float:
    """Eq. 2 as printed: xi = 0 in [(t-2)/theta, t/theta] for an odd t. Every number is in such an interval."""
    for low, high, theta in regions:
        if low <= weight < high:
            t = 2 * math.floor((weight * theta + 1) / 2) + 1
            assert (t - 2) / theta <= weight <= t / theta
            xi = 0
            return theta * strength * (-1) ** xi * math.pi * math.sin(math.pi * theta * weight)
    return 0.0


def gamma(weights: list[float], centroids: list[float], epsilon: float) -> list[float]:
    """Eq. 3 for each centroid; NaN where no weight is nearest. Of two equally near, the upper."""
    result = []
    for k, centroid in enumerate(centroids):
        members = [
            weight
            for weight in weights
            if max(range(len(centroids)), key=lambda j: (-abs(weight - centroids[j]), j)) == k
        ]
        near = [weight for weight in members if (weight - centroid) ** 2 < epsilon]
        result.append(len(near) / len(members) if members else math.nan)
    return result


def squared_error(positions: list[float], levels: tuple[int, ...]) -> float:
    return sum(min((position - level) ** 2 for level in levels) for position in positions)


def least_error(positions: list[float], candidates: range, max_levels: int, max_regions: int) -> float:
    """The least squared error of any layout among `candidates`, by trying all.

    A layout is legal if each gap divides both centroids around it, and equal gaps form at most
    `max_regions` runs.
    """
    best = min(squared_error(positions, (level,)) for level in candidates)
    for count in range(2, max_levels + 1):
        for levels in itertools.combinations(candidates, count):
            gaps = [high - low for low, high in itertools.pairwise(levels)]
            if any(low % gap for low, gap in zip(levels, gaps, strict=False)):
                continue
            if len(list(itertools.groupby(gaps))) <= max_regions:
                best = min(best, squared_error(positions, levels))
    return best
