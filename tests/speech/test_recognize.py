"""Long sounds in windows give what the whole gives, in bounded memory."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from subtone.speech import AudioError, CharTokenizer, FrontEnd, Recognizer, collapse_ctc, greedy_ctc
from subtone.speech.recognize import cut_windows, join_paths

LETTERS = CharTokenizer(tuple(" abcdefghijklmno"))
STEP = 320
"""Samples from one logit frame to the next: 10 ms hops, 2 frames a step."""


def toy_logits(features: np.ndarray) -> np.ndarray:
    """The loudest of 16 mel bands is the label, blank where none is loud; local in time.

    Each step sees its two frames and three on both sides, as a convolution would.
    """
    steps = -(-len(features) // 2)
    padded = np.pad(features, ((3, 2 * steps - len(features) + 3), (0, 0)), constant_values=-16.0)
    seen = sum(padded[shift : shift + 2 * steps : 2] for shift in range(8)) / np.float32(8)
    bands = seen.reshape(steps, 16, 4).max(axis=2)
    return np.concatenate([bands, np.full((steps, 1), -8.0, np.float32)], axis=1)


def recognizer(**change) -> Recognizer:
    settings_of_toy = {
        "front_end": FrontEnd(normalize="none"),
        "tokenizer": LETTERS,
        "frames_per_step": 2,
        "logits": toy_logits,
    }
    return Recognizer(**settings_of_toy | change)


WHOLE = recognizer(window_s=10_000.0)
SHORT = recognizer(window_s=2.0, overlap_s=0.6)


def spoken(num_samples: int, seed: int = 0) -> np.ndarray:
    """Tones of 0.1 s of 15 pitches with silences of 0.15 s between them, at 16 kHz."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(1600) / 16000
    pitches = rng.choice(np.geomspace(150, 7000, 15), size=num_samples // 4000 + 1)
    beats = np.zeros((len(pitches), 4000), np.float32)
    beats[:, 1200:2800] = 0.3 * np.sin(2 * np.pi * pitches[:, None] * time_s)
    return beats.ravel()[:num_samples]


def in_blocks(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def test_a_short_sound_is_the_front_end_the_model_and_greedy_ctc_and_nothing_else():
    samples = spoken(30 * 16000)
    logits = toy_logits(FrontEnd(normalize="none")(samples))
    expected = LETTERS.decode(greedy_ctc(logits, LETTERS.blank_index))
    assert len(expected) == 120
    assert recognizer().hear(samples) == " ".join(expected.split())


def test_the_features_of_a_short_sound_are_normalized_over_all_of_it():
    samples, seen = spoken(30 * 16000), []

    def remember(features: np.ndarray) -> np.ndarray:
        seen.append(features)
        return toy_logits(features)

    recognizer(front_end=FrontEnd(), logits=remember).hear(samples)
    assert len(seen) == 1
    assert np.array_equal(seen[0], FrontEnd()(samples))


# Around one window (2 s), two windows (3.4 s) and a third; the overlap and a step more or less.
BORDERS = [
    seconds * 16000 + more
    for seconds in (2, 3.4, 4.8, 0.6, 2.6)
    for more in (-STEP, -1, 0, 1, STEP - 1, STEP, STEP + 1)
]


@pytest.mark.parametrize("num_samples", [int(border) for border in BORDERS])
def test_a_joined_sound_is_heard_as_the_whole_around_every_border(num_samples):
    for shift in (0, 1777, 3001):  # the joints fall on a tone, on a silence, on an edge
        samples = spoken(num_samples + shift)[shift:]
        assert SHORT.hear(samples) == WHOLE.hear(samples) != ""


@settings(max_examples=40, deadline=None)
@given(num_samples=st.integers(1, 16000 * 12), seed=st.integers(0, 9))
def test_a_joined_sound_is_heard_as_the_whole(num_samples, seed):
    samples = spoken(num_samples, seed)
    assert SHORT.hear(samples) == WHOLE.hear(samples)


def test_a_file_is_heard_as_its_samples(tmp_path):
    samples = spoken(9 * 16000 + 123)
    soundfile.write(tmp_path / "sound.wav", samples, 16000, subtype="FLOAT")
    transcript = SHORT.transcript(tmp_path / "sound.wav")
    assert transcript.text == SHORT.hear_file(tmp_path / "sound.wav") == SHORT.hear(samples)
    assert transcript.duration_s == len(samples) / 16000


@settings(max_examples=300, deadline=None)
@given(num_samples=st.integers(1, 400), block=st.integers(1, 150), step=st.sampled_from([1, 2, 5]))
@example(num_samples=100, block=100, step=5)
@example(num_samples=101, block=1, step=5)
@example(num_samples=180, block=7, step=5)
@example(num_samples=181, block=7, step=5)
def test_windows_cover_every_sample_and_overlap_by_what_is_asked(num_samples, block, step):
    samples = np.arange(num_samples, dtype=np.float32)
    cut = list(cut_windows(in_blocks(samples, block), length=100, overlap=20, step=step))
    at_once = cut_windows([samples], length=100, overlap=20, step=step)
    assert [(start, len(window)) for start, window in cut] == [(start, len(win)) for start, win in at_once]
    stop = 20
    for start, window in cut:
        assert start % step == 0
        assert start == stop - 20  # each begins in the overlap with the one before it
        assert 1 <= len(window) <= 100
        assert np.array_equal(window, samples[start : start + len(window)])
        stop = start + len(window)
    assert stop == num_samples
    # As few as can be, and none is a scrap: (100 + 1 + 20) / 2 less a step at the least.
    assert len(cut) == (1 if num_samples <= 100 else -(-(num_samples - 20) // 80))
    assert num_samples <= 100 or min(len(window) for _, window in cut) >= 60 - step


@given(
    left=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    right=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    data=st.data(),
)
def test_joined_paths_hold_every_step_once_and_cut_at_a_common_blank_nearest_the_middle(left, right, data):
    shared = data.draw(st.integers(0, min(len(left), len(right))))
    start = len(left) - shared
    joined = join_paths(np.array(left), np.array(right), start, blank_index=2).tolist()
    assert len(joined) == start + len(right)
    blanks = [step for step in range(shared) if left[start + step] == right[step] == 2]
    cut = min(blanks, key=lambda step: abs(step - shared // 2), default=shared // 2)
    assert joined == left[: start + cut] + right[cut:]


def test_a_label_that_one_window_hears_later_than_the_other_is_kept_once():
    left, right = np.array([9, 9, 9, 9, 1, 9, 9, 9]), np.array([9, 9, 9, 9, 9, 1, 9, 9])
    assert collapse_ctc(join_paths(left, right, 0, blank_index=9), blank_index=9) == [1]


@pytest.mark.parametrize("samples", [np.zeros(1), np.array([0.5]), np.zeros(16000 * 35), np.zeros(2)])
def test_silence_and_a_single_sample_give_an_empty_transcript_without_a_warning(samples):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for front_end in (FrontEnd(), FrontEnd(normalize="none")):
            always_blank = recognizer(front_end=front_end, logits=lambda x: toy_logits(np.full_like(x, -16)))
            assert always_blank.hear(samples.astype(np.float32)) == ""


def test_spaces_at_the_ends_and_doubled_ones_are_dropped():
    path = np.array([0, 16, 1, 16, 0, 16, 0, 2, 0])
    talks = recognizer(logits=lambda features: np.eye(17, dtype=np.float32)[path])
    assert talks.hear(np.zeros(9 * STEP, np.float32)) == "a b"


def test_ten_minutes_are_heard_in_bounded_memory(tmp_path):
    path = tmp_path / "long.wav"
    minute = spoken(60 * 16000)
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(10):
            file.write(minute)
    hears = recognizer()
    tracemalloc.start()
    transcript = hears.transcript(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert transcript.duration_s == 600
    assert transcript.text == " ".join((LETTERS.decode(heard_at_once(minute)) * 10).split())
    # Twice two windows of sound while a block is appended (2 * 3.6 MB), one padded (1.9 MB), its
    # features and the toy's copies (4 * 0.8 MB): 12.3 MB; the file's samples alone are 38 MB.
    assert peak_bytes < 15e6


def heard_at_once(samples: np.ndarray) -> list[int]:
    return greedy_ctc(toy_logits(FrontEnd(normalize="none")(samples)), LETTERS.blank_index)


def test_a_bad_sample_in_a_long_array_is_named_by_its_own_time():
    samples = np.zeros(16000 * 40, np.float32)
    samples[16000 * 39] = np.nan
    with pytest.raises(AudioError, match=r"sample nan at 39\.000 s"):
        recognizer().hear(samples)


def test_logits_that_do_not_fit_the_labels_or_steps_are_refused():
    with pytest.raises(ValueError, match=r"logits of shape \(100, 17\) for 100 frames, not \(50, 17\)"):
        recognizer(logits=lambda x: np.zeros((len(x), 17))).hear(np.zeros(16000))
    with pytest.raises(ValueError, match=r"check frames_per_step=2 and the labels"):
        recognizer(logits=lambda x: np.zeros((50, 29))).hear(np.zeros(16000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames_per_step": 0}, "frames_per_step=0 must be 1 or more"),
        ({"overlap_s": 0.0}, r"overlap_s=0\.0 must hold a step of 320 samples"),
        ({"overlap_s": 16.0}, r"overlap_s=16\.0 must hold .* be at most half of window_s=30\.0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        recognizer(**change)
