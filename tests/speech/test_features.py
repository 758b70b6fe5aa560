"""The front end: equal to its description, to torch's transform and to the given model's matrices."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import features as reference

from subtone.speech import AudioError, FrontEnd

EPSILON = 2.0**-23
FRONT_END = FrontEnd()
WITHOUT_NORM = FrontEnd(normalize="none")


def a_sound(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise under a slow tone: every mel filter gets power, the loudest frame 40 dB above the softest."""
    time_s = np.arange(num_samples) / 16000
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    loudness = 10 ** (-1 + np.sin(2 * np.pi * 3 * time_s))
    return ((noise * 0.05 + 0.1 * np.sin(2 * np.pi * 440 * time_s)) * loudness).astype(np.float32)


def rounding_bound(features: np.ndarray) -> np.ndarray:
    """How far float32 may put log-mel features (T, num_mels) from exact ones.

    A transform of 2**9 points errs by about 9 roundings of the frame's whole amplitude; a power,
    twice that of its bin. So a feature errs by 2 * 9 * EPSILON * the loudest amplitude of its
    frame over its own, plus the rounding of sum and logarithm.
    """
    loudest = features.max(axis=1, keepdims=True)
    return EPSILON * (18 * np.exp((loudest - features) / 2) + 64)


def test_features_equal_the_loop_that_reads_like_the_description():
    samples = a_sound(900)
    filters = [reference.mel_filter(index, 64, 16000, 512, 0, 8000) for index in range(64)]
    expected = [reference.log_mel(samples.tolist(), frame, filters) for frame in range(6)]
    found = WITHOUT_NORM(samples)
    assert found.shape == (6, 64)
    assert found.dtype == np.float32
    assert np.all(np.abs(found - expected) <= rounding_bound(np.array(expected)))
    # Divided by a deviation that is above 0.1 in every column here.
    normalized = np.array(reference.normalize(expected))
    assert np.std(expected, axis=0).min() > 0.1
    bound = 10 * 2 * rounding_bound(np.array(expected)).max() * (1 + np.abs(normalized))
    assert np.all(np.abs(FRONT_END(samples) - normalized) <= bound)


def test_mel_filters_equal_the_loop():
    for sizes in (
        (64, 16000, 512, 0.0, 8000.0),
        (80, 16000, 512, 20.0, 7600.0),
        (40, 8000, 256, 100.0, 4000.0),
    ):
        num_mels, rate_hz, fft_size, low_hz, high_hz = sizes
        front_end = FrontEnd(
            num_mels=num_mels, rate_hz=rate_hz, fft_size=fft_size, low_hz=low_hz, high_hz=high_hz
        )
        expected = [reference.mel_filter(index, *sizes) for index in range(num_mels)]
        # Equal corners, computed in another order: a few float64 roundings, then float32's half.
        np.testing.assert_allclose(front_end.mel_filters, expected, rtol=EPSILON, atol=1e-12)


def test_features_equal_torch_stft_in_float64():
    torch = pytest.importorskip("torch")
    samples = a_sound(16000)
    x = torch.from_numpy(samples).double()
    x = torch.cat([x[:1], x[1:] - 0.97 * x[:-1]])
    window = torch.hann_window(320, periodic=False, dtype=torch.float64)
    spectrum = torch.stft(x, 512, 160, 320, window, center=True, pad_mode="constant", return_complex=True)
    filters = torch.from_numpy(FRONT_END.mel_filters.copy()).double()
    log_mel = torch.log(filters @ spectrum.abs() ** 2 + 2.0**-24).T.numpy()
    assert len(log_mel) == 101  # torch adds a frame centred beyond the last sample
    assert np.all(np.abs(WITHOUT_NORM(samples) - log_mel[:100]) <= rounding_bound(log_mel[:100]))


def test_features_equal_the_golden_ones():
    """tests/golden/front_end.npz holds `sound` (int16) and `features`.

    They were made once by torch.stft in float64 with the window and the mel matrix inside
    quartznet15x5-en.nemo, by the recipe in tests/golden/make_front_end.py.
    """
    with np.load(Path(__file__).parents[1] / "golden" / "front_end.npz") as golden:
        samples, expected = golden["sound"].astype(np.float32) / 32768, golden["features"]
    found = FRONT_END(samples)
    assert found.shape == expected.shape == (50, 64)
    log_mel = WITHOUT_NORM(samples)
    # The model's window is torch's float32 one, 1.5e-7 = 1.25 roundings away from the exact one.
    bound = (rounding_bound(log_mel) * 2 + 4 * EPSILON) / log_mel.std(axis=0) * (1 + np.abs(expected))
    assert np.all(np.abs(found - expected) <= bound)


@pytest.mark.speech
def test_window_and_mel_filters_are_those_inside_the_given_model(shared):
    torch = pytest.importorskip("torch")
    with tarfile.open(shared / "models" / "quartznet15x5-en.nemo") as archive:
        member = next(name for name in archive.getnames() if name.endswith("model_weights.ckpt"))
        state = torch.load(io.BytesIO(archive.extractfile(member).read()), weights_only=True)
    window = state["preprocessor.featurizer.window"].numpy()
    filters = state["preprocessor.featurizer.fb"].numpy()[0]
    # torch computes the Hann window in float32: its phase is off by up to 2 pi * EPSILON / 2, at
    # a slope of 1/2, and the result is rounded.
    assert np.abs(FRONT_END.window - window).max() <= EPSILON * (np.pi / 2 + 1)
    np.testing.assert_allclose(FRONT_END.mel_filters, filters, rtol=EPSILON)


