"""Products on integers while training: what you train is what you serve (int4, section 2.2).

The output of `integer_product` is that of `runtime.ops.quantized_product`, bit for bit, because it
is the same computation: the levels of the weight, the levels of each frame, their exact sums, then
the float operations of docs/numerics.md, section 4, in their order. The gradient is that of the
fake-quantized product, straight-through: it passes where a value lies within the range of its grid,
which activations with a scale of their own frame always do.

The integers lie in float32 tensors, where products and sums are exact up to 2**24: 128 * 127 of
1032 inputs at 8 by 8 bits, 8 * 127 of 16512 at 4 by 8. A wider product is cut, and its parts are
added in float64. Exact sums have no order, so that no library, thread count or reduced precision of
inputs (bfloat16 and TF32 hold every level) can change them. int8 matrix products of torch are
private (`torch._int_mm`) and were left alone.

Letters: N outputs, K inputs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from subtone.numerics import largest_symmetric_level
from subtone.quantize import grids
from subtone.quantize.grids import Grid
from subtone.quantize.ranges import fit_grid, group_count
from subtone.quantize.rules import Settings

EXACT_IN_FLOAT32 = 2**24
"""Integers up to this magnitude, and hence their sums, are exact in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightLevels:
    """A weight as the integers that are multiplied, and what makes them real.

    * `levels`: float32 (N, K), codes less `2**(bits-1)`.
    * `grid`: scale and zero_point in units of levels, (1, 1), (N, 1) or (N, groups).
    * `is_inside`: (N, K), false where the grid's range clipped the weight.
    """

    levels: Tensor
    grid: Grid
    is_inside: Tensor
    bits: int
    is_symmetric: bool

    @functools.cached_property
    def decoded(self) -> Tensor:
        """float32 (N, K): what the levels mean."""
        return grids.values_on_grid(self.levels, _spread(self.grid, self.levels.shape[1]))


class ActivationLevels(NamedTuple):
    """Activations as the integers that are multiplied, and what makes them real.

    * `levels`: float32, within `limit`; `scale`: one a frame, or one for all.
    * `is_inside`: false where they were clipped; None where nothing ever is.
    """

    levels: Tensor
    scale: Tensor
    limit: int
    is_inside: Tensor | None


def dynamic_activations(features: Tensor, bits: int, *, channel_axis: int = -1) -> ActivationLevels:
    """`features` on the grid of each frame."""
    levels, scale = grids.dynamic_levels(features.detach().to(torch.float32), bits, channel_axis=channel_axis)
    return ActivationLevels(levels, scale, largest_symmetric_level(bits), None)


def static_activations(features: Tensor, scale: float, bits: int) -> ActivationLevels:
    """`features` on a grid known beforehand: twin of `numerics.quantize_static`, signed.

    >>> static_activations(torch.tensor([-2.0, 0.1, 1.0]), 1 / 127, 8).levels
    tensor([-127.,   13.,  127.])
    """
    limit, step = largest_symmetric_level(bits), np.float32(scale)
    positions = features.detach().to(torch.float32) * float(np.float32(1) / step)
    positions = positions.add_(0.5).floor_()
    levels = positions.clamp(-limit, limit)
    return ActivationLevels(levels, levels.new_full((1,), float(step)), limit, levels == positions)


@torch.no_grad()
def weight_levels(weight: Tensor, settings: Settings, *, name: str = "the weight") -> WeightLevels:
    """`weight` (its own torch shape) on the uniform grid of `settings`; the levels are those of QTensor."""
    bits = settings.bits
    if bits is None or settings.grid == "codebook":
        raise ValueError(f"{name} has no uniform grid to take levels from; use grid='symmetric'")
    flat = grids.flatten_weight(weight.detach().to(torch.float32))
    grid = fit_grid(flat, settings, group_count=group_count(tuple(weight.shape), settings, name=name))
    is_symmetric, middle = settings.is_symmetric, 2.0 ** (bits - 1)
    positions = grids.positions_on_grid(flat, _spread(grid, flat.shape[1]))
    codes = positions.clamp(grids.lowest_code(bits, is_symmetric=is_symmetric), 2**bits - 1)
    return WeightLevels(
        levels=codes - middle,
        grid=Grid(grid.scale, grid.zero_point - middle),
        is_inside=positions == codes,
        bits=bits,
        is_symmetric=is_symmetric,
    )


def integer_product(
    features: Tensor, weight: Tensor, settings: Settings, *, channel_axis: int = -1, name: str = "the weight"
) -> Tensor:
    """`features` times `weight` on integers, one activation scale a frame; no bias.

    Args:
        features: (..., K) with `channel_axis` -1, (..., K, T) with -2.
        weight: (N, K), or (N, K, 1) of a pointwise convolution.
        settings: a uniform grid with `activations="dynamic"`.
        name: stands in errors.

    Returns:
        float32 (..., N) or (..., N, T). Under autocast the products of the backward pass are taken
        in its precision; those of the forward pass are exact in any case.

    >>> four = Settings(bits=4, activations="dynamic")
    >>> integer_product(torch.tensor([[1.0, -0.5]]), torch.tensor([[0.7, 0.2]]), four)
    tensor([[0.6008]])
    """
    if settings.activation_bits is None:
        raise ValueError(f"{name} meets float activations; use activations='dynamic'")
    of = weight_levels(weight, settings, name=name)
    x = dynamic_activations(features, settings.activation_bits, channel_axis=channel_axis)
    return product_of_levels(features, x, weight, of, channel_axis=channel_axis)


