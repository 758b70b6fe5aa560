"""Fake quantization whose range is trained too: int2's gradient "over scale" (section 2.3, Fig. 5).

Straight-through training (fake.py) holds the grid of a cell for a constant, although its ends are
weights themselves: the smallest and the largest. Differentiate Fig. 5 with only its rounding passed
straight through, and they learn. With `position = (w - low) / scale`, `code` its rounding, L steps from
the lowest code to the highest, and `scale = (high - low) / L`, a value on the grid moves by

    within the range:   dw + (code - position) * (d high - d low) / L
    clipped above:      d high
    clipped below:      d low

where `d high = factor * d max(w)` and `d low = factor * d min(w)`: the clipping factor is a choice,
without a gradient, and weights that share an extreme share its gradient. A symmetric grid is the case
`high = -low = factor * max |w|`. int2's "Sc" rows have this gradient; where the paper sets
stop_gradient_scale, its minimum keeps a gradient, which shows on clipped values only (within the
range it cancels). Ours without a range gradient is straight-through: nothing for clipped values.

Cells are (rows, groups, size), grids.cells_of; the rounding of scales to what a file stores counts as
no change. A constant cell is straight-through.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from subtone.quantize import grids
from subtone.quantize.fake import straight_through
from subtone.quantize.ranges import Fit, fit_range, group_count
from subtone.quantize.rules import Settings


class Rounded(NamedTuple):
    """A weight's cells on their grid, without a gradient.

    `on_grid` are the values of `QTensor.dequantize()`, `is_inside` says which were not clipped.
    """

    on_grid: Tensor
    is_inside: Tensor
    fit: Fit


class _RangeGradient(torch.autograd.Function):
    """`on_grid` itself; its gradient goes to `cells` as the module's docstring says."""

    @staticmethod
    def forward(
        ctx: Any,
        cells: Tensor,
        on_grid: Tensor,
        is_inside: Tensor,
        fit: Fit,
        num_steps: int,
        is_symmetric: bool,
    ) -> Tensor:
        ctx.save_for_backward(cells, on_grid, is_inside, fit.grid.scale, fit.low, fit.high, fit.factor)
        ctx.num_steps, ctx.is_symmetric = num_steps, is_symmetric
        return on_grid.view_as(on_grid)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        cells, on_grid, is_inside, scale, low, high, factor = ctx.saved_tensors  # type: ignore[attr-defined]
        span = scale * ctx.num_steps  # type: ignore[attr-defined]
        # Masks by `where`, and signs as floats: a product of a float and a bool takes seven times as long.
        found = torch.where(is_inside, gradient, 0.0)
        clipped = gradient - found
        moved = on_grid - cells  # the step times (code - position)
        within = (found * moved).sum(-1) / grids.divisor_of(span)
        both, difference = clipped.sum(-1), clipped.mul_(moved.sign_()).sum(-1)
        # A value clipped above moved down.
        for_high = factor * (within + (both - difference) / 2)
        for_low = factor * ((both + difference) / 2 - within)
        if ctx.is_symmetric:  # type: ignore[attr-defined]
            is_end = cells.abs() == high.unsqueeze(-1)
            return (found.add_(_shared(for_high - for_low, is_end).mul_(cells.sign())), *[None] * 5)
        for total, end in ((for_high, high), (for_low, low)):
            found.add_(_shared(total, cells == end.unsqueeze(-1)))
        return found, *[None] * 5


def _shared(total: Tensor, is_end: Tensor) -> Tensor:
    """`total` of each cell in equal parts where `is_end`, else 0."""
    return torch.where(is_end, (total / is_end.sum(-1)).unsqueeze(-1), 0.0)


def cells_of_weight(weight: Tensor, settings: Settings, *, name: str = "the weight") -> Tensor:
    """`weight` (its own torch shape) in float32 as the cells that share a scale: (rows, groups, size)."""
    groups = group_count(tuple(weight.shape), settings, name=name)
    flat = grids.flatten_weight(weight.to(torch.float32))
    return grids.cells_of(flat, granularity=settings.granularity, groups=groups)


def round_weight(weight: Tensor, settings: Settings, *, name: str = "the weight") -> Rounded:
    """`weight` rounded to the uniform grid that `settings` fit to it as it is now; no gradient."""
    assert settings.bits is not None
    with torch.no_grad():
        flat = grids.flatten_weight(weight.to(torch.float32))
        groups = group_count(tuple(weight.shape), settings, name=name)
        cells = grids.cells_of(flat, granularity=settings.granularity, groups=groups)
        fit = fit_range(flat, settings, group_count=groups)
        scale, zero_point = (part.unsqueeze(-1) for part in fit.grid)
        positions = grids.positions_of(cells, grids.divisor_of(scale), zero_point)
        lowest = grids.lowest_code(settings.bits, is_symmetric=settings.is_symmetric)
        codes = positions.clamp(lowest, 2**settings.bits - 1)
        is_inside = positions == codes
        return Rounded(codes.sub_(zero_point).mul_(scale), is_inside, fit)


def with_gradient(weight: Tensor, rounded: Rounded, settings: Settings, *, scale_gradient: bool) -> Tensor:
    """What `rounded` says `weight` is on its grid, in its shape and type, with a gradient to `weight`.

    >>> weight = torch.tensor([[0.0, 1.0, 3.0]], requires_grad=True)
    >>> settings = Settings(bits=1, grid="asymmetric")
    >>> seen = with_gradient(weight, round_weight(weight, settings), settings, scale_gradient=True)
    >>> seen.tolist()
    [[0.0, 0.0, 3.0]]
    >>> seen[0, 1].backward()  # 1 lies a third up the range: it goes with both ends
    >>> weight.grad
    tensor([[ 0.3333,  1.0000, -0.3333]])
    """
    assert settings.bits is not None
    cells = cells_of_weight(weight, settings)
    if scale_gradient:
        lowest = grids.lowest_code(settings.bits, is_symmetric=settings.is_symmetric)
        seen: Tensor = _RangeGradient.apply(
            cells, *rounded, 2**settings.bits - 1 - lowest, settings.is_symmetric
        )  # type: ignore[no-untyped-call]
    else:
        seen = straight_through(cells, rounded.on_grid, rounded.is_inside)
    shape = tuple(weight.shape)
    return grids.unflatten_weight(seen.reshape(shape[0], -1), shape).to(weight.dtype)