@pytest.mark.parametrize(("num_samples", "num_frames"), [(1, 1), (159, 1), (160, 1), (161, 2), (16000, 100)])
def test_there_are_ceil_of_samples_by_hop_frames(num_samples, num_frames):
    assert FRONT_END(a_sound(num_samples)).shape == (num_frames, 64)
    assert FRONT_END.num_frames(num_samples) == num_frames


@pytest.mark.parametrize("num_samples", [1, 2, 160, 161, 16000])
def test_silence_becomes_zeros_without_a_warning(num_samples):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = FRONT_END(np.zeros(num_samples, np.float32))
    # The log floor less its own mean, by the deviation + 1e-5: one rounding of 16.6 by 1e-5.
    assert np.abs(features).max() <= 16.7 * EPSILON / 1e-5


def test_one_frame_alone_becomes_zeros_and_not_nan():
    assert not FRONT_END(np.array([0.7], np.float32)).any()


def test_normalized_features_have_mean_0_and_unbiased_deviation_1():
    features = FRONT_END(a_sound(16000)).astype(np.float64)
    assert np.abs(features.mean(axis=0)).max() <= 16.7 * EPSILON / 0.1
    np.testing.assert_allclose(features.std(axis=0, ddof=1), 1, rtol=1e-4)  # 1e-5 beside a deviation > 0.1


@settings(max_examples=25, deadline=None)
@given(num_samples=st.integers(1, 50000), seed=st.integers(0, 3))
def test_a_frame_depends_on_its_own_window_only(num_samples, seed):
    """Cutting the sound after a frame's window changes nothing: chunks of frames leave no seam."""
    samples = a_sound(num_samples, seed)
    frame = seed * (FRONT_END.num_frames(num_samples) - 1) // 3
    whole = WITHOUT_NORM(samples)
    alone = WITHOUT_NORM(samples[: frame * 160 + 161])
    assert np.array_equal(alone[frame], whole[frame])


def test_the_same_sound_gives_the_same_bits():
    samples = a_sound(50000)
    assert np.array_equal(FRONT_END(samples), FRONT_END(samples.copy()))
    assert np.array_equal(FRONT_END(samples), FRONT_END(samples.astype(np.float64)))


def test_the_sound_is_left_as_it_was():
    samples = a_sound(1000)
    before = samples.copy()
    FRONT_END(samples)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize(
    "bad", [np.zeros(0), np.zeros((2, 5)), np.array([0.0, np.nan]), np.zeros(3, np.int16)]
)
def test_what_is_no_sound_is_refused(bad):
    with pytest.raises(AudioError):
        FRONT_END(bad)


def test_json_gives_the_same_front_end_back():
    front_end = FrontEnd(num_mels=80, window_ms=25, low_hz=20, normalize="none")
    assert FrontEnd.from_json(json.loads(json.dumps(front_end.to_json()))) == front_end


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dither": 1e-5}, "unknown keys .'dither'."),
        ({"rate_hz": "16000"}, "rate_hz='16000' is not a finite int"),
        ({"rate_hz": 16000.0}, "rate_hz=16000.0 is not a finite int"),
        ({"num_mels": True}, "num_mels=True is not a finite int"),
        ({"high_hz": float("nan")}, "high_hz=nan is not a finite float"),
        ({"high_hz": 10**400}, "high_hz=1.* is not a finite float"),
        ({"normalize": None}, "normalize=None is not a finite str"),
        ({"rate_hz": 100}, "rate_hz=100 is no rate for speech; use 4000 to 384000"),
        ({"rate_hz": 22050}, "hop_ms=10 is not a whole number of samples at rate_hz=22050"),
        ({"hop_ms": 0}, "hop_ms=0 is not a whole number of samples"),
        ({"window_ms": 40}, "fft_size=512 must be even, hold a window of 640 samples"),
        ({"fft_size": 2**20}, "fft_size=1048576 must be even"),
        ({"fft_size": 513}, "fft_size=513 must be even"),
        ({"hop_ms": 21}, "hop_ms=21 skips sound"),
        ({"num_mels": 0}, "num_mels=0 must lie in 1..256"),
        ({"num_mels": 256}, "leaves mel filter .* use fewer filters"),
        ({"low_hz": 8000.0}, "low_hz=8000.0 and high_hz=8000.0 must ascend within 0..8000"),
        ({"high_hz": 8001.0}, "must ascend within 0..8000"),
        ({"preemphasis": 1.0}, "preemphasis=1.0 must lie in"),
        ({"log_floor": 0.0}, "log_floor=0.0 must lie in"),
        ({"normalize": "all"}, "normalize='all' is unknown; use per_feature or none"),
    ],
)
def test_a_front_end_that_cannot_be_is_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        FrontEnd.from_json({**FRONT_END.to_json(), **change})


def test_a_front_end_with_a_missing_key_or_of_another_kind_is_refused():
    document = FRONT_END.to_json()
    del document["hop_ms"]
    with pytest.raises(ValueError, match=r"lacks \['hop_ms'\]"):
        FrontEnd.from_json(document)
    with pytest.raises(ValueError, match="not a JSON object"):
        FrontEnd.from_json([])
