"""From a transducer's frames to labels: greedily, or by a beam, one code for torch and packed models.

At each frame the joiner says, given the labels so far, how likely each label and the blank are. A
label is emitted and the frame stays; the blank leaves it for the next (Graves 2012). So every
alignment is T blanks and the labels between them, and the probability of a label sequence is the
sum over the places of its labels.

The beam search is time-synchronous (as Saon et al. 2020 describe beside their own; Graves 2012,
Algorithm 1, has no limit on labels a frame): all hypotheses leave a frame before any enters the next, so that a
stream has a best hypothesis after each frame. Alignment-length synchronous search of the same
paper needs the length of the whole utterance, which a stream does not know.
Equal label sequences are one hypothesis, their probabilities added.

Letters: T frames, V labels and the blank, D width, N hypotheses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from subtone.speech.search import (
    START,
    Hypothesis,
    Matrix,
    Path,
    Prefix,
    Search,
    Vector,
    check_beam,
    check_labels,
    forget_beside,
    likeliest,
    log_add,
    log_probabilities,
)

State: TypeAlias = Any
"""The predictor's memory of the labels so far: opaque here, and never changed in place."""


class TransducerModel(Protocol):
    """Predictor and joiner, as a search asks them; encoder frames come from outside.

    * `blank_index`, `num_labels`: V labels, the blank included, which starts a sequence too.
    """

    @property
    def blank_index(self) -> int: ...

    @property
    def num_labels(self) -> int: ...

    def start(self) -> State:
        """State before any label."""

    def predict(self, label: int, state: State) -> tuple[Vector, State]:
        """Output (D,) after one more label (the blank as the first one) and the state after it."""

    def join(self, frame: Vector, predicted: Matrix) -> Matrix:
        """Logits (N, V) of one encoder frame (D,) with N outputs of the predictor (N, D)."""


class TransducerSearch(Search):
    """What both searches share: the model, and two limits on how many labels come.

    Neither limit matters to a model that has learnt; both end one that never says blank.

    Args:
        max_expansions: most labels at one frame, then the blank is taken. 10 by default: models
            that answer late emit a whole word at once, and a word has about that many characters.
        max_labels_per_frame: after t frames no hypothesis has more than t times this many
            labels. 4 by default: at 80 ms a frame 50 characters a second, twice fast speech.
    """

    def __init__(
        self, model: TransducerModel, *, max_expansions: int = 10, max_labels_per_frame: float = 4.0
    ) -> None:
        check_labels(model.num_labels, model.blank_index)
        if max_expansions < 1:
            raise ValueError(f"max_expansions={max_expansions} emits no label; use 1 or more")
        if not 0 < max_labels_per_frame < math.inf:
            raise ValueError(f"max_labels_per_frame={max_labels_per_frame} must be a number above 0")
        super().__init__(what="encoder frames", width=None)
        self._model = model
        self._max_expansions = max_expansions
        self._max_labels_per_frame = max_labels_per_frame

    def _max_labels(self, frame_index: int) -> int:
        """Most labels up to a frame, itself included."""
        return int(self._max_labels_per_frame * (frame_index + 1))

    def _predict(self, label: int, state: State) -> tuple[Vector, State]:
        predicted, state = self._model.predict(label, state)
        if np.ndim(predicted) != 1:
            raise ValueError(f"the predictor gave shape={np.shape(predicted)} for a label; it must give (D,)")
        return predicted, state

    def _join(self, row: Vector, predicted: Sequence[Vector], frame_index: int) -> NDArray[np.float64]:
        """Log-probabilities, shape (N, V)."""
        logits = np.asarray(self._model.join(row, np.stack(predicted)))
        expected = (len(predicted), self._model.num_labels)
        if logits.shape != expected:
            raise ValueError(f"the joiner gave logits of shape={logits.shape}; it must give {expected}")
        if not np.isfinite(logits).all():
            raise ValueError(
                f"the joiner's logits at frame={frame_index} are NaN or infinite; look into the model"
            )
        return log_probabilities(logits)


