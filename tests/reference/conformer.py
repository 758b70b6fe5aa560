"""A Conformer, one utterance, in float64 loops that read like Gulati et al. 2020, section 2.

`weights`: our parameter names -> arrays. BatchNorms in eval mode. Rows are (T, D).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from tests.reference.attention import attention, sinusoids

from subtone.models.conformer_config import ConformerConfig

Array = NDArray[np.float64]
EPSILON = 1e-5


def part(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """What `weights` has under `prefix`."""
    start = f"{prefix}."
    return {name.removeprefix(start): array for name, array in weights.items() if name.startswith(start)}


def linear(rows: Array, weights: Mapping[str, Array]) -> Array:
    return rows @ weights["weight"].T + weights.get("bias", 0.0)


def layer_norm(rows: Array, weights: Mapping[str, Array]) -> Array:
    result = np.empty_like(rows)
    for t, row in enumerate(rows):
        deviation = math.sqrt(((row - row.mean()) ** 2).mean() + EPSILON)
        result[t] = (row - row.mean()) / deviation * weights["weight"] + weights["bias"]
    return result


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def swish(values: Array) -> Array:
    return values * sigmoid(values)


def feed_forward(rows: Array, weights: Mapping[str, Array]) -> Array:
    hidden = swish(linear(layer_norm(rows, part(weights, "norm")), part(weights, "linear1")))
    return linear(hidden, part(weights, "linear2")) if "linear2.weight" in weights else hidden


def convolution(rows: Array, weights: Mapping[str, Array], config: ConformerConfig) -> Array:
    width, kernel = config.width, config.kernel
    wide = linear(layer_norm(rows, part(weights, "norm")), part(weights, "pointwise1"))
    gated = wide[:, :width] * sigmoid(wide[:, width:])
    before = kernel - 1 if config.is_convolution_causal else kernel // 2
    result = np.empty_like(gated)
    for t in range(len(rows)):
        for unit in range(width):
            total = weights["depthwise.bias"][unit]
            for tap in range(kernel):
                source = t - before + tap
                if 0 <= source < len(rows):
                    total += weights["depthwise.weight"][unit, 0, tap] * gated[source, unit]
            result[t, unit] = total
    norm = part(weights, "inner_norm")
    if config.norm == "layer":
        result = layer_norm(result, norm)
    else:
        deviation = np.sqrt(norm["running_var"] + EPSILON)
        result = (result - norm["running_mean"]) / deviation * norm["weight"] + norm["bias"]
    return linear(swish(result), part(weights, "pointwise2"))


def self_attention(rows: Array, weights: Mapping[str, Array], config: ConformerConfig) -> Array:
    rows = layer_norm(rows, part(weights, "norm"))
    frames = len(rows)
    is_limited = -1 not in (config.left, config.right)
    farthest, nearest = (config.left, -config.right) if is_limited else (frames - 1, -(frames - 1))
    table = sinusoids(list(range(farthest, nearest - 1, -1)), config.width)
    seen = attention(
        *(linear(rows, part(weights, name)) for name in ("query", "key", "value")),
        linear(table, part(weights, "position")),
        weights["content_bias"],
        weights["position_bias"],
        heads=config.heads,
        left=config.left,
        right=config.right,
    )
    return linear(seen, part(weights, "out"))


def block(rows: Array, weights: Mapping[str, Array], config: ConformerConfig) -> Array:
    rows = rows + 0.5 * feed_forward(rows, part(weights, "feed_forward1"))
    if "attention.out.weight" in weights:
        rows = rows + self_attention(rows, part(weights, "attention"), config)
    rows = rows + convolution(rows, part(weights, "convolution"), config)
    last = feed_forward(rows, part(weights, "feed_forward2"))
    is_open = "feed_forward2.linear2.weight" not in weights
    return layer_norm(last if is_open else rows + 0.5 * last, part(weights, "norm"))


def conv2d(grid: Array, weights: Mapping[str, Array], *, is_causal: bool) -> Array:
    """(C, T, F) -> (C', ceil(T / 2), ceil(F / 2)): 3 x 3, stride 2, then ReLU."""
    kernel, bias = weights["weight"], weights["bias"]
    channels, frames, bands = len(kernel), -(-grid.shape[1] // 2), -(-grid.shape[2] // 2)
    before = 2 if is_causal else 1
    result = np.empty((channels, frames, bands))
    for channel in range(channels):
        for t in range(frames):
            for f in range(bands):
                total = bias[channel]
                for dt in range(3):
                    for df in range(3):
                        frame, band = 2 * t - before + dt, 2 * f - 1 + df
                        if 0 <= frame < grid.shape[1] and 0 <= band < grid.shape[2]:
                            total += kernel[channel, :, dt, df] @ grid[:, frame, band]
                result[channel, t, f] = max(0.0, total)
    return result


def subsampling(frames: Array, weights: Mapping[str, Array], config: ConformerConfig) -> Array:
    """(T, F) -> (T', D)."""
    stacks = len(frames) // config.stacked_frames
    rows = frames[: stacks * config.stacked_frames].reshape(stacks, -1)
    if config.conv2d_channels:
        grid = rows[None]
        for index in range(2):
            grid = conv2d(
                grid, part(weights, f"convolutions.{index}"), is_causal=config.is_convolution_causal
            )
        rows = np.array(
            [
                [grid[c, t, f] for c in range(len(grid)) for f in range(grid.shape[2])]
                for t in range(grid.shape[1])
            ]
        )
    return linear(rows, part(weights, "out"))


def conformer(frames: Array, weights: Mapping[str, Array], config: ConformerConfig) -> Array:
    """(T, F) -> (T', D)."""
    rows = subsampling(frames, part(weights, "subsampling"), config)
    if config.is_input_scaled:
        rows = rows * math.sqrt(config.width)
    for index in range(config.num_blocks):
        rows = block(rows, part(weights, f"blocks.{index}"), config)
    return linear(rows, part(weights, "projection")) if "projection.weight" in weights else rows
