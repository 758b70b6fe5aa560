"""Lloyd-Max as the papers say it: nearest centroid for every value, then the mean of every cell."""

from __future__ import annotations


def nearest(value: float, centroids: list[float]) -> int:
    """Index of the nearest centroid; of two equally near, the upper."""
    best = 0
    for index, centroid in enumerate(centroids):
        if abs(value - centroid) <= abs(value - centroids[best]):
            best = index
    return best


def mean_squared_error(values: list[float], centroids: list[float]) -> float:
    return sum((value - centroids[nearest(value, centroids)]) ** 2 for value in values) / len(values)


def lloyd_max(values: list[float], centroids: list[float]) -> list[float]:
    """From `centroids`, until no value changes its cell. A cell without values keeps its centroid."""
    centroids = list(centroids)
    cells: list[int] = []
    while True:
        moved = [nearest(value, centroids) for value in values]
        if moved == cells:
            return centroids
        cells = moved
        for index in range(len(centroids)):
            members = [value for value, cell in zip(values, cells, strict=True) if cell == index]
            if members:
                centroids[index] = sum(members) / len(members)
