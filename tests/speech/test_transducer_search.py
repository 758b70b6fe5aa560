"""Transducer searches against all alignments of a small real transducer, in pieces, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.search import NumpyTransducer, all_transducer, transducer_log_likelihood

from subtone.speech.search import Hypothesis
from subtone.speech.transducer_search import TransducerBeamSearch, TransducerGreedySearch

SEARCHES = [TransducerGreedySearch, TransducerBeamSearch]


def random_frames(seed: int, num_frames: int, width: int = 5) -> np.ndarray:
    return np.random.default_rng([seed, 1]).standard_normal((num_frames, width))


def found_by(make, model: NumpyTransducer, frames: np.ndarray, **options) -> Hypothesis:
    search = make(model, **options)
    search.push(frames)
    return search.finish()


@pytest.mark.parametrize("seed", range(10))
def test_the_forward_loop_is_the_sum_over_all_alignments(seed):
    model, frames = NumpyTransducer(seed, num_labels=3), random_frames(seed, seed % 4)
    for labels, expected in all_transducer(model, frames, max_expansions=2).items():
        if len(labels) <= 2:  # longer ones have alignments beyond the limit
            assert transducer_log_likelihood(model, frames, labels) == pytest.approx(
                expected.score, abs=1e-12
            )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 2), st.sampled_from([0.7, 1.0, 9.0]))
def test_an_exhaustive_beam_finds_the_best_of_all_sequences_and_its_likeliest_alignment(
    seed, length, blank_index, limit
):
    model = NumpyTransducer(seed, num_labels=3, blank_index=blank_index)
    frames = random_frames(seed, length)
    limits = {"max_expansions": 2, "max_labels_per_frame": limit}
    everything = all_transducer(model, frames, **limits)
    labels, expected = max(everything.items(), key=lambda item: item[1].score)
    found = found_by(TransducerBeamSearch, model, frames, beam=128, **limits)
    assert (found.labels, found.frames) == (labels, expected.frames)
    assert found.score == pytest.approx(expected.score, abs=1e-12)
    if limit == 9.0 and len(labels) <= 2:
        assert found.score == pytest.approx(transducer_log_likelihood(model, frames, labels), abs=1e-12)


def greedy_by_loop(model: NumpyTransducer, frames: np.ndarray, max_expansions: int) -> Hypothesis:
    """Label by label, everything computed anew."""
    labels, times, score = (), (), 0.0
    for t, frame in enumerate(frames):
        for expansion in range(max_expansions + 1):
            logs = model.logs_after(frame, labels)
            label = int(np.argmax(logs)) if expansion < max_expansions else model.blank_index
            score += float(logs[label])
            if label == model.blank_index:
                break
            labels, times = (*labels, label), (*times, t)
    return Hypothesis(labels, times, score)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 8), st.sampled_from([1, 2, 4]))
def test_greedy_search_equals_the_loop(seed, length, max_expansions):
    model, frames = NumpyTransducer(seed, num_labels=4), random_frames(seed, length)
    limits = {"max_expansions": max_expansions, "max_labels_per_frame": 99.0}
    found = found_by(TransducerGreedySearch, model, frames, **limits)
    expected = greedy_by_loop(model, frames, max_expansions)
    assert (found.labels, found.frames) == (expected.labels, expected.frames)
    assert found.score == pytest.approx(expected.score, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 8]))
def test_a_score_is_never_above_that_of_the_labels(seed, beam):
    model, frames = NumpyTransducer(seed, num_labels=4), random_frames(seed, 6)
    limits = {"max_expansions": 3}
    greedy = found_by(TransducerGreedySearch, model, frames, **limits)
    wide = found_by(TransducerBeamSearch, model, frames, beam=beam, **limits)
    for found in (greedy, wide):
        assert found.score <= transducer_log_likelihood(model, frames, found.labels) + 1e-12
        assert len(found.frames) == len(found.labels)
        assert list(found.frames) == sorted(found.frames)


def test_a_beam_finds_more_than_the_greedy_search():
    gains = []
    for seed in range(40):
        model, frames = NumpyTransducer(seed, num_labels=5), random_frames(seed, 8)
        greedy, wide = (found_by(make, model, frames) for make in SEARCHES)
        assert wide.score > greedy.score
        gains.append(
            transducer_log_likelihood(model, frames, wide.labels)
            - transducer_log_likelihood(model, frames, greedy.labels)
        )
    assert sum(gain > 0.01 for gain in gains) > 30  # 38 of 40; no beam that drops anything can promise all
    assert np.mean(gains) > 5  # 11.3 over a hundred seeds


def test_beams_that_hold_everything_find_the_same_and_narrower_ones_no_more():
    for seed in range(15):
        model, frames = NumpyTransducer(seed, num_labels=3), random_frames(seed, 3)
        limits = {"max_expansions": 2, "max_labels_per_frame": 9.0}
        scores = [
            found_by(TransducerBeamSearch, model, frames, beam=beam, **limits).score
            for beam in (1, 2, 4, 127, 200)
        ]
        best = max(found.score for found in all_transducer(model, frames, max_expansions=2).values())
        assert scores[-2:] == pytest.approx([best] * 2, abs=1e-12)
        assert max(scores) <= best + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 12), max_size=5), st.sampled_from([1, 4]))
def test_any_cuts_give_the_same_bits(seed, cuts, beam):
    model, frames = NumpyTransducer(seed, num_labels=4), random_frames(seed, 12).astype(np.float32)
    for make, options in zip(SEARCHES, ({}, {"beam": beam}), strict=True):
        pieces = make(model, **options)
        for part in np.split(frames, sorted(cuts)):
            pieces.push(part)
            pieces.best()
        assert pieces.finish() == found_by(make, model, frames, **options)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 8]), st.booleans())
def test_the_predictor_is_asked_once_for_each_sequence(seed, beam, is_cut):
    model, frames = NumpyTransducer(seed, num_labels=4), random_frames(seed, 12)
    search = TransducerBeamSearch(model, beam=beam)
    for part in np.split(frames, range(1, 12)) if is_cut else [frames]:
        search.push(part)
    assert len(model.asked) == len(set(model.asked))
    assert len(model.asked) >= len(search.best().labels)


def nodes_of(search: TransducerBeamSearch) -> int:
    """Prefixes that the search still holds."""
    root = search._beam[0].prefix
    while root.parent is not None:
        root = root.parent
    waiting, count = [root], 0
    while waiting:
        prefix = waiting.pop()
        count += 1
        waiting += prefix.children.values()
    return count


def test_memory_follows_the_labels_found_and_not_what_was_tried():
    model, frames = NumpyTransducer(11, num_labels=6), 2 * random_frames(11, 600)
    search = TransducerBeamSearch(model, beam=4, max_expansions=3)
    for row in frames:
        search.push(row[None])
    found = search.finish()
    assert len(found.labels) > 100
    assert len(model.asked) > 4 * len(found.labels)
    assert nodes_of(search) < 1.2 * len(found.labels)


def test_a_score_gap_drops_what_is_far_behind_and_changes_nothing_when_wide():
    for seed in range(10):
        model, frames = NumpyTransducer(seed, num_labels=4), random_frames(seed, 8)
        all_kept = found_by(TransducerBeamSearch, model, frames, beam=8)
        assert found_by(TransducerBeamSearch, model, frames, beam=8, max_score_gap=1e9) == all_kept
        narrow = found_by(TransducerBeamSearch, model, frames, beam=8, max_score_gap=1e-9)
        assert narrow.score <= all_kept.score


@pytest.mark.parametrize("make", SEARCHES)
def test_a_model_that_never_says_blank_ends_at_the_limits(make):
    model, frames = NumpyTransducer(0, num_labels=3), random_frames(0, 6)
    model.output_bias[model.blank_index] = -50
    rare, few, default = (
        found_by(make, model, frames, **limits)
        for limits in ({"max_labels_per_frame": 0.5}, {"max_labels_per_frame": 99.0, "max_expansions": 2}, {})
    )
    if make is TransducerGreedySearch:
        assert rare.frames == (1, 3, 5)
        assert few.frames == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
        assert len(default.labels) == 24
    else:  # which pays for 6 blanks anyway, and may as well wait
        assert len(rare.labels) <= 3
        assert len(few.labels) <= 12
        assert len(default.labels) <= 24


def test_best_is_what_finish_would_give_after_the_frames_so_far():
    model, frames = NumpyTransducer(1, num_labels=4), random_frames(1, 6)
    for make in SEARCHES:
        search = make(model)
        for t, row in enumerate(frames):
            search.push(row[None])
            assert search.best() == found_by(make, model, frames[: t + 1])


@pytest.mark.parametrize("make", SEARCHES)
def test_no_frames_are_the_empty_hypothesis_and_certain(make):
    search = make(NumpyTransducer(0, num_labels=3))
    search.push(np.zeros((0, 5)))
    assert search.finish() == Hypothesis((), (), 0.0)


@pytest.mark.parametrize("make", SEARCHES)
def test_pushes_that_cannot_be_are_refused(make):
    search = make(NumpyTransducer(0, num_labels=3))
    search.push(random_frames(0, 4))
    before = search.best()
    bad = random_frames(1, 4)
    bad[3, 0] = math.nan
    with pytest.raises(ValueError, match="encoder frames of frame=7 are NaN or infinite"):
        search.push(bad)
    with pytest.raises(ValueError, match=r"encoder frames have shape=\(1, 4\); push \(number of frames, 5\)"):
        search.push(np.zeros((1, 4)))
    assert search.best() == before
    with pytest.raises(ValueError, match=r"have shape=\(4,\); push \(number of frames, any one width\)"):
        make(NumpyTransducer(0, num_labels=3)).push(np.zeros(4))
    assert search.finish() == before
    with pytest.raises(ValueError, match="push after finish: make a new search"):
        search.push(random_frames(0, 1))


class TooWide(NumpyTransducer):
    def join(self, frame, predicted):
        return np.concatenate([super().join(frame, predicted)] * 2, axis=1)


class Batched(NumpyTransducer):
    def predict(self, label, state):
        predicted, state = super().predict(label, state)
        return predicted[None], state


@pytest.mark.parametrize("make", SEARCHES)
def test_a_model_that_gives_other_shapes_or_no_numbers_is_named(make):
    with pytest.raises(ValueError, match=r"joiner gave logits of shape=\(1, 6\); it must give \(1, 3\)"):
        found_by(make, TooWide(0, num_labels=3), random_frames(0, 1))
    with pytest.raises(ValueError, match=r"predictor gave shape=\(1, 5\) for a label; it must give \(D,\)"):
        found_by(make, Batched(0, num_labels=3), random_frames(0, 1))
    model = NumpyTransducer(0, num_labels=3)
    search = make(model)
    search.push(random_frames(0, 2))
    model.output_bias[1] = math.nan
    with pytest.raises(ValueError, match="the joiner's logits at frame=2 are NaN or infinite"):
        search.push(random_frames(0, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam=0 keeps no hypothesis; use 1 or more"),
        ({"max_score_gap": -1.0}, "max_score_gap=-1.0 keeps no hypothesis; use a number above 0"),
        ({"max_expansions": -1}, "max_expansions=-1 emits no label; use 1 or more"),
        ({"max_labels_per_frame": 0.0}, "max_labels_per_frame=0.0 must be a number above 0"),
        ({"max_labels_per_frame": math.inf}, "max_labels_per_frame=inf must be a number above 0"),
    ],
)
def test_a_search_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransducerBeamSearch(NumpyTransducer(0, num_labels=3), **options)


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="num_labels=1 must be 2 or more: the blank and a label"):
        TransducerGreedySearch(NumpyTransducer(0, num_labels=1))
    with pytest.raises(ValueError, match="blank_index=3 is no label; use 0 to 2"):
        TransducerBeamSearch(NumpyTransducer(0, num_labels=3, blank_index=3))
