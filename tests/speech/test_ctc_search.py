"""CTC searches against all paths, in pieces, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.search import all_ctc, ctc_log_likelihood, log_softmax

from subtone.speech import greedy_ctc
from subtone.speech.ctc_search import CtcBeamSearch, CtcGreedySearch
from subtone.speech.search import Hypothesis

EXHAUSTIVE = 400
"""More prefixes than five frames of two labels and a blank can spell."""


def random_logits(seed: int, num_frames: int, num_labels: int = 3) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal((num_frames, num_labels))


def beam_of(logits: np.ndarray, *, blank_index: int = 0, **options) -> Hypothesis:
    search = CtcBeamSearch(num_labels=logits.shape[1], blank_index=blank_index, **options)
    search.push(logits)
    return search.finish()


def greedy_of(logits: np.ndarray, *, blank_index: int = 0) -> Hypothesis:
    search = CtcGreedySearch(num_labels=logits.shape[1], blank_index=blank_index)
    search.push(logits)
    return search.finish()


@pytest.mark.parametrize("seed", range(20))
def test_the_forward_loop_is_the_sum_over_all_paths(seed):
    logits = random_logits(seed, num_frames=seed % 6)
    for labels, expected in all_ctc(logits, 1).items():
        assert ctc_log_likelihood(logits, labels, 1) == pytest.approx(expected.score, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 2))
def test_an_exhaustive_beam_finds_the_best_of_all_sequences_and_its_likeliest_path(seed, length, blank_index):
    logits = random_logits(seed, length)
    everything = all_ctc(logits, blank_index)
    labels, expected = max(everything.items(), key=lambda item: item[1].score)
    found = beam_of(logits, blank_index=blank_index, beam=EXHAUSTIVE)
    assert (found.labels, found.frames) == (labels, expected.frames)
    assert found.score == pytest.approx(expected.score, abs=1e-12)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 3))
def test_greedy_search_is_greedy_ctc_with_the_first_frame_of_each_run(path, blank_index):
    noise = np.random.default_rng(len(path)).uniform(0, 0.9, (len(path), 4)).astype(np.float32)
    logits = np.eye(4, dtype=np.float32)[np.array(path, int)] + noise
    found = greedy_of(logits, blank_index=blank_index)
    assert list(found.labels) == greedy_ctc(logits, blank_index)
    starts = [t for t in range(len(path)) if path[t] != blank_index and path[t] != ([None, *path][t])]
    assert found.frames == tuple(starts)
    expected = sum(row[label] for row, label in zip(log_softmax(logits), path, strict=True))
    assert found.score == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 5, 20]))
def test_a_beams_score_is_never_above_that_of_its_labels(seed, beam):
    logits = random_logits(seed, num_frames=12, num_labels=5)
    found = beam_of(logits, beam=beam)
    assert found.score <= ctc_log_likelihood(logits, found.labels, 0) + 1e-12
    assert len(found.frames) == len(found.labels)
    assert all(early < late for early, late in zip(found.frames, found.frames[1:], strict=False))


def test_a_beam_finds_more_than_the_likeliest_path():
    gains = []
    for seed in range(30):
        logits = random_logits(seed, num_frames=20, num_labels=5)
        greedy, beam = greedy_of(logits), beam_of(logits, beam=8)
        assert beam.score >= greedy.score
        gains.append(
            ctc_log_likelihood(logits, beam.labels, 0) - ctc_log_likelihood(logits, greedy.labels, 0)
        )
    assert sum(gain > 0.01 for gain in gains) > 15
    assert min(gains) > -0.2  # one of a hundred seeds loses, 0.09: a beam that drops anything cannot promise


def test_wider_beams_find_no_less_until_all_is_held():
    for seed in range(20):
        logits = random_logits(seed, num_frames=5)
        best = max(found.score for found in all_ctc(logits, 0).values())
        found = [
            ctc_log_likelihood(logits, beam_of(logits, beam=beam).labels, 0) for beam in (63, 127, EXHAUSTIVE)
        ]
        assert found == pytest.approx([best] * 3, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 20), max_size=6), st.sampled_from([1, 4]))
def test_any_cuts_give_the_same_bits(seed, cuts, beam):
    logits = random_logits(seed, num_frames=20, num_labels=4).astype(np.float32)
    for make in (
        lambda: CtcGreedySearch(num_labels=4, blank_index=3),
        lambda: CtcBeamSearch(num_labels=4, blank_index=3, beam=beam),
    ):
        whole, pieces = make(), make()
        whole.push(logits)
        for part in np.split(logits, sorted(cuts)):
            pieces.push(part)
            pieces.best()
        assert pieces.finish() == whole.finish()


def test_a_score_gap_drops_what_is_far_behind_and_changes_nothing_when_wide():
    for seed in range(10):
        logits = random_logits(seed, num_frames=15, num_labels=5)
        assert beam_of(logits, beam=8, max_score_gap=1e9) == beam_of(logits, beam=8)
        assert beam_of(logits, beam=8, max_score_gap=1e-9) == beam_of(logits, beam=1)


def test_best_is_what_finish_would_give_after_the_frames_so_far():
    logits = random_logits(3, num_frames=10, num_labels=4)
    for make in (CtcGreedySearch, CtcBeamSearch):
        search = make(num_labels=4, blank_index=0)
        for t, row in enumerate(logits):
            search.push(row[None])
            alone = make(num_labels=4, blank_index=0)
            alone.push(logits[: t + 1])
            assert search.best() == alone.finish()


@pytest.mark.parametrize("make", [CtcGreedySearch, CtcBeamSearch])
def test_no_frames_are_the_empty_hypothesis_and_certain(make):
    search = make(num_labels=3, blank_index=0)
    search.push(np.zeros((0, 3)))
    assert search.finish() == Hypothesis((), (), 0.0)


def test_a_label_that_cannot_be_is_never_found():
    logits = np.array([[0.0, -np.inf, 1.0], [0.0, -np.inf, 1.0]])
    found = beam_of(logits, beam=EXHAUSTIVE)
    exact = all_ctc(logits[:, [0, 2]], 0)
    assert found.labels == (2,)
    assert found.score == pytest.approx(exact[(1,)].score, abs=1e-12)
    assert beam_of(np.array([[-np.inf, 0.0], [-np.inf, 0.0]]), beam=2) == Hypothesis((1,), (0,), 0.0)


@pytest.mark.parametrize("make", [CtcGreedySearch, CtcBeamSearch])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_name_their_frame_and_none_is_taken(make, value):
    search = make(num_labels=3, blank_index=0)
    search.push(random_logits(0, 4))
    before = search.best()
    bad = random_logits(1, 4)
    bad[2, 1] = value
    with pytest.raises(ValueError, match="CTC logits of frame=6 are NaN or infinite"):
        search.push(bad)
    assert search.best() == before
    with pytest.raises(ValueError, match="frame=4 are NaN or infinite"):
        search.push(np.full((1, 3), -np.inf))


def test_pushes_that_cannot_be_are_refused():
    search = CtcBeamSearch(num_labels=3, blank_index=0)
    for frames in (np.zeros(3), np.zeros((2, 4)), np.zeros((1, 1, 3))):
        with pytest.raises(ValueError, match=r"CTC logits have shape=.*; push \(number of frames, 3\)"):
            search.push(frames)
    with pytest.raises(ValueError, match="CTC logits have dtype=int64; push floats"):
        search.push(np.zeros((2, 3), np.int64))
    search.finish()
    with pytest.raises(ValueError, match="push after finish: make a new search"):
        search.push(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam=0 keeps no hypothesis; use 1 or more"),
        ({"max_score_gap": 0.0}, "max_score_gap=0.0 keeps no hypothesis; use a number above 0"),
        ({"max_score_gap": math.nan}, "max_score_gap=nan keeps no hypothesis"),
        ({"num_labels": 1}, "num_labels=1 must be 2 or more"),
        ({"blank_index": 3}, "blank_index=3 is no label; use 0 to 2"),
        ({"blank_index": -1}, "blank_index=-1 is no label; use 0 to 2"),
    ],
)
def test_a_search_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CtcBeamSearch(**{"num_labels": 3, "blank_index": 0, **options})
