"""Relative attention, sinusoids and stacked frames, one number at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def attention(
    query: Array,
    key: Array,
    value: Array,
    positions: Array | None,
    content_bias: Array | None,
    position_bias: Array | None,
    *,
    heads: int,
    left: int,
    right: int,
    length: int | None = None,
) -> Array:
    """One utterance: (T, D) arrays. Rows from `length` on are seen by none and come out as NaN."""
    frames, width = query.shape
    valid = frames if length is None else length
    head_width = width // heads
    farthest = frames - 1 if -1 in (left, right) else left
    result = np.full((frames, width), np.nan)
    for head in range(heads):
        units = range(head * head_width, (head + 1) * head_width)
        for t in range(valid):
            first = 0 if left == -1 else max(0, t - left)
            last = valid - 1 if right == -1 else min(valid - 1, t + right)
            scores = {}
            for s in range(first, last + 1):
                score = 0.0
                for unit in units:
                    if positions is None:
                        score += query[t, unit] * key[s, unit]
                    else:
                        score += (query[t, unit] + content_bias[unit]) * key[s, unit]
                        position = positions[farthest - (t - s), unit]
                        score += (query[t, unit] + position_bias[unit]) * position
                scores[s] = score / math.sqrt(head_width)
            total = sum(math.exp(score) for score in scores.values())
            for unit in units:
                result[t, unit] = sum(math.exp(score) / total * value[s, unit] for s, score in scores.items())
    return result


def sinusoids(distances: list[int], width: int) -> Array:
    table = np.empty((len(distances), width))
    for row, distance in enumerate(distances):
        for pair in range(width // 2):
            angle = distance / 10000 ** (2 * pair / width)
            table[row, 2 * pair], table[row, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return table


def stack_frames(features: Array, count: int) -> Array:
    """One utterance, (T, D)."""
    stacks = [
        [number for frame in range(count) for number in features[stack * count + frame]]
        for stack in range(len(features) // count)
    ]
    return np.array(stacks).reshape(len(stacks), count * features.shape[1])
