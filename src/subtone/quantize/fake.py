"""Fake quantization: float in, float on the grid out, with a gradient for training.

The values are those of the packed model, bit for bit; the gradient is straight-through (Bengio et
al. 2013), as in all five papers: 1 where a value lies within the grid's range, 0 where it was
clipped. Scales and zero points carry no gradient here (int4's stop-gradient on the maximum;
PAPERS.md, int4-grad).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from subtone.quantize import grids
from subtone.quantize.grids import Grid
from subtone.quantize.ranges import fit_grid, group_count
from subtone.quantize.rules import Settings


class _StraightThrough(torch.autograd.Function):
    """`quantized` itself; its gradient goes to `values` where `is_inside`, everywhere where that is None.

    Not the usual `values + (quantized - values).detach()`: that sum rounds, and then a forward
    pass would not see the stored values.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, quantized: Tensor, is_inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(is_inside)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (is_inside,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] if is_inside is None else gradients[0] * is_inside, None, None


def straight_through(values: Tensor, quantized: Tensor, is_inside: Tensor | None) -> Tensor:
    """`quantized` exactly, with the gradient of `values` where `is_inside` and 0 elsewhere; None: everywhere."""
    return _StraightThrough.apply(values, quantized, is_inside)  # type: ignore[no-any-return]


def fake_quantize_weight(weight: Tensor, settings: Settings, *, name: str = "the weight") -> Tensor:
    """`weight` on the grid of `settings`: what `QTensor.dequantize()` gives after a freeze.

    Args:
        weight: its own torch shape (out, in, *taps); half precision is computed in float32.
        settings: a uniform grid, symmetric or asymmetric.
        name: stands in errors.

    >>> fake_quantize_weight(torch.tensor([[-0.9, 0.2, 0.7]]), Settings(bits=2))
    tensor([[-0.9000,  0.0000,  0.9000]])
    """
    if settings.bits is None:
        return weight
    if settings.grid == "codebook":
        raise ValueError(f"{name} has grid='codebook', which has no uniform grid; use 'symmetric'")
    flat = grids.flatten_weight(weight.to(torch.float32))
    grid = fit_grid(flat, settings, group_count=group_count(tuple(weight.shape), settings, name=name))
    quantized = _on_grid(flat, grid, settings)
    return grids.unflatten_weight(quantized, tuple(weight.shape)).to(weight.dtype)


def _on_grid(flat: Tensor, grid: Grid, settings: Settings) -> Tensor:
    """A flattened weight (out, columns) on a `grid` of (1, 1), (out, 1) or (out, groups)."""
    bits = settings.bits
    assert bits is not None
    # Up to the largest magnitude nothing loses its gradient, unless float16 has rounded the scale of a group.
    may_clip = settings.range != "absmax" or bits == 1 or grid.scale.shape[1] > 1
    with torch.no_grad():  # in place where it can be: this runs on every weight at every step
        cells = flat.reshape(len(flat), grid.scale.shape[1], -1)
        scale, zero_point = (part.unsqueeze(-1) for part in grid)
        positions = grids.positions_on_grid(cells, Grid(scale, zero_point))
        lowest, highest = grids.lowest_code(bits, is_symmetric=settings.is_symmetric), 2**bits - 1
        codes = positions.clamp(lowest, highest) if may_clip else positions.clamp_(lowest, highest)
        is_inside = (positions == codes).reshape(flat.shape) if may_clip else None
        quantized = codes.sub_(zero_point).mul_(scale).reshape(flat.shape)
    return straight_through(flat, quantized, is_inside)


def fake_quantize_activations(features: Tensor, bits: int = 8) -> Tensor:
    """`features` on the run time's dynamic grid: `levels * scale` of `numerics.quantize_dynamic`.

    One scale a frame, over the last axis, so QAT sees exactly what an integer product will see. A
    silent frame gives zeros. Nothing is ever clipped, so the gradient is 1 everywhere.

    Args:
        features: (..., K), channels last.
        bits: 2 to 8.
    """
    with torch.no_grad():
        levels, scale = grids.dynamic_levels(features.detach().to(torch.float32), bits)
        quantized = (levels * scale).to(features.dtype)
    return straight_through(features, quantized, None)
