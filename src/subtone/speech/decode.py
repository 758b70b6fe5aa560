"""From a model's logits to labels: greedy CTC.

Letters: T frames, V labels and the blank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def greedy_ctc(logits: NDArray[np.floating], blank_index: int) -> list[int]:
    """The labels of the likeliest path: best label of each frame, repeats joined, blanks dropped.

    Args:
        logits: shape (T, V); any monotone function of probabilities does. Of equal ones the
            lowest index wins.

    >>> greedy_ctc(np.array([[9, 0, 0], [9, 0, 0], [0, 0, 9], [9, 0, 0], [0, 9, 0]]), blank_index=2)
    [0, 0, 1]
    """
    return collapse_ctc(np.argmax(logits, axis=1), blank_index)


def collapse_ctc(best: NDArray[np.integer], blank_index: int) -> list[int]:
    """A path (T,) of one label a frame, repeats joined, then blanks dropped.

    >>> collapse_ctc(np.array([0, 0, 2, 0, 1]), blank_index=2)
    [0, 0, 1]
    """
    is_new = np.ones(len(best), bool)
    is_new[1:] = best[1:] != best[:-1]
    return best[is_new & (best != blank_index)].tolist()
