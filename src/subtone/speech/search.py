"""What all searches for the likeliest labels share: frames come in pieces, out comes a `Hypothesis`.

A network says, frame by frame, how likely each label is. Many *alignments* (which frame emits
which label) spell one label sequence, whose probability is the sum over them. A greedy search
follows one alignment; a beam search follows the likeliest few sequences and adds up what
arrives at the same one:

* `ctc_search`: each frame is a blank or a label; a label held over frames is one label.
* `transducer_search`: each frame emits any number of labels; each label changes what comes next.

Whatever the cuts between two calls of `push`, the result is the same, bit for bit. Memory grows
by the labels found, not by what was considered on the way: `forget_beside`.

Letters: T frames, V labels and the blank.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.floating]
Matrix: TypeAlias = NDArray[np.floating]

Times: TypeAlias = "tuple[Times, int] | None"
"""Frames of the labels so far, the last first: what comes later shares what came before."""


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A label sequence, the frame at which each label was emitted, and its log-probability.

    * `frames[i]`: index of the encoder (or logit) frame of `labels[i]`, counted from the first
      one pushed, never falling. Of all alignments that the search followed, the likeliest one's.
    * `score`: natural logarithm; a greedy search's is that of its one alignment, a beam search's
      the sum over the alignments it followed, hence never above that of the label sequence.
    """

    labels: tuple[int, ...]
    frames: tuple[int, ...]
    score: float


class Search(abc.ABC):
    """One utterance's search: `push` frames as they come, `best` at any time, `finish` at the end."""

    def __init__(self, *, what: str, width: int | None) -> None:
        self._what = what
        self._width = width
        self._num_frames = 0
        self._is_finished = False

    def push(self, frames: Matrix) -> None:
        """Takes the next frames, shape (t, width), any t from 0.

        Raises:
            ValueError: after `finish`; another shape; a value that is no number. None of these
                frames is taken then; of those a model fails at, only the ones before.
        """
        if self._is_finished:
            raise ValueError("push after finish: make a new search for the next utterance")
        frames = np.asarray(frames)
        width = self._width if self._width is not None else "any one width"
        if frames.ndim != 2 or (self._width is not None and frames.shape[1] != self._width):
            raise ValueError(f"{self._what} have shape={frames.shape}; push (number of frames, {width})")
        if not np.issubdtype(frames.dtype, np.floating):
            raise ValueError(f"{self._what} have dtype={frames.dtype}; push floats")
        bad = np.flatnonzero(~self._are_good(frames))
        if len(bad):
            where = self._num_frames + int(bad[0])
            raise ValueError(f"{self._what} of frame={where} are NaN or infinite; look into what made them")
        if len(frames):
            self._width = frames.shape[1]
        for row in frames:
            self._step(row, self._num_frames)
            self._num_frames += 1
        self._forget()

    def finish(self) -> Hypothesis:
        """The likeliest hypothesis over all frames; after it, no more can be pushed."""
        self._is_finished = True
        return self.best()

    @abc.abstractmethod
    def best(self) -> Hypothesis:
        """The likeliest hypothesis over the frames so far: what to show while speech goes on."""

    @abc.abstractmethod
    def _step(self, row: Vector, frame_index: int) -> None:
        """Takes one frame."""

    def _are_good(self, frames: Matrix) -> NDArray[np.bool_]:
        """Which frames can be searched, shape (t,)."""
        return np.isfinite(np.abs(frames).max(axis=1, initial=0))

    def _forget(self) -> None:
        """Lets go of what no later frame can ask for."""
        return


