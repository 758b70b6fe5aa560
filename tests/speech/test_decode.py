"""Greedy CTC equals the loop that defines it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from subtone.speech import collapse_ctc, greedy_ctc


def greedy_by_loop(logits: np.ndarray, blank_index: int) -> list[int]:
    labels, previous = [], None
    for frame in logits:
        best = max(range(len(frame)), key=lambda label: frame[label])
        if best not in (previous, blank_index):
            labels.append(best)
        previous = best
    return labels


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 3))
def test_greedy_ctc_equals_the_loop(path, blank_index):
    noise = np.random.default_rng(len(path)).uniform(0, 0.9, (len(path), 4)).astype(np.float32)
    logits = np.eye(4, dtype=np.float32)[np.array(path, int)] + noise
    expected = greedy_by_loop(logits, blank_index)
    assert greedy_ctc(logits, blank_index) == expected
    assert collapse_ctc(np.argmax(logits, axis=1), blank_index) == expected
    assert all(type(label) is int for label in greedy_ctc(logits, blank_index))


def test_a_blank_between_two_equal_labels_keeps_both():
    assert collapse_ctc(np.array([1, 1, 0, 1, 0, 0]), blank_index=0) == [1, 1]


def test_no_frames_give_no_labels():
    assert greedy_ctc(np.zeros((0, 5), np.float32), blank_index=4) == []
