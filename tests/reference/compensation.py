"""Rounding that compensates, from its definition: one row, one column, one least-squares problem each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def compensated_row(
    weight: np.ndarray, moment: np.ndarray, nearest: Callable[[float, int], tuple[int, float]]
) -> list[int]:
    """The codes of one row of weights (columns,) whose inputs have the second moment `moment`.

    Column after column: the columns not yet rounded are those that make `d H d^T` least, where `d` is
    what was added to the float weights and holds still in the columns already rounded; then the next one
    is rounded. `nearest(value, column)` gives a code and what it means.
    """
    columns = len(weight)
    added = np.zeros(columns)
    codes = []
    for column in range(columns):
        done, free = slice(0, column), slice(column, columns)
        added[free] = np.linalg.solve(moment[free, free], -moment[free, done] @ added[done])
        code, value = nearest(weight[column] + added[column], column)
        added[column] = value - weight[column]
        codes.append(code)
    return codes


def damped(moment: np.ndarray, share: float) -> np.ndarray:
    """`moment` with `share` of its mean diagonal on its diagonal."""
    return moment + share * np.mean(np.diag(moment)) * np.eye(len(moment))
