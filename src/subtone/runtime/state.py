"""What a stream carries from one chunk to the next."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, eq=False)
class StreamState:
    """How far every value of a program has come, and the rows of it that are still needed.

    Never changed: a step makes a new one. So several hypotheses may go on from one state, and a stream
    can be taken up again from any point. The same for every engine.

    * `ends`: int64, rows of every value so far, in the order of the program's planner.
    * `rows`: float32, or int32 of an integer-only program, flat: the kept rows of every value, one value after the other.
    * `is_ended`: whether the step that made it was the last; none goes on from it.
    """

    ends: NDArray[np.int64]
    rows: NDArray[Any]
    is_ended: bool = False

    @property
    def num_bytes(self) -> int:
        return self.ends.nbytes + self.rows.nbytes