class TransducerGreedySearch(TransducerSearch):
    """The alignment that takes the likeliest label at each step; of equally likely ones the lowest."""

    def __init__(
        self, model: TransducerModel, *, max_expansions: int = 10, max_labels_per_frame: float = 4.0
    ) -> None:
        super().__init__(model, max_expansions=max_expansions, max_labels_per_frame=max_labels_per_frame)
        self._labels: list[int] = []
        self._frames: list[int] = []
        self._score = 0.0
        self._predicted, self._state = self._predict(model.blank_index, model.start())

    def best(self) -> Hypothesis:
        return Hypothesis(tuple(self._labels), tuple(self._frames), self._score)

    def _step(self, row: Vector, frame_index: int) -> None:
        blank_index = self._model.blank_index
        most = min(self._max_labels(frame_index), len(self._labels) + self._max_expansions)
        while True:
            logs = self._join(row, [self._predicted], frame_index)[0]
            label = int(np.argmax(logs)) if len(self._labels) < most else blank_index
            self._score += float(logs[label])
            if label == blank_index:
                return
            self._labels.append(label)
            self._frames.append(frame_index)
            self._predicted, self._state = self._predict(label, self._state)


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A hypothesis: its labels, the sum over its alignments, the likeliest of them."""

    prefix: Prefix
    score: float
    path: Path


class TransducerBeamSearch(TransducerSearch):
    """The likeliest label sequence among those that a time-synchronous beam keeps.

    `score` is the sum over all kept alignments, exact while the beam holds every sequence within
    the limits; `frames` are those of the likeliest kept alignment. A beam of one is not the
    greedy search: it compares hypotheses where they leave a frame, not label by label.

    Within a frame, an extension that is already less likely than `beam` hypotheses which have
    left the frame is given up, as in Graves 2012: it could only lose more.
    The predictor is asked once for each label sequence that is extended or left at a frame.

    Args:
        beam: hypotheses kept after each expansion and after each frame.
        max_score_gap: those less likely than the best by more than this (natural logarithm) are
            dropped too.
        max_expansions, max_labels_per_frame: as `TransducerSearch`.
    """

    def __init__(
        self,
        model: TransducerModel,
        *,
        beam: int = 8,
        max_score_gap: float = math.inf,
        max_expansions: int = 10,
        max_labels_per_frame: float = 4.0,
    ) -> None:
        super().__init__(model, max_expansions=max_expansions, max_labels_per_frame=max_labels_per_frame)
        check_beam(beam, max_score_gap)
        self._num_kept = beam
        self._max_score_gap = max_score_gap
        self._beam = [_Entry(Prefix(), 0.0, START)]

    def best(self) -> Hypothesis:
        entry = self._beam[0]
        return Hypothesis(entry.prefix.labels(), entry.path.frames(), entry.score)

    def _step(self, row: Vector, frame_index: int) -> None:
        left: dict[Prefix, _Entry] = {}
        active, num_expansions = self._beam, 0
        while active:
            logs = self._join(row, [self._output(entry.prefix) for entry in active], frame_index)
            for entry, log in zip(active, logs[:, self._model.blank_index].tolist(), strict=True):
                _add(left, _Entry(entry.prefix, entry.score + log, entry.path.wait(log)))
            if num_expansions == self._max_expansions:
                break
            active = self._extended(active, logs, frame_index, above=self._least_worth(left))
            num_expansions += 1
        entries = list(left.values())
        scores = np.array([entry.score for entry in entries])
        kept = likeliest(scores, self._num_kept, above=float(scores.max()) - self._max_score_gap)
        self._beam = [entries[index] for index in kept]

    def _least_worth(self, left: dict[Prefix, _Entry]) -> float:
        """The score at or below which an extension cannot be kept at the end of the frame."""
        scores = sorted((entry.score for entry in left.values()), reverse=True)
        least = scores[self._num_kept - 1] if len(scores) >= self._num_kept else -math.inf
        return max(least, scores[0] - self._max_score_gap)

    def _extended(
        self, active: list[_Entry], logs: NDArray[np.float64], frame_index: int, *, above: float
    ) -> list[_Entry]:
        """The likeliest hypotheses with one label more."""
        scores = np.array([entry.score for entry in active])[:, None] + logs
        scores[:, self._model.blank_index] = -math.inf
        scores[[entry.prefix.depth >= self._max_labels(frame_index) for entry in active]] = -math.inf
        found = []
        for index in likeliest(scores.ravel(), self._num_kept, above=above):
            n, label = divmod(index, self._model.num_labels)
            path = active[n].path.emit(float(logs[n, label]), frame_index)
            found.append(_Entry(active[n].prefix.child(label), float(scores[n, label]), path))
        return found

    def _output(self, prefix: Prefix) -> Vector:
        """The predictor's output after `prefix`, computed once; its parent's is there before."""
        if prefix.known is None:
            if prefix.parent is None:
                prefix.known = self._predict(self._model.blank_index, self._model.start())
            else:
                prefix.known = self._predict(prefix.label, prefix.parent.known[1])
        return prefix.known[0]

    def _forget(self) -> None:
        forget_beside([entry.prefix for entry in self._beam])


def _add(entries: dict[Prefix, _Entry], new: _Entry) -> None:
    """Puts `new` among the entries, or adds it to the one with the same labels."""
    old = entries.get(new.prefix)
    if old is not None:
        new = _Entry(new.prefix, log_add(old.score, new.score), old.path.or_likelier(new.path))
    entries[new.prefix] = new
