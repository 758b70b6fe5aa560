"""Which range of values the codes of a weight cover: one (low, high) or one magnitude per cell.

A cell is the set of weights that share a scale (grids.cells_of): (rows, groups, size), and every
function here works along its last axis. Clip search is that of the 2-bit Conformer (section 2.4,
Algorithm 1): shrink a cell's range by each candidate, keep the one whose error is least. OCTAV (Sakr
et al. 2022) clips where the squared errors of clipping and of rounding balance, by its own formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from subtone.qtensor import check_group_size
from subtone.quantize import grids
from subtone.quantize.grids import Grid
from subtone.quantize.rules import Settings

ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"mae": Tensor.abs_, "mse": Tensor.square_}
"""What clip search minimizes, summed over a cell; in place."""
OCTAV_STEPS = 10
SEARCHED_AT_ONCE = {"cpu": 2**16, "cuda": 2**26}
"""Weights times candidates that clip search holds at once: within a core's second cache on a CPU,
where a pass over more costs twice; few and large launches on a GPU."""


class Fit(NamedTuple):
    """A grid, and the range that it covers in each cell: from `factor * low` to `factor * high`.

    `low`, `high` and `factor` are (rows, groups); a symmetric range has `low = -high`.
    """

    grid: Grid
    low: Tensor
    high: Tensor
    factor: Tensor


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


def octav(magnitudes: Tensor, bits: int) -> Tensor:
    """The magnitude at which to clip each cell for the least squared error, by OCTAV's iteration.

        s <- sum |x| 1{|x| >= s} / (n_clipped + 4**-bits / 3 * n_within),  ten steps from the mean

    Sakr et al. 2022: `4**-bits / 3 * s**2` is the rounding error of `2**bits` levels on [-s, s]. A
    symmetric grid has one level less, so at 2 and 3 bits the result clips too little, and clip search
    finds less error. A step beyond the largest magnitude is taken back to it: what clips nothing
    would make the next step 0.

    Args:
        magnitudes: (rows, groups, size), not negative.

    >>> octav(torch.tensor([[[1.0, 1.0, 1.0, 8.0]]]), bits=4).item()
    7.968871593475342
    """
    values = magnitudes.double()  # so that the order of a sum does not show in the stored scale
    largest = values.amax(-1)
    clip = torch.minimum(values.mean(-1), largest)
    noise = 4.0**-bits / 3
    for _ in range(OCTAV_STEPS):
        is_clipped = values >= clip.unsqueeze(-1)
        num_clipped = is_clipped.sum(-1)
        total = torch.where(is_clipped, values, 0.0).sum(-1)
        clip = total / (num_clipped + noise * (values.shape[-1] - num_clipped))
        clip = torch.minimum(clip, largest)
    return clip.float()


def fit_grid(flat: Tensor, settings: Settings, *, group_count: int = 1) -> Grid:
    """The grid for a flattened weight (out, columns) float32, rounded as a file stores it.

    `settings.grid` is "symmetric" or "asymmetric". Returns tensors (1, 1), (out, 1) or
    (out, group_count); the zero_point of a symmetric grid is (1, 1). No gradient.
    """
    return fit_range(flat, settings, group_count=group_count).grid


def fit_range(flat: Tensor, settings: Settings, *, group_count: int = 1) -> Fit:
    """`fit_grid`, with the range of values behind it."""
    with torch.no_grad():
        cells = grids.cells_of(flat.detach(), granularity=settings.granularity, groups=group_count)
        if cells.numel() == 0:
            raise ValueError(f"a weight of shape {tuple(flat.shape)} has no values to quantize")
        low, high = _bounds(cells, settings)
        if not settings.is_symmetric:
            assert settings.bits is not None
            high = _as_told_apart(low, high, settings.bits)
        whole = torch.ones((1, 1, 1), device=cells.device)
        if settings.range != "clip_search":
            grid = _stored_grid(low, high, settings)
            return Fit(grid, low, high, whole[0].expand_as(high))
        factors = whole.new_tensor(clip_candidates(settings)).reshape(-1, 1, 1)
        candidates = _stored_grid(low * factors, high * factors, settings)
        # Of equal errors the first, which clips least; NaN where a scale exceeds float16.
        errors = torch.nan_to_num(_errors(cells, candidates, settings), nan=math.inf)
        best = errors.min(0, keepdim=True).indices
        grid = Grid(*(part[0] if len(part) == 1 else part.gather(0, best)[0] for part in candidates))
        return Fit(grid, low, high, factors.expand(-1, *high.shape).gather(0, best)[0])


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


def _bounds(cells: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value that the grid of each cell is to reach: (rows, groups) both."""
    bits, percent = settings.bits, settings.percentile
    assert bits is not None
    if settings.is_symmetric:
        if bits == 1:
            # The sum in double precision, so that its order does not show in the stored scale.
            high = cells.abs().double().mean(-1).float()
        else:
            high = octav(cells.abs(), bits) if settings.range == "octav" else kernel_range(cells, settings)
        return -high, high
    low, high = cells.amin(-1), cells.amax(-1)
    if settings.range == "percentile":
        assert percent is not None
        return -percentile(-cells, percent), percentile(cells, percent)
    if settings.range == "octav":
        middle = cells.double().mean(-1).float()
        clip = octav((cells - middle.unsqueeze(-1)).abs(), bits)
        return torch.maximum(low, middle - clip), torch.minimum(high, middle + clip)
    return low, high


