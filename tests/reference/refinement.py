"""Codes, scales and codebook of least error, from their definitions: every code tried, every fit a lstsq."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def descended_row(
    weight: np.ndarray,
    moment: np.ndarray,
    codes: list[int],
    value_of: Callable[[int, int], float],
    tried: range,
) -> list[int]:
    """One pass over the columns of one row, each to that of the codes `tried` with the least `d H d^T`.

    `value_of(code, column)` is what a code means there; all other columns stay where they are.
    """
    codes = list(codes)
    added = np.array([value_of(code, column) for column, code in enumerate(codes)]) - weight
    for column in range(len(weight)):
        errors = []
        for code in tried:
            added[column] = value_of(code, column) - weight[column]
            errors.append(added @ moment @ added)
        codes[column] = tried[int(np.argmin(errors))]
        added[column] = value_of(codes[column], column) - weight[column]
    return codes


def fitted(weight: np.ndarray, moment: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """The factors of `parts` (rows, columns) whose sum comes nearest to `weight`, as `d H d^T` over all rows has it.

    With H = C C^T each row's error is the squared length of `d C`: an ordinary least-squares problem.
    """
    cause = np.linalg.cholesky(moment)
    design = np.stack([(part @ cause).ravel() for part in parts], axis=1)
    return np.linalg.lstsq(design, (weight @ cause).ravel(), rcond=None)[0]