def product_of_levels(
    features: Tensor, x: ActivationLevels, weight: Tensor, of: WeightLevels, *, channel_axis: int = -1
) -> Tensor:
    """`integer_product` of levels taken already: `x` of `features`, `of` of `weight`.

    For a weight that is multiplied at every step of a recurrence, and for scales known beforehand.
    """
    precision = autocast_type(features, otherwise=torch.float32)
    return _IntegerProduct.apply(features, x, weight, of, channel_axis, precision)  # type: ignore[no-any-return]


def autocast_type(features: Tensor, *, otherwise: torch.dtype) -> torch.dtype:
    """The precision of autocast on the device of `features`, where it is on."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else otherwise


class _IntegerProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        x: ActivationLevels,
        weight: Tensor,
        of: WeightLevels,
        channel_axis: int,
        precision: torch.dtype,
    ) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            total = _sums_in_groups(x.levels, of, x.limit, channel_axis)
            ctx.save_for_backward(x.levels.to(torch.int8), x.scale, x.is_inside)
            ctx.of, ctx.channel_axis, ctx.precision = of, channel_axis, precision
            ctx.types = features.dtype, weight.dtype, weight.shape
            return total.mul_(x.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        levels, scale, is_inside = ctx.saved_tensors  # type: ignore[attr-defined]
        of, precision = ctx.of, ctx.precision  # type: ignore[attr-defined]
        features_type, weight_type, weight_shape = ctx.types  # type: ignore[attr-defined]
        is_last = ctx.channel_axis == -1  # type: ignore[attr-defined]
        to_features = to_weight = None
        with torch.autocast(levels.device.type, enabled=False):
            gradient = gradients[0].to(precision)
            if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
                decoded = of.decoded.to(precision)
                to_features = gradient @ decoded if is_last else decoded.T @ gradient
                to_features = to_features.to(features_type)
                if is_inside is not None:
                    to_features *= is_inside
            if ctx.needs_input_grad[2]:  # type: ignore[attr-defined]
                seen = (levels.to(torch.float32) * scale).to(precision)
                summed = _over_frames(gradient, seen, is_last=is_last).to(torch.float32) * of.is_inside
                to_weight = grids.unflatten_weight(summed, tuple(weight_shape)).to(weight_type)
        return to_features, None, to_weight, None, None, None


def _sums_in_groups(levels: Tensor, of: WeightLevels, limit: int, channel_axis: int) -> Tensor:
    """`sum over groups of (float32(sum L x) - z * float32(sum x)) * scale`, groups ascending from 0."""
    groups = of.grid.scale.shape[1]
    size = of.levels.shape[1] // groups
    total: Tensor | None = None
    for group in range(groups):
        x = levels.narrow(channel_axis, group * size, size)
        sums = exact_sums(of.levels.narrow(1, group * size, size), x, of.bits, limit, channel_axis)
        scale, zero_point = (
            part[:, group if part.shape[1] > 1 else 0, None if channel_axis == -2 else ...]
            for part in of.grid
        )
        if not (of.is_symmetric and of.bits > 1):  # else zero_point is 0
            sums = sums - zero_point * x.sum(channel_axis, keepdim=True)
        # From 0: a sum of -0 becomes 0, as in the definition.
        total = sums.mul_(scale).add_(0.0) if total is None else total.add_(sums.mul_(scale))
    assert total is not None
    return total


def exact_sums(weight: Tensor, features: Tensor, bits: int, limit: int, channel_axis: int) -> Tensor:
    """float32 of the integer sums over inputs, rounded once, where they are wider than 24 bits.

    Args:
        weight: levels (N, K) of `bits`.
        features: levels (..., K) or (..., K, T) within `limit`.
    """
    widest = EXACT_IN_FLOAT32 // (2 ** (bits - 1) * limit)
    parts = [
        x @ w.T if channel_axis == -1 else w @ x
        for w, x in zip(weight.split(widest, 1), features.split(widest, channel_axis), strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    total = parts[0].double()
    for part in parts[1:]:
        total += part
    return total.to(torch.float32)


def _over_frames(gradient: Tensor, features: Tensor, *, is_last: bool) -> Tensor:
    """The sum over all frames of gradient times features: (N, K)."""
    if is_last:
        return gradient.flatten(0, -2).T @ features.flatten(0, -2)
    product = gradient @ features.mT
    return product.flatten(0, -3).sum(0) if product.ndim > 2 else product


def _spread(grid: Grid, columns: int) -> Grid:
    """Each group's entry once for every column it covers."""
    return Grid(
        *(
            part if part.shape[1] == 1 else part.repeat_interleave(columns // part.shape[1], dim=1)
            for part in grid
        )
    )
