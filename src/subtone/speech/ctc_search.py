"""From CTC logits to labels: the likeliest path, or the likeliest sequence by a beam over prefixes.

A path has one label a frame, the blank among them; repeats joined and blanks dropped give the
sequence it spells. Different paths spell the same sequence, so that the likeliest path need not
spell the likeliest sequence. Prefix beam search (Graves et al. 2006, section 3.2; by frames as in
Hannun et al. 2014, Algorithm 1, without its language model) keeps two sums a prefix, over
the paths that end in a blank and over those that end in its last label: only after a blank is the
same label again a new one.

Letters: T frames, V labels and the blank, N prefixes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from subtone.speech.search import (
    NO_PATH,
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


class CtcSearch(Search):
    """A search over frames of V logits; -inf is a label that cannot be, as long as another can."""

    def __init__(self, *, num_labels: int, blank_index: int) -> None:
        check_labels(num_labels, blank_index)
        super().__init__(what="CTC logits", width=num_labels)
        self._blank_index = blank_index

    def _are_good(self, frames: Matrix) -> NDArray[np.bool_]:
        return np.isfinite(frames.max(axis=1))


class CtcGreedySearch(CtcSearch):
    """The labels of the likeliest path, each at the first frame of its run; `greedy_ctc` as it comes.

    >>> search = CtcGreedySearch(num_labels=3, blank_index=2)
    >>> search.push(np.array([[9.0, 0, 0], [9, 0, 0], [0, 0, 9]]))
    >>> search.push(np.array([[9.0, 0, 0], [0, 9, 0]]))
    >>> found = search.finish()
    >>> found.labels, found.frames
    ((0, 0, 1), (0, 3, 4))
    """

    def __init__(self, *, num_labels: int, blank_index: int) -> None:
        super().__init__(num_labels=num_labels, blank_index=blank_index)
        self._labels: list[int] = []
        self._frames: list[int] = []
        self._score = 0.0
        self._previous = blank_index

    def best(self) -> Hypothesis:
        return Hypothesis(tuple(self._labels), tuple(self._frames), self._score)

    def _step(self, row: Vector, frame_index: int) -> None:
        label = int(np.argmax(row))
        if label not in (self._blank_index, self._previous):
            self._labels.append(label)
            self._frames.append(frame_index)
        self._previous = label
        self._score += float(log_probabilities(row)[label])


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A prefix in the beam: sums and likeliest paths, of those that end in a blank and in its label."""

    prefix: Prefix
    blank: float
    label: float
    blank_path: Path
    label_path: Path

    @property
    def score(self) -> float:
        return log_add(self.blank, self.label)

    @property
    def path(self) -> Path:
        return self.blank_path.or_likelier(self.label_path)

    def before(self, label: int) -> Path:
        """The likeliest path after which `label` is a new label."""
        return self.blank_path if label == self.prefix.label else self.path


class CtcBeamSearch(CtcSearch):
    """The likeliest label sequence among those that a beam over prefixes keeps.

    `score` is the sum over all kept paths, exact while the beam holds every prefix; `frames` are
    the first frames of the runs of the likeliest kept path that spells the labels.

    Args:
        beam: prefixes kept after each frame.
        max_score_gap: prefixes less likely than the best by more than this (natural logarithm)
            are dropped too.

    >>> search = CtcBeamSearch(num_labels=2, blank_index=1, beam=4)
    >>> search.push(np.log([[0.4, 0.6], [0.4, 0.6]]))
    >>> found = search.finish()  # three paths spell (0,), 0.64 in all; the likeliest spells ()
    >>> found.labels, round(float(np.exp(found.score)), 6)
    ((0,), 0.64)
    """

    def __init__(
        self, *, num_labels: int, blank_index: int, beam: int = 8, max_score_gap: float = math.inf
    ) -> None:
        super().__init__(num_labels=num_labels, blank_index=blank_index)
        check_beam(beam, max_score_gap)
        self._num_kept = beam
        self._max_score_gap = max_score_gap
        self._beam = [_Entry(Prefix(), 0.0, -math.inf, START, NO_PATH)]

    def best(self) -> Hypothesis:
        entry = self._beam[0]
        return Hypothesis(entry.prefix.labels(), entry.path.frames(), entry.score)

    def _step(self, row: Vector, frame_index: int) -> None:
        logs = log_probabilities(row)
        grown = self._grown(logs)
        row_of = {entry.prefix: n for n, entry in enumerate(self._beam)}
        stayed = []
        for entry in self._beam:
            prefix = entry.prefix
            after = self._stay(entry, logs)
            n = row_of.get(prefix.parent) if prefix.parent is not None else None
            if n is not None:  # the same sequence by two ways: it was there, and its parent grows into it
                path = self._beam[n].before(prefix.label).emit(float(logs[prefix.label]), frame_index)
                after = dataclasses.replace(
                    after,
                    label=log_add(after.label, float(grown[n, prefix.label])),
                    label_path=after.label_path.or_likelier(path),
                )
                grown[n, prefix.label] = -math.inf
            stayed.append(after)
        scores = np.concatenate([[entry.score for entry in stayed], grown.ravel()])
        above = float(scores.max()) - self._max_score_gap
        kept = []
        for index in likeliest(scores, self._num_kept, above=above):
            if index < len(stayed):
                kept.append(stayed[index])
                continue
            n, label = divmod(index - len(stayed), len(logs))
            path = self._beam[n].before(label).emit(float(logs[label]), frame_index)
            prefix = self._beam[n].prefix.child(label)
            kept.append(_Entry(prefix, -math.inf, float(scores[index]), NO_PATH, path))
        self._beam = kept

    def _stay(self, entry: _Entry, logs: NDArray[np.float64]) -> _Entry:
        """The same prefix a frame later: by a blank, or its last label held."""
        blank = float(logs[self._blank_index])
        held = float(logs[entry.prefix.label]) if entry.prefix.depth else -math.inf
        return _Entry(
            entry.prefix,
            entry.score + blank,
            entry.label + held,
            entry.path.wait(blank),
            entry.label_path.wait(held),
        )

    def _grown(self, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-probability of each prefix with each label after it, shape (N, V)."""
        grown = np.array([entry.score for entry in self._beam])[:, None] + logs
        for n, entry in enumerate(self._beam):
            if entry.prefix.depth:
                grown[n, entry.prefix.label] = entry.blank + logs[entry.prefix.label]
        grown[:, self._blank_index] = -math.inf
        return grown

    def _forget(self) -> None:
        forget_beside([entry.prefix for entry in self._beam])
