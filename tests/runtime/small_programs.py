"""Small weights and programs that tests of the run time are made of."""

from __future__ import annotations

import numpy as np

from subtone import numerics
from subtone.program import Op, Program
from subtone.qtensor import QTensor, flatten_weight

GRIDS = ("tensor", "symmetric", "asymmetric", "group", "codebook")


def packed_weight(
    rng: np.random.Generator, shape: tuple[int, ...], *, bits: int, grid: str, groups: int = 1
) -> QTensor:
    """A random weight on one of `GRIDS`; "group" splits the inputs into `groups`, asymmetrically."""
    weight = rng.normal(0.3, 1.0, shape).astype(np.float32)
    flat = flatten_weight(weight)
    if grid == "codebook":
        count = int(rng.integers(1, 2**bits + 1))
        levels = np.sort(rng.integers(-128, 128, count)).astype(np.int8)
        scale = (np.abs(flat).max(axis=1, keepdims=True) / 128).astype(np.float32)
        return QTensor.on_codebook(weight, scale, levels, bits)
    if grid in ("tensor", "symmetric"):
        magnitude = np.abs(flat).max(axis=None if grid == "tensor" else 1, keepdims=True)
        symmetric = numerics.one_bit_grid if bits == 1 else lambda m: numerics.symmetric_grid(m, bits)
        return QTensor.on_grid(weight, symmetric(magnitude), bits, is_symmetric=True)
    grouped = flat.reshape(shape[0], groups if grid == "group" else 1, -1)
    # Ranges reach 0: two inputs that are nearly equal would ask for a zero_point beyond float16.
    low, high = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    limits = numerics.asymmetric_grid(low, high, bits)
    return QTensor.on_grid(weight, limits, bits, is_symmetric=False)


def program_of(*ops: Op, width_in: int, width_out: int) -> Program:
    """A program whose first value is `x` and whose last is `y`."""
    return Program(
        input="x", input_width=width_in, output="y", output_width=width_out, frames_per_step=1, ops=ops
    )


def features_of(rng: np.random.Generator, frames: int, width: int) -> np.ndarray:
    """Frames of very different loudness, every fifth one silent, with zeros of both signs."""
    loudness = np.exp(rng.normal(0, 4, (frames, 1)))
    values = (rng.normal(0, 1, (frames, width)) * loudness).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = -0.0
    values[4::5] = 0
    return values
