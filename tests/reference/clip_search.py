"""Clip search as Algorithm 1 of the 2-bit Conformer says it: one cell, one candidate at a time."""

from __future__ import annotations

import numpy as np

from subtone import numerics


def clip_search(
    cell: np.ndarray, candidates: list[float], bits: int, *, is_symmetric: bool, is_squared: bool
) -> numerics.Grid:
    """The grid of least summed error for one cell (size,), float32 scales."""
    best, least = None, np.inf
    for factor in map(np.float32, candidates):
        if is_symmetric:
            grid = numerics.symmetric_grid(np.abs(cell).max(keepdims=True) * factor, bits)
        else:
            grid = numerics.asymmetric_grid(
                cell.min(keepdims=True) * factor, cell.max(keepdims=True) * factor, bits
            )
        codes = numerics.codes_on_grid(cell, grid, bits, is_symmetric=is_symmetric)
        difference = cell - grid.scale * (codes.astype(np.float32) - grid.zero_point)
        error = np.sum(difference**2 if is_squared else np.abs(difference), dtype=np.float64)
        if error < least:
            best, least = grid, error
    assert best is not None
    return best