class Prefix:
    """A label sequence as a node of a tree: equal sequences are one node, and share what is known of it.

    `known` holds what a search has computed of this sequence (a predictor's output and state);
    `is_settled` says that every hypothesis goes through one child of it (see `forget_beside`).
    """

    __slots__ = ("children", "depth", "is_settled", "known", "label", "parent")

    def __init__(self, parent: Prefix | None = None, label: int = -1) -> None:
        self.parent = parent
        self.label = label
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[int, Prefix] = {}
        self.known: Any = None
        self.is_settled = False

    def child(self, label: int) -> Prefix:
        """This sequence and one label more."""
        if label not in self.children:
            self.children[label] = Prefix(self, label)
        return self.children[label]

    def labels(self) -> tuple[int, ...]:
        """The sequence; its last label is `label`, -1 of the empty one.

        >>> Prefix().child(3).child(1).labels()
        (3, 1)
        """
        found, prefix = [], self
        while prefix.parent is not None:
            found.append(prefix.label)
            prefix = prefix.parent
        return tuple(reversed(found))


def forget_beside(kept: Sequence[Prefix]) -> None:
    """Drops all that cannot be reached any more once only `kept` and what follows them can.

    Above the longest sequence which all of `kept` begin with, that is every branch but theirs,
    and what was known of it.
    """
    level = list(kept)
    while len(set(level)) > 1:
        deepest = max(prefix.depth for prefix in level)
        level = [prefix.parent or prefix if prefix.depth == deepest else prefix for prefix in level]
    prefix = level[0]
    while prefix.parent is not None and not prefix.parent.is_settled:
        parent = prefix.parent
        parent.known, parent.children, parent.is_settled = None, {prefix.label: prefix}, True
        prefix = parent


class Path(NamedTuple):
    """The likeliest single alignment of a hypothesis: its log-probability, the frames of its labels."""

    score: float
    times: Times

    def emit(self, score: float, frame_index: int) -> Path:
        """It goes on by a label at `frame_index`."""
        return Path(self.score + score, (self.times, frame_index))

    def wait(self, score: float) -> Path:
        """It goes on by a frame without a new label."""
        return Path(self.score + score, self.times)

    def or_likelier(self, other: Path) -> Path:
        """The likelier of two; of equally likely ones, this."""
        return other if other.score > self.score else self

    def frames(self) -> tuple[int, ...]:
        """The frames in their order.

        >>> Path(0.0, None).emit(-1.0, 4).wait(-0.5).emit(-1.0, 7).frames()
        (4, 7)
        """
        found, times = [], self.times
        while times is not None:
            times, frame_index = times
            found.append(frame_index)
        return tuple(reversed(found))


NO_PATH = Path(-math.inf, None)
START = Path(0.0, None)


def log_probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logarithms of the softmax over the last axis, in float64; -inf stays -inf.

    >>> log_probabilities(np.array([0.0, 0.0, -np.inf])).round(4).tolist()
    [-0.6931, -0.6931, -inf]
    """
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_add(left: float, right: float) -> float:
    """Logarithm of the sum of two numbers given by their logarithms.

    >>> round(log_add(math.log(2), math.log(3)), 6) == round(math.log(5), 6)
    True
    """
    low, high = sorted((left, right))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def likeliest(scores: NDArray[np.float64], count: int, *, above: float = -math.inf) -> list[int]:
    """Indices of the `count` highest scores above `above`, the highest first, of equal ones the first.

    >>> likeliest(np.array([1.0, 3.0, -np.inf, 3.0]), 3)
    [1, 3, 0]
    """
    if len(scores) > count:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        indices = np.flatnonzero((scores >= least) & (scores > above))
    else:
        indices = np.flatnonzero(scores > above)
    return indices[np.argsort(-scores[indices], kind="stable")][:count].tolist()


def check_labels(num_labels: int, blank_index: int) -> None:
    """ValueError where these are no vocabulary: the blank, and a label beside it."""
    if num_labels < 2:
        raise ValueError(f"num_labels={num_labels} must be 2 or more: the blank and a label")
    if not 0 <= blank_index < num_labels:
        raise ValueError(f"blank_index={blank_index} is no label; use 0 to {num_labels - 1}")


def check_beam(beam: int, max_score_gap: float) -> None:
    """ValueError where no hypothesis would be kept."""
    if beam < 1:
        raise ValueError(f"beam={beam} keeps no hypothesis; use 1 or more")
    if not max_score_gap > 0:
        raise ValueError(f"max_score_gap={max_score_gap} keeps no hypothesis; use a number above 0")
