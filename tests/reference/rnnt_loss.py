"""The transducer's loss as Graves 2012 writes it, one utterance and one cell at a time, in float64.

`logits` (T, U+1, V) and `labels` (U,) are one utterance's, without padding. The paper counts frames from 1 and
labels from 0; here both count from 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def log_probabilities(logits: NDArray, t: int, u: int) -> list[float]:
    """Eq. 13: log Pr(k | t, u) for every k."""
    row = [float(value) for value in logits[t, u]]
    largest = max(row)
    total = largest + math.log(sum(math.exp(value - largest) for value in row))
    return [value - total for value in row]


def add_in_logs(first: float, second: float) -> float:
    """log(exp(first) + exp(second))."""
    largest = max(first, second)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.exp(first - largest) + math.exp(second - largest))


def forward_variables(logits: NDArray, labels: Sequence[int], blank_index: int) -> NDArray[np.float64]:
    """Eq. 16: log alpha, (T, U+1)."""
    alpha = np.full(logits.shape[:2], -math.inf)
    alpha[0, 0] = 0.0
    for t in range(logits.shape[0]):
        for u in range(len(labels) + 1):
            if t > 0:
                by_blank = alpha[t - 1, u] + log_probabilities(logits, t - 1, u)[blank_index]
                alpha[t, u] = add_in_logs(alpha[t, u], by_blank)
            if u > 0:
                by_label = alpha[t, u - 1] + log_probabilities(logits, t, u - 1)[labels[u - 1]]
                alpha[t, u] = add_in_logs(alpha[t, u], by_label)
    return alpha


def backward_variables(logits: NDArray, labels: Sequence[int], blank_index: int) -> NDArray[np.float64]:
    """Eq. 18: log beta, (T, U+1)."""
    T, U = logits.shape[0], len(labels)
    beta = np.full(logits.shape[:2], -math.inf)
    for t in reversed(range(T)):
        for u in reversed(range(U + 1)):
            here = log_probabilities(logits, t, u)
            if t == T - 1 and u == U:
                beta[t, u] = here[blank_index]
            if t < T - 1:
                beta[t, u] = add_in_logs(beta[t, u], beta[t + 1, u] + here[blank_index])
            if u < U:
                beta[t, u] = add_in_logs(beta[t, u], beta[t, u + 1] + here[labels[u]])
    return beta


def loss(logits: NDArray, labels: Sequence[int], blank_index: int) -> float:
    """Eq. 17: -log Pr(labels | logits)."""
    last = log_probabilities(logits, logits.shape[0] - 1, len(labels))[blank_index]
    return float(-forward_variables(logits, labels, blank_index)[-1, -1] - last)


def gradient(logits: NDArray, labels: Sequence[int], blank_index: int) -> NDArray[np.float64]:
    """Eq. 20, d loss / d Pr(k | t, u), taken through the softmax of Eq. 13 to each logit: (T, U+1, V)."""
    (T, columns, V), U = logits.shape, len(labels)
    alpha = forward_variables(logits, labels, blank_index)
    beta = backward_variables(logits, labels, blank_index)
    log_likelihood = beta[0, 0]
    result = np.zeros((T, columns, V))
    for t in range(T):
        for u in range(U + 1):
            probability = [math.exp(value) for value in log_probabilities(logits, t, u)]
            by_probability = [0.0] * V
            if u < U:
                by_probability[labels[u]] = -math.exp(alpha[t, u] + beta[t, u + 1] - log_likelihood)
            if t < T - 1:
                by_probability[blank_index] = -math.exp(alpha[t, u] + beta[t + 1, u] - log_likelihood)
            elif u == U:
                by_probability[blank_index] = -math.exp(alpha[t, u] - log_likelihood)
            for k in range(V):
                for other in range(V):
                    slope = probability[other] * ((k == other) - probability[k])
                    result[t, u, k] += by_probability[other] * slope
    return result


def loss_over_all_alignments(logits: NDArray, labels: Sequence[int], blank_index: int) -> float:
    """-log of the sum over alignments one by one: every order of T - 1 blanks and U labels, then a blank."""
    T, U = logits.shape[0], len(labels)
    total = 0.0
    for said_at in itertools.combinations(range(T - 1 + U), U):
        t, u, log_probability = 0, 0, 0.0
        for move in range(T - 1 + U):
            here = log_probabilities(logits, t, u)
            if move in said_at:
                log_probability += here[labels[u]]
                u += 1
            else:
                log_probability += here[blank_index]
                t += 1
        total += math.exp(log_probability + log_probabilities(logits, t, u)[blank_index])
    return -math.log(total)
