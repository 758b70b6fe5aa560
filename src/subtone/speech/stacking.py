"""Neighbouring frames joined into one row, so that a model steps less often.

Row r of `stack` frames joined every `stride` is

    row[r] = frame[stride * r], frame[stride * r + 1], .., frame[stride * r + stack - 1]

of S8BQAT's 3 every 3 (64 mels become 192) and of int4's "4 contiguous frames [..] subsampled by
a factor of 3" (128 become 512). There are ceil(T / stride) rows: every frame is heard, and the
rows of the end that lack frames repeat the last one. Dropping them instead loses up to
`stack - 1` frames, where a last word may end; zeros would be a sound that no frame has. While a
sound goes on nothing is repeated: a row waits for its last frame, so streamed rows are the whole
sound's rows.

Letters: T frames, F features of a frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Stacker:
    """Rows of `stack` frames every `stride`, `1 <= stride <= stack`: `push`, then `finish`.

    >>> stacker = Stacker(stack=3, stride=2, num_features=1)
    >>> stacker.push(np.arange(4, dtype=np.float32)[:, None]).tolist()
    [[0.0, 1.0, 2.0]]
    >>> stacker.finish().tolist()
    [[2.0, 3.0, 3.0]]
    """

    def __init__(self, *, stack: int, stride: int, num_features: int) -> None:
        self._stack, self._stride = stack, stride
        self._held = np.zeros((0, num_features), np.float32)
        """Frames from the next row's first on."""

    def push(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """The rows (r, stack * F) that frames (t, F) complete."""
        if self._stack == 1:
            return frames
        self._held = np.concatenate([self._held, frames])
        return self._take(max(0, (len(self._held) - self._stack) // self._stride + 1))

    def finish(self) -> NDArray[np.float32]:
        """The rows that the last frame must complete, repeated."""
        num_rows = -(-len(self._held) // self._stride)
        if num_rows:
            missing = (num_rows - 1) * self._stride + self._stack - len(self._held)
            self._held = np.concatenate([self._held, np.repeat(self._held[-1:], missing, axis=0)])
        return self._take(num_rows)

    def _take(self, num_rows: int) -> NDArray[np.float32]:
        places = np.arange(num_rows)[:, None] * self._stride + np.arange(self._stack)
        rows = self._held[places].reshape(num_rows, self._stack * self._held.shape[1])
        self._held = self._held[num_rows * self._stride :].copy()
        return rows
