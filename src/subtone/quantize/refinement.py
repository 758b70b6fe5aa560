"""Compensated rounding carried on: codes, scales and codebook in turn, each the best for the others.

Compensation (compensation.py) rounds each column once, on a grid fitted to the weights alone. What it makes
small, `d H d^T` with `d = w - q` of each row and `H = E[x x^T]`, can be made smaller still:

* codes: one column after the other goes to the level that is best while all others stay where they are (the
  coordinate descent of QuantEase, Behdin et al. 2023, over all rows at once);
* scales: `q` is linear in them, so the best ones for the codes are those of least squares;
* the codebook of a kernel likewise, and its levels then snapped to k/128.

None of the three ever makes the error larger: a scale or a codebook that would, once rounded as it is stored,
is left as it was. What is found is a local minimum.

Tried and not taken: columns by descending `H_ii`, which got more words wrong in one setting and fewer in another
at no smaller divergence; means taken out of `H` and put back by bias correction, which got more wrong
(docs/lab-log.md).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from subtone import numerics
from subtone.qtensor import FLOAT16_MAX, QTensor, as_stored, flatten_weight, spread_columns
from subtone.quantize.compensation import COLUMNS_AT_ONCE, compensated, damped, nearest_in_column

ROUNDS = 2
"""Of scales, codebook and codes."""
PASSES = 2
"""Over all columns, each time that codes are looked for."""


def refined(
    stored: QTensor, weight: NDArray[np.float32], moments: NDArray[np.float32], *, is_symmetric: bool
) -> QTensor:
    """`stored`, the `weight` (its own torch shape) to nearest, with the codes, scales and codebook of least error.

    Args:
        moments: (groups, columns, columns), E[x x^T] as `compensated` takes it.
        is_symmetric: whether code 0 stays unused, as in `QTensor.on_grid`.

    The zero points stay those of `stored`, and so does the number of levels.
    """
    flat, matrix = flatten_weight(weight).astype(np.float64), damped(moments)
    found = compensated(stored, weight, moments, is_symmetric=is_symmetric)
    found = with_codes(found, flat, matrix, is_symmetric=is_symmetric)
    for _ in range(ROUNDS):
        found = with_scales(with_codebook(found, flat, matrix), flat, matrix)
        found = with_codes(found, flat, matrix, is_symmetric=is_symmetric)
    return found


def errors_of(stored: QTensor, flat: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """`d H d^T` of each row: (rows,).

    Args:
        flat: (rows, columns), the weight as `flatten_weight` lays it out.
        matrix: (groups, columns, columns), H of each group of consecutive rows.
    """
    error = _values(stored) - flat
    return (_times(error, matrix) * error).sum(1)


def with_codes(
    stored: QTensor, flat: NDArray[np.float64], matrix: NDArray[np.float64], *, is_symmetric: bool
) -> QTensor:
    """`stored` with each column's codes the best for those of all others at that moment, PASSES times."""
    (rows, columns), groups = flat.shape, len(matrix)
    grouped = (groups, rows // groups, columns)
    codes, values = stored.codes.copy(), _values(stored).reshape(grouped)
    for _ in range(PASSES):
        slope = (values - flat.reshape(grouped)) @ matrix  # half the gradient of the error
        for start in range(0, columns, COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, columns)
            moved = np.empty((*grouped[:2], stop - start))
            for column in range(start, stop):
                own = values[:, :, column]
                wanted = own - slope[:, :, column] / matrix[:, column, column, None]
                code, value = nearest_in_column(
                    stored, wanted.reshape(rows), column, is_symmetric=is_symmetric
                )
                change = value.reshape(own.shape) - own
                slope[:, :, column:stop] += change[:, :, None] * matrix[:, None, column, column:stop]
                moved[:, :, column - start] = change
                codes[:, column], values[:, :, column] = code, value.reshape(own.shape)
            slope[:, :, stop:] += moved @ matrix[:, start:stop, stop:]
    return dataclasses.replace(stored, codes=codes)


def with_scales(stored: QTensor, flat: NDArray[np.float64], matrix: NDArray[np.float64]) -> QTensor:
    """`stored` with the scales of least error for its codes, of each row together; none of them below 0.

    Of levels l in groups g, `A_gh = l_g H_gh l_h^T` and `b_g = l_g (H w)_g`: the scales solve `A s = b`. A
    group whose levels are all 0 keeps its scale.
    """
    rows, columns = flat.shape
    num_groups = stored.scale.shape[1]
    parts = _levels(stored).reshape(rows, num_groups, columns // num_groups)
    left = np.empty((rows, num_groups, num_groups))
    for group in range(num_groups):
        alone = np.zeros_like(parts)
        alone[:, group] = parts[:, group]
        through = _times(alone.reshape(rows, columns), matrix).reshape(parts.shape)
        left[:, group] = (through * parts).sum(2)
    right = (parts * _times(flat, matrix).reshape(parts.shape)).sum(2)
    if len(stored.scale) == 1:
        left, right = left.sum(0, keepdims=True), right.sum(0, keepdims=True)
    given = stored.scale.astype(np.float64)
    left, right = _solvable(left, right, given)
    solved = np.linalg.solve(left, right[:, :, None])[:, :, 0]
    is_storable = (solved > 0) & (solved <= FLOAT16_MAX)
    scale = as_stored(np.where(is_storable, solved, given).astype(np.float32))
    found = dataclasses.replace(stored, scale=scale)
    before, after = (errors_of(one, flat, matrix) for one in (stored, found))
    if len(stored.scale) == 1:
        before, after = before.sum(keepdims=True), after.sum(keepdims=True)
    return dataclasses.replace(stored, scale=np.where((after < before)[:, None], scale, stored.scale))


def with_codebook(stored: QTensor, flat: NDArray[np.float64], matrix: NDArray[np.float64]) -> QTensor:
    """`stored` with the levels of least error for its codes and scales, snapped to k/128.

    `stored` itself where it has no codebook, and where levels would meet or, once snapped, lose more. A level
    that no code has stays where it is.
    """
    if stored.codebook is None:
        return stored
    scale = np.broadcast_to(stored.scale.astype(np.float64), flat.shape)
    target = _times(flat, matrix)
    left, right = np.zeros((1, stored.num_levels, stored.num_levels)), np.zeros((1, stored.num_levels))
    for level in range(stored.num_levels):
        alone = np.where(stored.codes == level, scale, 0.0)
        through = (_times(alone, matrix) * scale).ravel()
        left[0, level] = np.bincount(stored.codes.ravel(), through, minlength=stored.num_levels)
        right[0, level] = (alone * target).sum()
    given = stored.codebook[: stored.num_levels].astype(np.float64)
    left, right = _solvable(left, right, given[None])
    solved = np.linalg.solve(left, right[:, :, None])[0, :, 0]
    levels = numerics.snap_to_int8((solved / 128).astype(np.float32))
    if np.any(levels[1:] <= levels[:-1]):
        return stored
    found = dataclasses.replace(stored, codebook=numerics.pad_codebook(levels, stored.bits))
    is_better = errors_of(found, flat, matrix).sum() < errors_of(stored, flat, matrix).sum()
    return found if is_better else stored


def _solvable(
    left: NDArray[np.float64], right: NDArray[np.float64], given: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Equations (many, n, n) and (many, n) in which an unknown that nothing depends on is the one `given`."""
    is_free = np.diagonal(left, axis1=1, axis2=2) == 0
    identity = np.eye(left.shape[1])
    return left + is_free[:, :, None] * identity, np.where(is_free, given, right)


def _times(values: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row of `values` (rows, columns) times the matrix of its group."""
    grouped = values.reshape(len(matrix), -1, values.shape[1])
    return (grouped @ matrix).reshape(values.shape)


def _values(stored: QTensor) -> NDArray[np.float64]:
    """The decoded weight, flattened."""
    return flatten_weight(stored.dequantize()).astype(np.float64)


def _levels(stored: QTensor) -> NDArray[np.float64]:
    """What multiplies the scale: (rows, columns)."""
    if stored.codebook is not None:
        return stored.codebook[stored.codes].astype(np.float64)
    zero_point = spread_columns(stored.zero_point.astype(np.float32), stored.num_columns)
    return (stored.codes.astype(np.float32) - zero_point).astype(np.float64)
