"""Lloyd-Max: the centroids of least squared error for a set of weights, and from them a codebook.

S8BQAT, section 2.2 (Lloyd 1982, Max 1960): a cell is bounded by the midpoints to the neighbouring
centroids, a centroid is the mean of its cell; repeat. In one dimension, with the values sorted once
and prefix sums kept, one iteration costs a binary search per centroid whatever the number of
weights, so 10^7 weights take the time of the sort.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from subtone import numerics

MAX_ITERATIONS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class LloydMax:
    """`centroids` float64, strictly ascending; `errors`: the mean squared error before each iteration
    and after the last, which never rises."""

    centroids: NDArray[np.float64]
    errors: tuple[float, ...]


def lloyd_max(values: NDArray, num_centroids: int, *, max_iterations: int = MAX_ITERATIONS) -> LloydMax:
    """At most `num_centroids` centroids for `values` (any shape, finite).

    Starts at the quantiles (i + 0.5) / num_centroids, so every centroid starts among the weights;
    stops when no weight changes its cell. No more centroids than distinct values; a cell that runs
    empty keeps its centroid, and is dropped at the end. A value on a midpoint belongs to the upper
    cell, as in `numerics.codes_on_codebook`. A local optimum: the result depends on the start.

    >>> lloyd_max(np.array([0.0, 0.1, 0.9, 1.0]), 2).centroids.round(3).tolist()
    [0.05, 0.95]
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=None)
    if ordered.size == 0:
        raise ValueError("Lloyd-Max of no values; give at least one")
    if num_centroids < 1:
        raise ValueError(f"num_centroids={num_centroids} must be at least 1")
    if not (np.isfinite(ordered[0]) and np.isfinite(ordered[-1])):
        raise ValueError("Lloyd-Max of values that are not finite; repair the weights")
    centroids = _initial(ordered, num_centroids)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    squares = float(np.dot(ordered, ordered))
    borders = _borders(ordered, centroids)
    errors = [_error(sums, squares, borders, centroids)]
    for _ in range(max_iterations):
        centroids = _means(ordered, sums, borders, centroids)
        moved = _borders(ordered, centroids)
        errors.append(_error(sums, squares, moved, centroids))
        if np.array_equal(moved, borders):
            break
        borders = moved
    is_used = np.diff(_borders(ordered, centroids)) > 0
    return LloydMax(centroids=centroids[is_used], errors=tuple(errors))


def codebook_levels(normalized: NDArray, bits: int) -> NDArray[np.int8]:
    """The levels k of k/128, ascending and distinct, for weights divided by their range.

    The Lloyd-Max centroids of `normalized` (on [-1, 1]), each snapped to k/128. Centroids that fall
    onto the same k become one level, so there may be fewer than `2**bits`.

    >>> codebook_levels(np.array([-1.0, -0.99, 0.0, 0.5]), bits=2).tolist()
    [-128, -127, 0, 64]
    """
    centroids = lloyd_max(normalized, 2 ** numerics.check_bits(bits)).centroids
    return np.unique(numerics.snap_to_int8(centroids.astype(np.float32)))


def _initial(ordered: NDArray[np.float64], num_centroids: int) -> NDArray[np.float64]:
    """The distinct values, if they are few enough; else quantiles, and distinct values besides."""
    is_first = np.concatenate(([True], ordered[1:] > ordered[:-1]))
    distinct = ordered[is_first]
    if distinct.size <= num_centroids:
        return distinct
    ranks = ((np.arange(num_centroids) + 0.5) / num_centroids * ordered.size).astype(np.int64)
    chosen = np.unique(ordered[ranks])
    if chosen.size < num_centroids:
        # Many equal weights (a pruned kernel) share quantiles; spread the rest over what is left.
        others = np.setdiff1d(distinct, chosen, assume_unique=True)
        missing = num_centroids - chosen.size
        places = ((np.arange(missing) + 0.5) / missing * others.size).astype(np.int64)
        chosen = np.sort(np.concatenate((chosen, others[places])))
    return chosen


def _borders(ordered: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where each cell starts in `ordered`, and its end: (centroids + 1,)."""
    midpoints = (centroids[1:] + centroids[:-1]) / 2
    inner = np.searchsorted(ordered, midpoints, side="left")
    return np.concatenate(([0], inner, [ordered.size]))


def _means(
    ordered: NDArray[np.float64],
    sums: NDArray[np.float64],
    borders: NDArray[np.int64],
    centroids: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The mean of each cell; an empty one keeps its centroid.

    A difference of two prefix sums rounds more than the cell's own sum would, so a mean is held
    between its cell's ends: centroids then ascend whatever the rounding.
    """
    counts = np.diff(borders)
    means = np.diff(sums[borders]) / np.maximum(counts, 1)
    last = ordered.size - 1
    lowest, highest = ordered[np.minimum(borders[:-1], last)], ordered[np.maximum(borders[1:] - 1, 0)]
    return np.where(counts > 0, np.minimum(np.maximum(means, lowest), highest), centroids)


def _error(
    sums: NDArray[np.float64],
    squares: float,
    borders: NDArray[np.int64],
    centroids: NDArray[np.float64],
) -> float:
    """Mean of (value - centroid)^2, from sum x^2 - 2 c sum x + n c^2 of each cell."""
    counts, totals = np.diff(borders), np.diff(sums[borders])
    total = squares + float(np.sum(centroids * (counts * centroids - 2 * totals)))
    return max(total, 0.0) / int(borders[-1])
