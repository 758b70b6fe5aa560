"""Rows of a value that a run time holds: not all there ever were, but those that something still needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[Any]
"""(rows, width): float32, or int32 in an integer-only program."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows `base` to `end - 1` of a value, counted from the start of the utterance: `held` (end - base, width)."""

    held: Matrix
    base: int = 0

    @property
    def end(self) -> int:
        return self.base + len(self.held)

    def __getitem__(self, span: slice) -> Matrix:
        """Rows `span.start` to `span.stop - 1`, zeros for those in front of the first and behind the last."""
        start, stop = span.start, span.stop
        first, last = min(max(start, 0), self.end), max(min(stop, self.end), 0)
        assert first >= self.base or first >= last, f"row {first} is gone; rows from {self.base} are held"
        if start == first and stop == last:
            return self.held[first - self.base : last - self.base]
        rows = np.zeros((max(0, stop - start), self.held.shape[1]), self.held.dtype)
        if first < last:
            rows[first - start : last - start] = self.held[first - self.base : last - self.base]
        return rows
