"""What bounds between the definitions and torch are made of.

A bound is worked out from the roundings of float32, each at most U of its result, to first order, with one
part in a hundred for the rest; truth is torch in float64. Functions are within 1e-7 (test_functions.py).
"""

from __future__ import annotations

import numpy as np
import torch

F32 = np.float32
U = 2.0**-24
OF_FUNCTION = 1e-7
SLACK = 1.01


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return rng.normal(0, scale, shape).astype(F32)


def wide(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float64))


def lanes_depth(count: int) -> int:
    """Roundings on the longest way of a number into a sum in lanes."""
    return -(-count // 16) + 4
