"""The grids of numerics.py in torch: the same IEEE operations in the same order, so the same bits.

numerics.py stays the definition; these twins exist because training needs tensors, on the CPU or
on a GPU. Every function is elementwise float32 and each operation is a tensor operation of its
own, so that nothing is contracted into a fused multiply-add. Codes are float tensors here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from subtone import numerics
from subtone.numerics import largest_symmetric_level


class Grid(NamedTuple):
    """`real = scale * (code - zero_point)`: tensors (1, 1), (out, 1) or (out, groups)."""

    scale: Tensor
    zero_point: Tensor

    def numpy(self) -> numerics.Grid:
        return numerics.Grid(*(part.detach().cpu().numpy().astype(np.float32) for part in self))


def divided(values: Tensor, number: float) -> Tensor:
    """`values / number` as one IEEE division.

    torch may turn `values / 7` into a product with a rounded 1/7 (on a GPU), and does turn
    `7 / values` into one with a reciprocal; between two tensors it divides.
    """
    return values / torch.full_like(values, number)


def round_half_up(values: Tensor) -> Tensor:
    """floor(x + 0.5): twin of `numerics.round_half_up`. Its gradient is 0; fake.py has the other."""
    return torch.floor(values + 0.5)


def symmetric_grid(absmax: Tensor, bits: int) -> Grid:
    """Twin of `numerics.symmetric_grid`: 2 to 8 bits, real 0 at code `2**(bits-1)`."""
    if bits == 1:
        raise ValueError("bits=1 has no symmetric grid with a zero; use one_bit_grid")
    middle = absmax.new_full((1,) * absmax.ndim, 2.0 ** (bits - 1))
    return Grid(divided(absmax, largest_symmetric_level(bits)), middle)


def one_bit_grid(mean_magnitude: Tensor) -> Grid:
    """Twin of `numerics.one_bit_grid`: codes {0, 1} mean -m and +m."""
    return Grid(mean_magnitude * 2, mean_magnitude.new_full((1,) * mean_magnitude.ndim, 0.5))


def asymmetric_grid(low: Tensor, high: Tensor, bits: int) -> Grid:
    """Twin of `numerics.asymmetric_grid`: the first code means `low`, the last `high`."""
    step = divided(high - low, 2**bits - 1)
    is_constant = step == 0
    scale = torch.where(is_constant, low.abs(), step)
    safe_scale = torch.where(is_constant, torch.ones_like(step), step)
    return Grid(scale, torch.where(is_constant, -low.sign(), -low / safe_scale))


def as_stored(grid: Grid) -> Grid:
    """`grid` as a file holds it: rounded to float16 where there are groups, in float32 again.

    Twin of `qtensor.as_stored`. What exceeds float16 becomes infinite here; QTensor refuses it.
    """
    if grid.scale.shape[-1] == 1:
        return grid
    return Grid(*(part.to(torch.float16).to(torch.float32) for part in grid))


def lowest_code(bits: int, *, is_symmetric: bool) -> int:
    """Symmetric grids of 2 bits and more leave code 0 unused."""
    return 1 if is_symmetric and bits > 1 else 0


def positions_on_grid(weights: Tensor, grid: Grid) -> Tensor:
    """`floor(w / scale + zero_point + 0.5)`: the code of each weight before it is clipped."""
    return positions_of(weights, divisor_of(grid.scale), grid.zero_point)


def positions_of(weights: Tensor, divisor: Tensor, zero_point: Tensor) -> Tensor:
    """`positions_on_grid` by `divisor_of` the scale, in one buffer; shapes must broadcast."""
    return (weights / divisor).add_(zero_point).add_(0.5).floor_()


def divisor_of(scale: Tensor) -> Tensor:
    """`scale`, and infinity for 0: a weight over infinity is the 0 that a scale of 0 asks for."""
    return torch.where(scale == 0, torch.inf, scale)


def codes_on_grid(weights: Tensor, grid: Grid, bits: int, *, is_symmetric: bool) -> Tensor:
    """Twin of `numerics.codes_on_grid`; shapes must broadcast."""
    lowest = lowest_code(bits, is_symmetric=is_symmetric)
    return positions_on_grid(weights, grid).clamp(lowest, 2**bits - 1)


def values_on_grid(codes: Tensor, grid: Grid) -> Tensor:
    """What codes mean: one subtraction, then one product, as in `QTensor.dequantize`."""
    return grid.scale * (codes - grid.zero_point)


def dynamic_levels(features: Tensor, bits: int, *, channel_axis: int = -1) -> tuple[Tensor, Tensor]:
    """Twin of `numerics.quantize_dynamic`: levels, as float32, and one scale a frame.

    Args:
        features: float32; the channels of a frame lie along `channel_axis`.
        bits: 2 to 8.

    Returns:
        levels in the shape of `features`, and scales with 1 in place of the channels.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"activation_bits={bits} has no signed grid; use 2 to 8")
    limit = largest_symmetric_level(bits)
    # Half the time of abs().amax(), a third of aminmax(), where frames are the last axis.
    absmax = torch.maximum(
        features.amax(channel_axis, keepdim=True), -features.amin(channel_axis, keepdim=True)
    )
    is_silent = absmax < float(numerics.SILENT_ABSMAX)
    safe, zero = torch.where(is_silent, torch.ones_like(absmax), absmax), torch.zeros_like(absmax)
    inverse = torch.where(is_silent, zero, torch.full_like(safe, limit) / safe)
    scale = torch.where(is_silent, zero, divided(absmax, limit))
    return (features * inverse).add_(0.5).floor_(), scale


def flatten_weight(weight: Tensor) -> Tensor:
    """Twin of `qtensor.flatten_weight`: (out, in, *taps) as (out, taps * in).

    >>> flatten_weight(torch.arange(6).reshape(1, 2, 3)).tolist()
    [[0, 3, 1, 4, 2, 5]]
    """
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def unflatten_weight(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `flatten_weight`."""
    outputs, inputs, *taps = shape
    unflattened = flat.reshape(outputs, *taps, inputs).movedim(-1, 1).contiguous()
    # Axes of size 1 keep odd strides, by which torch chooses another kernel, and other bits.
    return unflattened.flatten().view(shape)


def cells_of(flat: Tensor, *, granularity: str, groups: int) -> Tensor:
    """The weights that share a scale along the last axis: (rows, groups, size).

    (1, 1, all) per tensor, (out, 1, columns) per channel, (out, groups, group_size) per group. Its
    first two axes are the shape of `scale`.
    """
    if granularity == "tensor":
        return flat.reshape(1, 1, flat.numel())
    groups = groups if granularity == "group" else 1
    size = flat.shape[1] // groups if flat.shape[1] else 0
    return flat.reshape(flat.shape[0], groups, size)
