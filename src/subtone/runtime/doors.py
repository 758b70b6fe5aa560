"""Features in and logits out of an integer-only program: the two places where numbers change their kind.

What a front end computes are floats; what a search compares may be. Between the two there are none
(docs/numerics.md, section 7; `subtone inspect --verify-integer` proves it of a file).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtone.numerics import round_half_up
from subtone.program import Door, Program
from subtone.runtime.engine import Engine
from subtone.runtime.rows import Matrix
from subtone.runtime.state import StreamState


def levels_at(door: Door, features: NDArray[np.float32]) -> NDArray[np.int32]:
    """`clip(floor(x * inverse + 0.5), low, high)` with `inverse = 1 / scale` rounded to float32 once.

    >>> levels_at(Door(0.5, -3, 3), np.array([[0.2, 0.3, -9.0]], np.float32)).tolist()
    [[0, 1, -3]]
    """
    inverse = np.float32(1 / door.scale)
    with np.errstate(over="ignore"):  # what is beyond float32 is beyond the levels too
        position = round_half_up(np.asarray(features, np.float32) * inverse)
    return np.clip(position, door.low, door.high).astype(np.int32)


class DoorEngine:
    """An integer-only program behind its doors: takes features as floats, gives logits in real units.

    Logits are float64, `output_scale` times the level: of two levels the higher stays the higher, and equal ones
    stay equal, so that a greedy search decides as it would on the levels themselves.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.program: Program = engine.program

    def run(self, *inputs: Matrix) -> Matrix:
        return self._opened(self.engine.run(*self._closed(inputs)))

    def values(self, *inputs: Matrix) -> dict[str, Matrix]:
        """Every value in levels."""
        return self.engine.values(*self._closed(inputs))

    def start(self) -> StreamState:
        return self.engine.start()

    def step(self, state: StreamState, *inputs: Matrix, is_last: bool = False) -> tuple[Matrix, StreamState]:
        levels, after = self.engine.step(state, *self._closed(inputs), is_last=is_last)
        return self._opened(levels), after

    def _closed(self, inputs: tuple[Matrix, ...]) -> list[NDArray[np.int32]]:
        return [levels_at(door, features) for door, features in zip(self.program.doors, inputs, strict=True)]

    def _opened(self, levels: Matrix) -> Matrix:
        return levels * np.float64(self.program.output_scale)


def behind_doors(engine: Engine) -> Engine:
    """`engine`, as its program's features and logits come: in floats, whatever lies between."""
    return DoorEngine(engine) if engine.program.is_integer else engine
