"""A packed transducer's predictor and joiner, as a search asks them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subtone.runtime.engine import Engine
from subtone.runtime.state import StreamState

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
        rows, after = self._predictor.step(state, np.array([[label]], np.float32))
        return rows[0], after

    def join(self, frame: Vector, predicted: NDArray[np.float32]) -> NDArray[np.float32]:
        frames = np.ascontiguousarray(np.broadcast_to(frame, predicted.shape), np.float32)
        return self._joiner.run(frames, np.ascontiguousarray(predicted, np.float32))
