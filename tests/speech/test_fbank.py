"""KaldiFbank: equal to its description, to Kaldi's own code and to lhotse's, at the edges too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from tests.reference import fbank as reference

from subtone.speech import (
    AudioError,
    CausalNormalize,
    CharTokenizer,
    FrontEnd,
    GlobalNormalize,
    KaldiFbank,
    Recognizer,
    front_end_from_json,
)

EPSILON = 2.0**-23
FBANK = KaldiFbank()
AT_8_KHZ = KaldiFbank(rate_hz=8000, num_mels=40, high_hz=3800, fft_size=256)


def a_sound(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise under a slow tone, beside an offset."""
    time_s = np.arange(num_samples) / 16000
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.05 * noise + 0.1 * np.sin(2 * np.pi * 440 * time_s) + 0.03).astype(np.float32)


def exact_powers(front_end: KaldiFbank, samples: np.ndarray) -> np.ndarray:
    """Power spectra (T, bins) in float64, of frames cut one by one."""
    window, hop = front_end.window_samples, front_end.rate_hz * front_end.hop_ms // 1000
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))
    values, spectra = samples.tolist(), []
    for frame in range((len(values) + hop // 2) // hop):
        start = frame * hop + hop // 2 - window // 2
        heard = np.array([reference.mirrored_sample(values, start + place) for place in range(window)])
        centred = heard - heard.mean()
        emphasized = centred - 0.97 * np.concatenate([centred[:1], centred[:-1]])
        spectra.append(np.abs(np.fft.rfft(emphasized * hann**0.85, front_end.fft_size)) ** 2)
    return np.array(spectra).reshape(-1, front_end.fft_size // 2 + 1)


def rounding_bound(front_end: KaldiFbank, samples: np.ndarray) -> np.ndarray:
    """How far float32 may put features (T, num_mels) from exact ones.

    A transform of 2**9 points errs by about 9 roundings of the frame's loudest bin; what comes
    before it by 3 of the largest sample, in each of 400 samples, which add up as their root, 20.
    An error e of every amplitude moves the sum of w p by at most 2 e sqrt(sum w) sqrt(sum w p)
    (Cauchy and Schwarz); below the floor nothing moves. Sum and logarithm: 64 roundings more.
    """
    powers, filters = exact_powers(front_end, samples), front_end.mel_filters.astype(np.float64)
    error = 9 * np.sqrt(powers.max(axis=1, keepdims=True)) + 3 * 20 * np.abs(samples).max()
    sums = np.maximum(powers @ filters.T, 2.0**-23)
    return EPSILON * (2 * error * np.sqrt(filters.sum(axis=1)) / np.sqrt(sums) + 64)


def mel_bound(front_end: KaldiFbank, samples: np.ndarray) -> np.ndarray:
    """How far mel frequencies in float32, as the others have them, may put features from ours.

    A mel up to 4096 is rounded by 2**-13 in each of 4 operations, a corner in 2 and their
    difference in 2. That, over the mels between two corners, is what each weight is off by.
    """
    powers, filters = exact_powers(front_end, samples), front_end.mel_filters.astype(np.float64)
    low, high = (1127 * np.log1p(hz / 700) for hz in (front_end.low_hz, front_end.high_hz))
    per_weight = 8 * 2.0**-13 / ((high - low) / (front_end.num_mels + 1))
    return per_weight * (powers @ (filters > 0).T) / np.maximum(powers @ filters.T, 2.0**-23)


def peers_bound(front_end: KaldiFbank, samples: np.ndarray) -> np.ndarray:
    """How far another float32 implementation may be from ours."""
    return 2 * rounding_bound(front_end, samples) + mel_bound(front_end, samples)


def test_features_equal_the_loop_that_reads_like_the_description():
    samples = a_sound(500)
    filters = [reference.mel_filter(index, 80, 16000, 512, 20, 7600) for index in range(80)]
    expected = np.array([reference.log_mel(samples.tolist(), frame, filters) for frame in range(3)])
    found = FBANK(samples)
    assert found.shape == (3, 80)
    assert found.dtype == np.float32
    assert np.all(np.abs(found - expected) <= rounding_bound(FBANK, samples))


def test_mel_filters_equal_the_loop():
    for front_end in (FBANK, AT_8_KHZ, KaldiFbank(num_mels=23, low_hz=0, high_hz=8000)):
        sizes = (
            front_end.num_mels,
            front_end.rate_hz,
            front_end.fft_size,
            front_end.low_hz,
            front_end.high_hz,
        )
        expected = [reference.mel_filter(index, *sizes) for index in range(front_end.num_mels)]
        # A weight is a difference of mels below 4096 by at least 20: some float64 roundings, then float32's.
        np.testing.assert_allclose(front_end.mel_filters, expected, rtol=EPSILON, atol=4096 * 2.0**-50)


@pytest.mark.parametrize("num_samples", [79, 80, 200, 321, 400, 4000])
def test_features_equal_kaldis_own(num_samples):
    """tests/golden/fbank.npz was made by kaldi-native-fbank, by tests/golden/make_fbank.py."""
    with np.load(Path(__file__).parents[1] / "golden" / "fbank.npz") as golden:
        samples = golden["sound"][:num_samples].astype(np.float32) / 32768
        expected = golden[f"first_{num_samples}"]
    found = FBANK(samples)
    assert found.shape == expected.shape == (FBANK.num_frames(num_samples), 80)
    assert np.all(np.abs(found - expected) <= peers_bound(FBANK, samples))


def test_features_of_silence_and_at_8_khz_equal_kaldis_own():
    with np.load(Path(__file__).parents[1] / "golden" / "fbank.npz") as golden:
        samples, silence, at_8_khz = (golden[name] for name in ("sound", "silence", "at_8_khz"))
    assert np.array_equal(FBANK(np.zeros(400, np.float32)), silence)
    samples = samples.astype(np.float32) / 32768
    assert np.all(np.abs(AT_8_KHZ(samples) - at_8_khz) <= peers_bound(AT_8_KHZ, samples))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # lhotse's, of NumPy 2
@pytest.mark.parametrize("num_samples", [400, 8000, 8079, 8080])
def test_features_equal_those_of_lhotse(num_samples):
    pytest.importorskip("torch")
    lhotse = pytest.importorskip("lhotse")
    samples = a_sound(num_samples)
    expected = lhotse.Fbank().extract(samples, 16000)
    found = FBANK(samples)
    assert found.shape == expected.shape
    assert np.all(np.abs(found - expected) <= peers_bound(FBANK, samples))


@pytest.mark.parametrize(("num_samples", "num_frames"), [(1, 0), (79, 0), (80, 1), (239, 1), (240, 2)])
def test_there_is_a_frame_for_each_hop_more_than_half_full(num_samples, num_frames):
    assert FBANK(a_sound(num_samples)).shape == (num_frames, 80)
    assert FBANK.num_frames(num_samples) == num_frames


def test_silence_is_the_floor_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = FBANK(np.zeros(1000, np.float32))
    assert np.all(features == np.log(np.float32(2.0**-23)))


def test_a_constant_offset_changes_features_by_rounding_only():
    samples = a_sound(4000)
    features = FBANK(samples)
    bound = 2 * rounding_bound(FBANK, samples + np.float32(0.25))
    assert np.all(np.abs(FBANK(samples + np.float32(0.25)) - features) <= bound)


def test_128_mels_need_a_longer_transform():
    with pytest.raises(ValueError, match=r"num_mels=128 leaves mel filter .* larger fft_size"):
        KaldiFbank(num_mels=128)
    assert KaldiFbank(num_mels=128, fft_size=1024, stack=4, stride=3).num_features == 512


STATISTICS = {"mean": (-8.0,) * 80, "deviation": (3.5,) * 80}


@pytest.mark.parametrize(
    "front_end",
    [
        FBANK,
        AT_8_KHZ,
        KaldiFbank(stack=4, stride=3),
        KaldiFbank(normalize="per_feature"),
        KaldiFbank(normalize=GlobalNormalize(**STATISTICS)),
        KaldiFbank(normalize=CausalNormalize(prior_frames=50)),
        KaldiFbank(normalize=CausalNormalize(**STATISTICS), stack=3, stride=3),
        FrontEnd(),
        FrontEnd(stack=3, stride=3),
        FrontEnd(normalize=CausalNormalize()),
    ],
    ids=repr,
)
def test_json_gives_the_same_front_end_back(front_end):
    document = json.loads(json.dumps(front_end.to_json()))
    assert front_end_from_json(document) == front_end
    assert type(front_end).from_json(document) == front_end
    assert hash(front_end_from_json(document)) == hash(front_end)


def test_a_log_mel_front_end_of_old_is_written_and_read_as_it_was():
    keys = "rate_hz window_ms hop_ms fft_size num_mels low_hz high_hz preemphasis log_floor normalize"
    document = FrontEnd(num_mels=80).to_json()
    assert list(document) == keys.split()
    assert front_end_from_json(document) == FrontEnd(num_mels=80)
    assert FrontEnd(stack=2).to_json() == {"kind": "log_mel", **FrontEnd().to_json(), "stack": 2, "stride": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mfcc"}, "the front end has kind='mfcc'; use log_mel or fbank"),
        ({"kind": ["fbank"]}, r"has kind=\['fbank'\]; use"),
        ({"dither": 1}, "unknown keys .'dither'."),
        ({"rate_hz": 22050}, "window_ms=25 is not a whole number of samples at rate_hz=22050"),
        ({"rate_hz": 8000}, "high_hz=7600.0 must ascend within 0..4000"),
        ({"fft_size": 256}, "fft_size=256 must be even, hold a window of 400 samples"),
        ({"stack": 0}, "stack=0 must lie in 1..64"),
        ({"stack": 1.0}, "stack=1.0 is not a finite int"),
        ({"stack": 3, "stride": 4}, "stride=4 must lie in 1..3: a larger one skips frames"),
        ({"stride": 0}, "stride=0 must lie in 1..1"),
        ({"normalize": "global"}, r"normalize='global' is unknown; use per_feature or none, GlobalNormalize"),
        ({"normalize": {"kind": "all"}}, "normalize has kind='all'; use global or causal"),
        ({"normalize": {"kind": "causal"}}, "normalize of kind='causal' has keys .'kind'., not kind and"),
        ({"normalize": [1]}, r"normalize=\[1\] is unknown"),
    ],
)
def test_a_front_end_that_cannot_be_is_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        front_end_from_json({**FBANK.to_json(), **change})


def test_a_document_of_another_kind_or_with_a_missing_key_is_refused():
    document = FBANK.to_json()
    with pytest.raises(ValueError, match="the front end has kind='fbank', not 'log_mel'"):
        FrontEnd.from_json(document)
    with pytest.raises(ValueError, match="the front end has kind='log_mel', not 'fbank'"):
        KaldiFbank.from_json(FrontEnd().to_json())
    del document["stack"]
    with pytest.raises(ValueError, match=r"lacks \['stack'\]"):
        front_end_from_json(document)
    with pytest.raises(ValueError, match="not a JSON object"):
        front_end_from_json([])


@pytest.mark.parametrize(
    "bad", [np.zeros(0), np.zeros((2, 5)), np.array([0.0, np.nan]), np.zeros(3, np.int16)]
)
def test_what_is_no_sound_is_refused(bad):
    with pytest.raises(AudioError):
        FBANK(bad)


def test_a_sound_too_short_for_a_frame_has_no_words():
    def never(features):
        raise AssertionError("there is nothing to hear")

    labels = CharTokenizer((" ", "a"))
    recognizer = Recognizer(front_end=FBANK, tokenizer=labels, frames_per_step=2, logits=never)
    assert recognizer.hear(a_sound(79)) == ""
