"""Packed transducers as a search asks them: predictor and joiner, and the second pass of a cascade."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtone.runtime.engine import Engine
from subtone.runtime.state import StreamState
from subtone.speech.search import Hypothesis, Search

Vector = NDArray[np.float32]


class PackedTransducer:
    """`TransducerModel` of two engines: "predictor" (labels (U, 1) to rows (U, J)) and "joiner"."""

    def __init__(self, predictor: Engine, joiner: Engine) -> None:
        self._predictor, self._joiner = predictor, joiner
        self.num_labels = joiner.program.output_width
        self.blank_index = self.num_labels - 1

    def start(self) -> StreamState:
        return self._predictor.start()

    def predict(self, label: int, state: StreamState) -> tuple[Vector, StreamState]:
        if not 0 <= label < self.num_labels:
            raise ValueError(f"label={label} is outside the vocabulary; use 0 to {self.num_labels - 1}")
        rows, after = self._predictor.step(state, np.array([[label]], np.float32))
        return rows[0], after

    def join(self, frame: Vector, predicted: NDArray[np.float32]) -> NDArray[np.float32]:
        frames = np.ascontiguousarray(np.broadcast_to(frame, predicted.shape), np.float32)
        return self._joiner.run(frames, np.ascontiguousarray(predicted, np.float32))


class CascadeSearch:
    """Both passes of a cascade as one search: until the end the first pass is the best so far, then the second.

    Args:
        first, second: searches with each pass's predictor and joiner.
        encoder2: rows (T, D) of the first encoder to frames (T', J) of the second, as they come.
        joint_width: J; frames pushed are (t, J + D), the first encoder's frames and its rows.
    """

    def __init__(self, first: Search, encoder2: Engine, second: Search, *, joint_width: int) -> None:
        self._first, self._second, self._encoder2 = first, second, encoder2
        self._joint_width = joint_width
        self._state: StreamState | None = None if encoder2.program.obstacle else encoder2.start()
        self._held = [np.empty((0, encoder2.program.input_width), np.float32)]

    def push(self, frames: NDArray[np.float32]) -> None:
        """Takes the next frames (t, J + D)."""
        self._first.push(frames[:, : self._joint_width])
        rows = np.ascontiguousarray(frames[:, self._joint_width :])
        if self._state is None:
            self._held.append(rows)
        else:
            self._see(rows, is_last=False)

    def best(self) -> Hypothesis:
        """Of the first pass."""
        return self._first.best()

    def finish(self) -> Hypothesis:
        """Of the second pass."""
        self._first.finish()
        if self._state is None:
            self._second.push(self._encoder2.run(np.concatenate(self._held)))
        else:
            self._see(np.empty((0, self._encoder2.program.input_width), np.float32), is_last=True)
        return self._second.finish()

    def _see(self, rows: NDArray[np.float32], *, is_last: bool) -> None:
        assert self._state is not None
        seen, self._state = self._encoder2.step(self._state, rows, is_last=is_last)
        self._second.push(seen)
