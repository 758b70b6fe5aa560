"""The operations of a program as loops over single numbers, each float32 step on its own line.

Integers are Python's, which never overflow; floats are np.float32 scalars, one rounding a step.
"""

from __future__ import annotations

import math

import numpy as np

from subtone.program import Conv1d
from subtone.qtensor import QTensor

ONE_HALF = np.float32(0.5)


def activation_levels(frame: list[np.float32], bits: int) -> tuple[list[int], np.float32]:
    """Levels of one frame and its scale: docs/numerics.md, section 3, row "dynamic"."""
    absmax = np.float32(0)
    for value in frame:
        absmax = max(absmax, abs(value))
    if absmax < 2.0**-100:
        return [0] * len(frame), np.float32(0)
    limit = np.float32(2 ** (bits - 1) - 1)
    inverse = limit / absmax
    levels = []
    for value in frame:
        product = value * inverse
        position = product + ONE_HALF
        levels.append(math.floor(position))
    return levels, absmax / limit


def integer_product(features: np.ndarray, weight: QTensor, bits: int) -> np.ndarray:
    """docs/numerics.md, section 4: one output at a time, one group at a time."""
    levels_of_weight = weight.levels().tolist()
    scale = np.broadcast_to(weight.scale.astype(np.float32), (weight.num_rows, weight.scale.shape[1]))
    zero_point = np.broadcast_to(weight.level_zero_point(), scale.shape)
    groups = scale.shape[1]
    size = weight.num_columns // groups
    result = np.zeros((len(features), weight.num_rows), np.float32)
    for t, frame in enumerate(features):
        x, frame_scale = activation_levels(list(frame), bits)
        for n in range(weight.num_rows):
            total = np.float32(0)
            for g in range(groups):
                product_sum, level_sum = 0, 0
                for k in range(g * size, (g + 1) * size):
                    product_sum += levels_of_weight[n][k] * x[k]
                    level_sum += x[k]
                offset = zero_point[n, g] * np.float32(level_sum)
                centred = np.float32(product_sum) - offset
                scaled = centred * scale[n, g]
                total = total + scaled
            result[t, n] = total * frame_scale
    return result


def float_convolution(features: np.ndarray, weight: np.ndarray, op: Conv1d) -> np.ndarray:
    """One output at a time: taps ascending, within a tap the inputs of its group, 0 beyond both ends."""
    frames = len(features)
    behind = op.padding if op.padding_behind < 0 else op.padding_behind
    outputs, depth = weight.shape[:2]
    taps = weight.reshape(outputs, depth, op.kernel)
    frames_out = 0
    while frames and frames_out * op.stride + (op.kernel - 1) * op.dilation < op.padding + frames + behind:
        frames_out += 1  # as long as the last tap lies within the padded utterance
    result = np.zeros((frames_out, outputs), np.float32)
    for t in range(frames_out):
        for n in range(outputs):
            group = n // (outputs // op.groups)
            total = np.float32(0)
            for tap in range(op.kernel):
                row = t * op.stride + tap * op.dilation - op.padding
                for k in range(depth):
                    x = features[row, group * depth + k] if 0 <= row < frames else np.float32(0)
                    product = x * taps[n, k, tap]
                    total = total + product
            result[t, n] = total
    return result


def clip(values: np.ndarray, low: np.float32, high: np.float32) -> np.ndarray:
    """One value at a time: what is not above `low` is `low`, what is then not below `high` is `high`."""
    result = np.empty_like(values)
    for t in range(values.shape[0]):
        for n in range(values.shape[1]):
            value = values[t, n]
            if not value > low:
                value = low
            if not value < high:
                value = high
            result[t, n] = value
    return result


def finish(values: np.ndarray, gain: np.ndarray | None, bias: np.ndarray | None, *, relu: bool) -> np.ndarray:
    """Times gain, plus bias, then ReLU: one value at a time, each step rounded."""
    result = np.empty_like(values)
    for t in range(values.shape[0]):
        for n in range(values.shape[1]):
            value = values[t, n]
            if gain is not None:
                value = value * gain[n]
            if bias is not None:
                value = value + bias[n]
            result[t, n] = value if not relu or value > 0 else np.float32(0)
    return result
