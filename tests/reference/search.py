"""What a search should find, by trying everything: log-probabilities of label sequences and their alignments.

Small on purpose: the number of paths grows as V**T.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np


class Found(NamedTuple):
    """Log-probability of a label sequence; its likeliest alignment's, and the frame of each label there."""

    score: float
    path_score: float
    frames: tuple[int, ...]


def add(found: dict[tuple, Found], labels: tuple, score: float, frames: tuple) -> None:
    """One more alignment of `labels`."""
    old = found.get(labels, Found(-math.inf, -math.inf, ()))
    best = (score, frames) if score > old.path_score else (old.path_score, old.frames)
    found[labels] = Found(float(np.logaddexp(old.score, score)), *best)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def all_ctc(logits: np.ndarray, blank_index: int) -> dict[tuple, Found]:
    """Every label sequence that T frames can spell, by all V**T paths."""
    logs = log_softmax(logits)
    found: dict[tuple, Found] = {}
    for path in itertools.product(range(logs.shape[1]), repeat=len(logs)):
        labels, frames, previous = [], [], None
        for t, label in enumerate(path):
            if label not in (previous, blank_index):
                labels.append(label)
                frames.append(t)
            previous = label
        add(found, tuple(labels), sum(logs[t, label] for t, label in enumerate(path)), tuple(frames))
    return found


def ctc_log_likelihood(logits: np.ndarray, labels: tuple[int, ...], blank_index: int) -> float:
    """Graves et al. 2006, Eq. 6 and 7: alpha over the labels with blanks between and around them."""
    logs = log_softmax(logits)
    spread = [blank_index]
    for label in labels:
        spread += [label, blank_index]
    alpha = [0.0] + [-math.inf] * (len(spread) - 1)  # before the first frame: in front of all
    for t in range(len(logs)):
        after = []
        for s, label in enumerate(spread):
            total = alpha[s]
            if s >= 1:
                total = np.logaddexp(total, alpha[s - 1])
            if s >= 2 and label not in (blank_index, spread[s - 2]):
                total = np.logaddexp(total, alpha[s - 2])
            after.append(total + logs[t, label])
        alpha = after
    return float(np.logaddexp(alpha[-1], alpha[-2] if len(alpha) > 1 else -math.inf))


class State(NamedTuple):
    """What the predictor remembers, and of which labels."""

    labels: tuple[int, ...]
    hidden: np.ndarray


class NumpyTransducer:
    """A small transducer with random weights: embedding, tanh recurrence, tanh joiner, all float64."""

    def __init__(self, seed: int, *, num_labels: int, width: int = 5, blank_index: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.blank_index = blank_index
        self.num_labels = num_labels
        self.embedding = random.standard_normal((num_labels, width))
        self.recurrence = random.standard_normal((width, width)) / math.sqrt(width)
        self.output = 2 * random.standard_normal((width, num_labels)) / math.sqrt(width)
        self.output_bias = random.standard_normal(num_labels)
        self.asked: list[tuple[int, ...]] = []
        """What `predict` was asked for: the blank in front, and the labels."""

    def start(self) -> State:
        return State((), np.zeros(len(self.recurrence)))

    def predict(self, label: int, state: State) -> tuple[np.ndarray, State]:
        labels = (*state.labels, label)
        self.asked.append(labels)
        hidden = np.tanh(self.embedding[label] + state.hidden @ self.recurrence)
        hidden.flags.writeable = False
        return hidden, State(labels, hidden)

    def join(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return np.tanh(frame + predicted) @ self.output + self.output_bias

    def logs_after(self, frame: np.ndarray, labels: tuple[int, ...]) -> np.ndarray:
        """Log-probabilities (V,) at `frame` after `labels`, all computed anew."""
        predicted, state = self.predict(self.blank_index, self.start())
        for label in labels:
            predicted, state = self.predict(label, state)
        return log_softmax(self.join(frame, predicted[None])[0])


def transducer_log_likelihood(model: NumpyTransducer, frames: np.ndarray, labels: tuple[int, ...]) -> float:
    """Graves 2012, Eq. 16 and 17: alpha(t, u), frames left by a blank, labels emitted at a frame."""
    if len(frames) == 0:
        return 0.0 if not labels else -math.inf
    alpha = np.full((len(frames), len(labels) + 1), -math.inf)
    logs = [[model.logs_after(frame, labels[:u]) for u in range(len(labels) + 1)] for frame in frames]
    for t in range(len(frames)):
        for u in range(len(labels) + 1):
            ways = [0.0] if t == u == 0 else []
            if t:
                ways.append(alpha[t - 1, u] + logs[t - 1][u][model.blank_index])
            if u:
                ways.append(alpha[t, u - 1] + logs[t][u - 1][labels[u - 1]])
            alpha[t, u] = np.logaddexp.reduce(ways)
    return float(alpha[-1, -1] + logs[-1][-1][model.blank_index])


def all_transducer(
    model: NumpyTransducer, frames: np.ndarray, *, max_expansions: int, max_labels_per_frame: float = math.inf
) -> dict[tuple, Found]:
    """Every label sequence within the limits, by all its alignments."""
    alphabet = [label for label in range(model.num_labels) if label != model.blank_index]
    found: dict[tuple, Found] = {}
    logs_at = {}

    def walk(t: int, labels: tuple, times: tuple, num_here: int, score: float) -> None:
        if t == len(frames):
            add(found, labels, score, times)
            return
        if (t, labels) not in logs_at:
            logs_at[t, labels] = model.logs_after(frames[t], labels)
        logs = logs_at[t, labels]
        walk(t + 1, labels, times, 0, score + logs[model.blank_index])
        if num_here < max_expansions and len(labels) + 1 <= max_labels_per_frame * (t + 1):
            for label in alphabet:
                walk(t, (*labels, label), (*times, t), num_here + 1, score + logs[label])

    walk(0, (), (), 0, 0.0)
    return found
