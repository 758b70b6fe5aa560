"""Rows as the sound comes: the whole sound's, bit for bit, however it is cut."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference import fbank as reference

from subtone.speech import AudioError, CausalNormalize, FrontEnd, GlobalNormalize, KaldiFbank, MelFrontEnd
from subtone.speech.framing import FrameStream, Framing

GIVEN = {"mean": tuple(np.linspace(-9, -6, 40).tolist()), "deviation": tuple(np.linspace(3, 4, 40).tolist())}
FRONT_ENDS = {
    "fbank": KaldiFbank(),
    "fbank stacked 3/3": KaldiFbank(num_mels=64, stack=3, stride=3),
    "fbank stacked 4/3, causal": KaldiFbank(num_mels=40, stack=4, stride=3, normalize=CausalNormalize()),
    "fbank global, overlapping": KaldiFbank(
        num_mels=40, stack=3, stride=1, normalize=GlobalNormalize(**GIVEN)
    ),
    "fbank, hop as long as the window": KaldiFbank(num_mels=40, window_ms=10, hop_ms=10),
    "log mel": FrontEnd(normalize="none"),
    "log mel causal with a prior": FrontEnd(
        num_mels=40, stack=2, stride=2, normalize=CausalNormalize(prior_frames=3.5, **GIVEN)
    ),
}
AT_EDGES = (0, 1, 79, 80, 119, 120, 121, 159, 160, 161, 200, 279, 280, 281, 399, 400, 401, 560, 16000)
every_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS.keys())


def a_sound(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples) + 0.02).astype(np.float32)


def streamed(front_end: MelFrontEnd, samples: np.ndarray, cuts: list[int]) -> np.ndarray:
    stream = front_end.stream()
    parts = [stream.push(part) for part in np.split(samples, sorted(cuts))]
    return np.concatenate([*parts, stream.finish()])


@every_front_end
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_streamed_rows_are_the_whole_sounds_however_it_is_cut(front_end, data):
    num_samples = data.draw(st.one_of(st.integers(1, 3000), st.sampled_from(AT_EDGES[1:-1])))
    cuts = data.draw(st.lists(st.integers(0, num_samples), max_size=12))
    samples = a_sound(num_samples, seed=num_samples)
    found = streamed(front_end, samples, cuts)
    assert found.dtype == np.float32
    assert found.shape == (front_end.num_frames(num_samples), front_end.num_features)
    assert np.array_equal(found, front_end(samples))


@every_front_end
@pytest.mark.parametrize("size", [1, 7, 160, 1600])
def test_streamed_rows_are_the_whole_sounds_in_pieces_of_one_size(front_end, size):
    samples = a_sound(1111 if size == 1 else 40000)
    found = streamed(front_end, samples, list(range(size, len(samples), size)))
    assert np.array_equal(found, front_end(samples))


@every_front_end
@pytest.mark.parametrize("num_samples", AT_EDGES)
def test_as_many_rows_come_as_the_formula_says(front_end, num_samples):
    found = streamed(front_end, a_sound(num_samples), [num_samples // 2])
    assert found.shape == (front_end.num_frames(num_samples), front_end.num_features)
    assert np.all(np.isfinite(found))


@every_front_end
def test_a_stream_of_no_samples_has_no_rows(front_end):
    empty = front_end.stream()
    assert empty.finish().shape == (0, front_end.num_features)
    pushed = front_end.stream()
    assert pushed.push(np.zeros(0, np.float32)).shape == (0, front_end.num_features)
    assert pushed.finish().shape == (0, front_end.num_features)


@every_front_end
def test_a_row_comes_as_soon_as_its_last_sample_is_there(front_end):
    framing = front_end.framing
    last = front_end.stack - 1
    needed = last * framing.hop_samples - framing.before_samples + framing.window_samples
    stream = front_end.stream()
    assert len(stream.push(a_sound(needed - 1))) == 0
    assert len(stream.push(a_sound(1))) == 1
    assert len(stream.push(a_sound(front_end.hop_samples - 1))) == 0
    assert len(stream.push(a_sound(1))) == 1


@every_front_end
def test_rows_that_came_are_not_changed_by_what_follows(front_end):
    samples, others = a_sound(8000), a_sound(8000, seed=1)
    one, other = front_end.stream(), front_end.stream()
    first = one.push(samples)
    kept = first.copy()
    one.push(others)
    one.finish()
    assert np.array_equal(first, kept)
    assert np.array_equal(front_end(np.concatenate([samples, others]))[: len(first)], other.push(samples))


def test_zeros_are_a_sound_like_any_other():
    for front_end in FRONT_ENDS.values():
        samples = np.zeros(1000, np.float32)
        assert np.array_equal(streamed(front_end, samples, [3, 500]), front_end(samples))


@every_front_end
def test_memory_does_not_grow_with_the_stream(front_end):
    stream, samples = front_end.stream(), a_sound(16000)
    stream.push(samples)
    tracemalloc.start()
    stream.push(samples)
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(30):
        stream.push(samples)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 30 s of sound are 1.9 MB; a frame that stayed of each push would be three times this.
    assert after - before < 10 * front_end.window_samples * 4


def test_a_large_push_is_not_kept_alive():
    tracemalloc.start()
    stream = KaldiFbank().stream()
    stream.push(a_sound(160000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 40000  # of 640 kB; tables of window and filters may have been made


def test_after_finish_a_stream_takes_and_gives_nothing():
    stream = KaldiFbank().stream()
    stream.push(a_sound(100))
    stream.finish()
    with pytest.raises(ValueError, match=r"push after finish: this sound has ended; take a new stream"):
        stream.push(a_sound(1))
    with pytest.raises(ValueError, match=r"finish after finish: this sound has ended"):
        stream.finish()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.array([0.0, np.nan]), "sample nan at 1.000 s; sound is finite"),
        (np.array([np.inf, 0.0], np.float32), "sample inf at 1.000 s"),
        (np.zeros((2, 5)), r"of shape \(2, 5\) are not one channel"),
        (np.zeros(0, np.int16), "samples are int16; pass floats"),
        ([0.0], "of shape list are not one channel"),
    ],
)
def test_what_is_no_sound_is_refused_and_the_stream_goes_on(bad, message):
    front_end, samples = KaldiFbank(), a_sound(20000)
    stream = front_end.stream()
    rows = [stream.push(samples[:15999])]
    with pytest.raises(AudioError, match=message):
        stream.push(bad)
    rows += [stream.push(samples[15999:]), stream.finish()]
    assert np.array_equal(np.concatenate(rows), front_end(samples))


@pytest.mark.parametrize("front_end", [FrontEnd(), KaldiFbank(normalize="per_feature")])
def test_what_needs_the_whole_utterance_cannot_stream_and_says_what_can(front_end):
    message = r"normalize='per_feature' needs the whole utterance and cannot stream; use CausalNormalize\(\)"
    with pytest.raises(ValueError, match=message):
        front_end.stream()


def test_doubles_stream_as_the_floats_they_are_rounded_to():
    samples = a_sound(3000)
    assert np.array_equal(streamed(KaldiFbank(), samples.astype(np.float64), [999]), KaldiFbank()(samples))


@settings(max_examples=60, deadline=None)
@given(
    window=st.integers(2, 12),
    hop=st.integers(1, 12),
    num_samples=st.integers(1, 40),
    is_mirrored=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
@example(window=9, hop=1, num_samples=1, is_mirrored=True, cuts=[])
@example(window=5, hop=4, num_samples=6, is_mirrored=True, cuts=[])  # the last frame is centred at S
def test_frames_are_those_of_the_formula(window, hop, num_samples, is_mirrored, cuts):
    hop = min(hop, window)
    framing = Framing(window_samples=window, hop_samples=hop, is_mirrored=is_mirrored)
    samples = np.arange(1, num_samples + 1, dtype=np.float32)
    stream = FrameStream(framing)
    pieces = np.split(samples, sorted(min(cut, num_samples) for cut in cuts))
    found = np.concatenate([*(stream.push(piece).copy() for piece in pieces), stream.finish()])
    middle = hop // 2 if is_mirrored else 0
    num_frames = (num_samples + hop // 2) // hop if is_mirrored else -(-num_samples // hop)
    expected = [
        [
            value_at(samples.tolist(), frame * hop + middle - window // 2 + place, is_mirrored)
            for place in range(window)
        ]
        for frame in range(num_frames)
    ]
    assert found.tolist() == expected


def value_at(values: list[float], at: int, is_mirrored: bool) -> float:
    if is_mirrored:
        return reference.mirrored_sample(values, at)
    return values[at] if 0 <= at < len(values) else 0.0
