"""int2's Fig. 5 and Algorithm 1 as the paper prints them: one cell at a time, in double precision.

Gradients come from torch's own differentiation of these lines, and from finite differences of
`surrogate`, which holds constant what straight-through holds constant.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def round_straight_through(x: Tensor) -> Tensor:
    """`round` of Fig. 5: floor(x + 0.5), its gradient that of x."""
    return x + (torch.floor(x + 0.5) - x).detach()


def scale_and_min(x: Tensor, prec: int, clipping: float, *, stop_gradient: bool) -> tuple[Tensor, Tensor]:
    """`scale_and_min` of Fig. 5; `stop_gradient` stops both, where the paper stops the scale."""
    min_val, max_val = x.amin() * clipping, x.amax() * clipping
    scale = (max_val - min_val) / (2.0**prec - 1)
    return (scale.detach(), min_val.detach()) if stop_gradient else (scale, min_val)


def asymmetric(x: Tensor, prec: int, clipping: float, *, stop_gradient: bool) -> Tensor:
    """`quantize`, then `dequantize`, of one cell."""
    scale, min_val = scale_and_min(x, prec, clipping, stop_gradient=stop_gradient)
    codes = round_straight_through((x - min_val) / scale).clamp(0, 2.0**prec - 1)
    return codes * scale + min_val


def symmetric(x: Tensor, prec: int, clipping: float, *, stop_gradient: bool) -> Tensor:
    """The grid of int4, which I2Wsym takes over: max|x| / (2**(prec-1) - 1), no minimum."""
    limit = 2.0 ** (prec - 1) - 1
    scale = x.abs().amax() * clipping / limit
    scale = scale.detach() if stop_gradient else scale
    return round_straight_through(x / scale).clamp(-limit, limit) * scale


FAKE_QUANTIZE = {"asymmetric": asymmetric, "symmetric": symmetric}


def greedy_search(x: Tensor, candidates: list[float], prec: int, grid: str) -> float:
    """Algorithm 1: the clipping of least mean absolute error, the first of equal ones."""
    errors = [
        (FAKE_QUANTIZE[grid](x, prec, clipping, stop_gradient=True) - x).abs().mean()
        for clipping in candidates
    ]
    return candidates[int(torch.stack(errors).argmin())]


def surrogate(moved: np.ndarray, at: np.ndarray, prec: int, clipping: float, grid: str) -> np.ndarray:
    """The cell `moved`, quantized with the rounding offsets and the clipped values of the cell `at`.

    A smooth function of `moved` near `at`; its derivative at `at` is the gradient with scale backpropagation.
    """
    low, levels = (0, 2**prec - 1) if grid == "asymmetric" else (-(2 ** (prec - 1) - 1), 2**prec - 2)
    high = low + levels

    def ends(x: np.ndarray) -> tuple[float, float]:
        if grid == "symmetric":
            return 0.0, clipping * np.abs(x).max() / high
        return clipping * x.min(), clipping * (x.max() - x.min()) / levels

    (min_at, scale_at), (min_moved, scale_moved) = ends(at), ends(moved)
    values = []
    for old, new in zip(at, moved, strict=True):
        position = (old - min_at) / scale_at
        code = np.floor(position + 0.5)
        if low <= code <= high:
            code_moved = (new - min_moved) / scale_moved + (code - position)
        else:
            code_moved = min(max(code, low), high)
        values.append(code_moved * scale_moved + min_moved)
    return np.array(values)
