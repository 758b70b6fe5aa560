"""Features to mean 0 and deviation 1: equal to the loops, and never by what is yet to come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import fbank as reference

from subtone.speech import CausalNormalize, FrontEnd, GlobalNormalize, KaldiFbank, statistics_of
from subtone.speech.normalize import Normalizer

PRIOR = {"mean": (-8.0, 3.0), "deviation": (3.0, 0.25)}


def some_features(num_frames: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((num_frames, 2))
    return (values * (4, 0.5) + (-9, 4)).astype(np.float32)


@pytest.mark.parametrize("prior_frames", [0, 0.5, 100])
@pytest.mark.parametrize("prior", [{}, PRIOR])
def test_causal_equals_the_two_passes_of_the_reference(prior_frames, prior):
    features = some_features(60)
    found = Normalizer(CausalNormalize(prior_frames=prior_frames, **prior)).push(features)
    for index, column in enumerate(features.T.tolist()):
        mean, deviation = (prior[name][index] if prior else None for name in ("mean", "deviation"))
        expected = reference.normalized_so_far(column, prior_frames, mean, deviation)
        # Float64 sums of 60 squares below 400, of a variance above 1e-3 unless it is 0: then both are 0.
        np.testing.assert_allclose(found[:, index], expected, rtol=2.0**-23, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(num_frames=st.integers(1, 50), cuts=st.lists(st.integers(0, 50), max_size=6), is_given=st.booleans())
def test_causal_has_the_same_bits_wherever_it_is_cut(num_frames, cuts, is_given):
    normalize = CausalNormalize(prior_frames=2.5, **PRIOR if is_given else {})
    features = some_features(num_frames, seed=num_frames)
    normalizer = Normalizer(normalize)
    pieces = np.split(features, sorted(min(cut, num_frames) for cut in cuts))
    found = np.concatenate([normalizer.push(piece) for piece in pieces])
    assert np.array_equal(found, Normalizer(normalize).push(features))


def test_causal_comes_to_the_whole_utterances_normalization():
    """At the last frame, without a prior, all have been heard: only n beside n - 1 differs."""
    samples = np.random.default_rng(1).standard_normal(32000).astype(np.float32) * 0.1
    whole = FrontEnd()(samples)
    causal = FrontEnd(normalize=CausalNormalize(prior_frames=0))(samples)
    num_frames = len(whole)
    assert num_frames == 200
    np.testing.assert_allclose(
        causal[-1], whole[-1] * np.sqrt(num_frames / (num_frames - 1)), rtol=1e-4, atol=1e-4
    )


def test_causal_forgets_a_wrong_prior_as_frames_come():
    features = some_features(2000)
    right = Normalizer(CausalNormalize(prior_frames=0)).push(features)
    wrong = Normalizer(CausalNormalize(prior_frames=10, mean=(0.0, 0.0), deviation=(1.0, 1.0))).push(features)
    assert np.abs(wrong - right)[:10].max() > 1
    # Of 2010 frames 10 are the prior's: their share of the mean, and half of theirs of the variance.
    share, mean, variance = 10 / 2010, features.mean(axis=0), features.var(axis=0)
    stretched = share * (1 + mean**2) / variance / 2 * np.abs(right[-1])
    assert np.all(np.abs(wrong - right)[-1] <= 1.01 * (share * np.abs(mean) / np.sqrt(variance) + stretched))


def test_a_neutral_prior_makes_the_first_frame_zeros_and_does_not_hear_loudness():
    samples = np.random.default_rng(2).standard_normal(16000).astype(np.float32) * 0.1
    front_end = KaldiFbank(normalize=CausalNormalize())
    features = front_end(samples)
    assert not features[0].any()
    # Noise lies far above the floor, so a gain adds a constant to every log.
    np.testing.assert_allclose(front_end(samples * np.float32(0.25)), features, atol=1e-4)


def test_silence_and_a_first_frame_without_a_prior_become_zeros():
    for prior_frames in (0, 100):
        front_end = FrontEnd(normalize=CausalNormalize(prior_frames=prior_frames))
        assert not front_end(np.zeros(5000, np.float32)).any()


def test_features_that_hardly_vary_keep_their_digits_after_an_hour():
    """Sums of squares around a mean far away would lose the variance: 1e-4 beside 16, 360000 times."""
    values = np.float32(-16) + np.tile(np.float32([[0], [2**-10]]), (180000, 1))
    found = Normalizer(CausalNormalize(prior_frames=0)).push(values)
    np.testing.assert_allclose(np.abs(found[-2:]), 2**-11 / (2**-11 + 1e-5), rtol=1e-4)


def test_global_takes_the_statistics_of_a_corpus_to_mean_0_and_deviation_1():
    utterances = [some_features(count, seed=count) for count in (1, 30, 200)]
    mean, deviation = statistics_of(utterances)
    together = np.concatenate(utterances).astype(np.float64)
    np.testing.assert_allclose(mean, together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, together.std(axis=0), rtol=1e-12)
    normalizer = Normalizer(GlobalNormalize(mean=mean, deviation=deviation))
    found = np.concatenate([normalizer.push(features) for features in utterances])
    np.testing.assert_allclose(found, (together - mean) / deviation, rtol=1e-5, atol=1e-5)


def test_statistics_need_frames_that_differ():
    with pytest.raises(ValueError, match="features have no frame; give those of at least one utterance"):
        statistics_of([])
    with pytest.raises(ValueError, match="features have no frame"):
        statistics_of([np.zeros((0, 4), np.float32)])
    with pytest.raises(ValueError, match="feature 1 is the same in all 3 frames; give real speech"):
        statistics_of([np.float32([[1, 5], [2, 5], [3, 5]])])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prior_frames": -1}, "prior_frames=-1 must be a number of 0 or more"),
        ({"prior_frames": float("nan")}, "prior_frames=nan must be a number"),
        ({"prior_frames": True}, "prior_frames=True must be a number"),
        ({"mean": (0.0,)}, "a prior has mean and deviation, or neither"),
        ({"mean": (0.0, 1.0), "deviation": (1.0,)}, "mean has 2 features, deviation 1; give as many"),
        ({"mean": (), "deviation": ()}, r"mean=\(\) is no tuple of finite numbers"),
        ({"mean": [0.0], "deviation": (1.0,)}, r"mean=\[0.0\] is no tuple of finite numbers"),
        ({"mean": (0.0,), "deviation": (float("inf"),)}, r"deviation=\(inf,\) is no tuple"),
        ({"mean": ("0",), "deviation": (1.0,)}, "mean=.* is no tuple of finite numbers"),
        ({"mean": (0.0, 0.0), "deviation": (1.0, 0.0)}, "deviation=0.0 of feature 1 must be 1e-5 or more"),
    ],
)
def test_a_normalization_that_cannot_be_is_refused_with_the_reason(fields, message):
    with pytest.raises(ValueError, match=message):
        CausalNormalize(**fields)
    if "mean" in fields and "deviation" in fields:
        with pytest.raises(ValueError, match=message):
            GlobalNormalize(**fields)


def test_statistics_must_be_of_the_front_ends_features():
    with pytest.raises(ValueError, match="mean and deviation of 2 features, the front end num_mels=80"):
        KaldiFbank(normalize=CausalNormalize(**PRIOR))
