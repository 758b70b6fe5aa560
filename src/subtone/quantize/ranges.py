"""Which range of values the codes of a weight cover: one (low, high) or one magnitude per cell.

A cell is the set of weights that share a scale (grids.cells_of): (rows, groups, size), and every
function here works along its last axis. Clip search is that of the 2-bit Conformer (section 2.4,
Algorithm 1): shrink a cell's range by each candidate, keep the one whose error is least.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from subtone.qtensor import check_group_size
from subtone.quantize import grids
from subtone.quantize.grids import Grid
from subtone.quantize.rules import Settings

ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"mae": torch.abs, "mse": torch.square}
"""What clip search minimizes, summed over a cell."""


def absmax(cells: Tensor) -> Tensor:
    """The largest magnitude of each cell: (rows, groups)."""
    return cells.abs().amax(-1)


def percentile(cells: Tensor, percent: float) -> Tensor:
    """The value of each cell with at least `percent` of all values at or below it.

    The nearest rank, `ceil(percent / 100 * size)`, not an interpolation: NumPy's "inverted_cdf".

    >>> percentile(torch.arange(1.0, 11.0).reshape(1, 1, 10), 90.0).item()
    9.0
    """
    size = cells.shape[-1]
    rank = max(1, math.ceil(percent * size / 100))
    return cells.kthvalue(rank, dim=-1).values


def clip_candidates(settings: Settings) -> list[float]:
    """Factors that clip search tries, descending; 1 (no clipping) is always the first.

    >>> clip_candidates(Settings(bits=4, range="clip_search", clip_low=0.8, clip_step=0.05))
    [1.0, 0.95, 0.9, 0.85, 0.8]
    """
    low, high, step = settings.clip_low, settings.clip_high, settings.clip_step
    assert low is not None
    assert high is not None
    assert step is not None
    count = math.floor((high - low) / step + 1e-6) + 1
    searched = [round(high - index * step, 9) for index in range(count)]
    return searched if searched[0] == 1.0 else [1.0, *searched]


def fit_grid(flat: Tensor, settings: Settings, *, group_count: int = 1) -> Grid:
    """The grid for a flattened weight (out, columns) float32, rounded as a file stores it.

    `settings.grid` is "symmetric" or "asymmetric". Returns tensors (1, 1), (out, 1) or
    (out, group_count); the zero_point of a symmetric grid is (1, 1). No gradient.
    """
    with torch.no_grad():
        cells = grids.cells_of(flat.detach(), granularity=settings.granularity, groups=group_count)
        if cells.numel() == 0:
            raise ValueError(f"a weight of shape {tuple(flat.shape)} has no values to quantize")
        if settings.is_symmetric:
            return _fit_symmetric(cells, settings)
        return _fit_asymmetric(cells, settings)


def group_count(shape: tuple[int, ...], settings: Settings, *, name: str = "the weight") -> int:
    """How many groups lie in a row of a weight of `shape`; 1 without groups."""
    if settings.group_size is None:
        return 1
    return check_group_size(shape, settings.group_size, name=name)


def kernel_range(cells: Tensor, settings: Settings) -> Tensor:
    """The magnitude that a codebook's level 128 stands for, per cell."""
    if settings.range == "percentile":
        assert settings.percentile is not None
        return percentile(cells.abs(), settings.percentile)
    return absmax(cells)


def _fit_symmetric(cells: Tensor, settings: Settings) -> Grid:
    bits = settings.bits
    assert bits is not None
    if bits == 1:
        # The sum in double precision, so that its order does not show in the stored scale.
        return grids.as_stored(grids.one_bit_grid(cells.abs().double().mean(-1).float()))
    magnitude = kernel_range(cells, settings)
    if settings.range == "clip_search":
        return _search(cells, settings, lambda factor: grids.symmetric_grid(magnitude * factor, bits))
    return grids.as_stored(grids.symmetric_grid(magnitude, bits))


def _fit_asymmetric(cells: Tensor, settings: Settings) -> Grid:
    bits = settings.bits
    assert bits is not None
    if settings.range == "percentile":
        assert settings.percentile is not None
        high, low = percentile(cells, settings.percentile), -percentile(-cells, settings.percentile)
    else:
        low, high = cells.amin(-1), cells.amax(-1)
    if settings.range == "clip_search":
        return _search(
            cells, settings, lambda factor: grids.asymmetric_grid(low * factor, high * factor, bits)
        )
    return grids.as_stored(grids.asymmetric_grid(low, high, bits))


def _search(cells: Tensor, settings: Settings, grid_at: Callable[[float], Grid]) -> Grid:
    """The candidate of least error per cell, measured on the grid as stored; a tie clips less."""
    first, *others = clip_candidates(settings)
    best = grids.as_stored(grid_at(first))
    least = _error_of(cells, best, settings)
    for factor in others:
        candidate = grids.as_stored(grid_at(factor))
        error = _error_of(cells, candidate, settings)
        is_better = error < least
        least = torch.where(is_better, error, least)
        best = Grid(
            *(
                torch.where(is_better, new, old) if new.shape == error.shape else old
                for new, old in zip(candidate, best, strict=True)
            )
        )
    return best


def _error_of(cells: Tensor, grid: Grid, settings: Settings) -> Tensor:
    spread = Grid(*(part.unsqueeze(-1) for part in grid))
    assert settings.bits is not None
    codes = grids.codes_on_grid(cells, spread, settings.bits, is_symmetric=settings.is_symmetric)
    difference = cells - grids.values_on_grid(codes, spread)
    return ERRORS[settings.error or "mae"](difference).sum(-1, dtype=torch.float64)
