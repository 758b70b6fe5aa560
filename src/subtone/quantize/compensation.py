"""Rounding that compensates its own error: what one column loses, the columns still to come take up.

GPTQ (Frantar et al. 2022), after optimal brain quantization: of a product `y = W x`, rounding changes
the output by `(W - Q) x`, whose mean square a row is `d H d^T` with `d = w - q` and `H = E[x x^T]`.
Where inputs are correlated, the columns not yet rounded can undo some of that. Columns are rounded in
their order on the grid that was fitted to the float weights; each column's error times `U_ij / U_ii`,
U the upper Cholesky factor of `H^-1`, is taken from column j: the exact minimum over the columns that
remain, solved from the float weights at each step (tests/reference/compensation.py).

Not taken from the paper's code: columns by descending `H_ii`, whose groups would no longer lie together.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from subtone import numerics
from subtone.qtensor import QTensor, flatten_weight

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: the paper's 1 %. Channels that are always 0 need it."""
COLUMNS_AT_ONCE = 64
"""Columns whose errors reach the columns behind them by one matrix product (the paper's lazy batches)."""


def compensated(
    stored: QTensor, weight: NDArray[np.float32], moments: NDArray[np.float32], *, is_symmetric: bool
) -> QTensor:
    """`stored`, the `weight` (its own torch shape) on its grid or codebook, with codes that compensate.

    Args:
        moments: (groups, columns, columns), E[x x^T] of what each group of consecutive rows
            multiplies, in the order of `flatten_weight`: one group for a product over channels, one
            a channel for a depthwise kernel.
        is_symmetric: whether code 0 stays unused, as in `QTensor.on_grid`.

    Inputs that are not correlated leave nothing to compensate: the codes are then those of `stored`.
    """
    (rows, columns), groups = stored.codes.shape, len(moments)
    assert moments.shape == (groups, columns, columns)
    assert rows % groups == 0
    grouped = (groups, rows // groups, columns)
    factor = _inverse_factor(moments)
    current = flatten_weight(weight).astype(np.float64).reshape(grouped)
    codes = np.empty(grouped, np.uint8)
    for start in range(0, columns, COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, columns)
        errors = np.empty((*grouped[:2], stop - start))
        for column in range(start, stop):
            wanted = current[:, :, column]
            code, value = nearest_in_column(stored, wanted.reshape(rows), column, is_symmetric=is_symmetric)
            codes[:, :, column] = code.reshape(wanted.shape)
            error = (wanted - value.reshape(wanted.shape)) / factor[:, None, column, column]
            current[:, :, column + 1 : stop] -= error[:, :, None] * factor[:, None, column, column + 1 : stop]
            errors[:, :, column - start] = error
        current[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return dataclasses.replace(stored, codes=codes.reshape(rows, columns))


def damped(moments: NDArray[np.float32]) -> NDArray[np.float64]:
    """`moments` over the mean of their diagonal, and DAMPING more on it; the identity where all is 0."""
    matrix = moments.astype(np.float64)
    identity = np.eye(matrix.shape[-1])
    mean = np.trace(matrix, axis1=1, axis2=2)[:, None, None] / matrix.shape[-1]
    return np.where(mean > 0, matrix / np.where(mean > 0, mean, 1.0) + DAMPING * identity, identity)


def _inverse_factor(moments: NDArray[np.float32]) -> NDArray[np.float64]:
    """U, upper triangular with `U^T U = H^-1`, of each group."""
    return np.linalg.cholesky(np.linalg.inv(damped(moments))).swapaxes(1, 2)


def nearest_in_column(
    stored: QTensor, wanted: NDArray[np.float64], column: int, *, is_symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The codes nearest to `wanted` (rows,) in one column of `stored`, and what they mean."""
    narrowed = wanted.astype(np.float32)
    scale, zero_point = (_of_column(part, column, stored) for part in (stored.scale, stored.zero_point))
    if stored.codebook is None:
        grid = numerics.Grid(scale, zero_point)
        codes = numerics.codes_on_grid(narrowed, grid, stored.bits, is_symmetric=is_symmetric)
        return codes, scale * (codes.astype(np.float32) - zero_point)
    levels = stored.codebook[: stored.num_levels]
    codes = numerics.codes_on_codebook(narrowed, scale, levels)
    return codes, scale * levels[codes].astype(np.float32)


def _of_column(part: NDArray, column: int, stored: QTensor) -> NDArray[np.float32]:
    """A scale or zero_point as it holds for one column: (rows,) float32."""
    own = part[:, column * part.shape[1] // stored.num_columns]
    return np.broadcast_to(own.astype(np.float32), stored.num_rows)