def _as_told_apart(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """`high`, and `low` where the range between them is too narrow for what a file holds.

    That is where float16 would move `low` by more than the whole range is wide: values that all but
    agree, far from 0 beside their differences, have a zero_point that float16 cannot hold. They count
    as constant. Weights that begin at zero are such after Adam's first step. Asked once, of the
    unclipped range: a factor leaves the zero_point as it is.
    """
    scale, zero_point = grids.as_stored(grids.asymmetric_grid(low, high, bits))
    is_told_apart = (scale * -zero_point - low).abs() <= high - low  # False for NaN too
    return torch.where(is_told_apart | torch.isinf(scale), high, low)


def _stored_grid(low: Tensor, high: Tensor, settings: Settings) -> Grid:
    """The grid from `low` to `high` as a file holds it."""
    bits = settings.bits
    assert bits is not None
    if not settings.is_symmetric:
        return grids.as_stored(grids.asymmetric_grid(low, high, bits))
    return grids.as_stored(grids.one_bit_grid(high) if bits == 1 else grids.symmetric_grid(high, bits))


def _errors(cells: Tensor, candidates: Grid, settings: Settings) -> Tensor:
    """The summed error of each cell on each candidate grid, float64 (candidates, rows, groups).

    In blocks that stay in the cache, every operation in place: 17 to 30 ns a weight for 11 candidates on
    one core, where whole tensors take 60 to 110. Prefix sums over sorted weights were rejected: the sort
    alone takes 26 to 39.
    """
    assert settings.bits is not None
    measure = ERRORS[settings.error or "mae"]
    lowest, highest = (
        grids.lowest_code(settings.bits, is_symmetric=settings.is_symmetric),
        2**settings.bits - 1,
    )
    scale, zero_point = (part.unsqueeze(-1) for part in candidates)
    divisor = grids.divisor_of(scale)
    count, (rows, groups, size) = len(scale), cells.shape
    at_once = SEARCHED_AT_ONCE["cpu" if cells.device.type == "cpu" else "cuda"]
    candidate_step = min(count, max(1, at_once // (groups * size)))
    row_step = max(1, at_once // (candidate_step * groups * size))
    errors = torch.empty((count, rows, groups), dtype=torch.float64, device=cells.device)
    for row in range(0, rows, row_step):
        block = cells[row : row + row_step]
        for first in range(0, count, candidate_step):
            tried = slice(first, first + candidate_step)
            where = (tried, slice(row, row + row_step))
            zero = zero_point if zero_point.shape != scale.shape else zero_point[where]
            codes = grids.positions_of(block, divisor[where], zero).clamp_(lowest, highest)
            error = codes.sub_(zero).mul_(scale[where]).sub_(block)
            errors[where] = measure(error).sum(-1, dtype=torch.float64)
    return errors
