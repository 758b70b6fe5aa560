"""Sound from files: every format and rate, by blocks, and one clear line for what is no sound."""

from __future__ import annotations

import re
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile
import soxr

from subtone.speech import AudioError, audio_blocks, check_samples, read_audio


def a_tone(seconds: float, rate_hz: int = 16000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def loudest_hz(samples: np.ndarray, rate_hz: int = 16000) -> float:
    return np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples))))) * rate_hz / len(samples)


FORMATS = {
    "wav": {"subtype": "PCM_16"},
    "flac": {},
    "ogg": {"subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (48000, 2)])
def test_every_format_is_heard_as_the_same_tone(tmp_path, suffix, rate_hz, channels):
    path = tmp_path / f"tone.{suffix}"
    sound = np.repeat(a_tone(1.0, rate_hz)[:, None], channels, axis=1)
    soundfile.write(path, sound, rate_hz, **FORMATS[suffix])
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - 16000) <= 1152  # at most the padding of one mp3 frame
    assert loudest_hz(samples) == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(samples[2000:14000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_pcm_is_read_exactly(tmp_path):
    levels = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "all.wav", levels, 16000)
    assert np.array_equal(read_audio(tmp_path / "all.wav"), levels / np.float32(32768))


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_are_mixed_to_their_mean(tmp_path, channels):
    sound = np.random.default_rng(0).uniform(-1, 1, (1000, channels)).astype(np.float32)
    soundfile.write(tmp_path / "many.wav", sound, 16000, subtype="FLOAT")
    expected = sound.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(read_audio(tmp_path / "many.wav"), expected, atol=channels * 2.0**-24)


@pytest.mark.parametrize("rate_hz", [4000, 8000, 11025, 22050, 44100, 48000, 192000, 384000])
def test_blocks_resample_as_the_whole_does(tmp_path, rate_hz):
    path = tmp_path / "sound.wav"
    sound = np.random.default_rng(0).standard_normal(300_001).astype(np.float32) * np.float32(0.1)
    soundfile.write(path, sound, rate_hz, subtype="FLOAT")
    blocks = list(audio_blocks(path))
    assert len(blocks) > 1
    assert all(len(block) for block in blocks)
    expected = soxr.resample(sound, rate_hz, 16000)
    assert np.array_equal(np.concatenate(blocks), expected)
    assert np.array_equal(read_audio(path), expected)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_the_shortest_sounds_have_a_sample_at_any_rate(tmp_path, rate_hz, num_samples):
    soundfile.write(tmp_path / "short.wav", np.full(num_samples, 0.5, np.float32), rate_hz, subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = read_audio(tmp_path / "short.wav")
    assert abs(len(samples) - num_samples * 16000 / rate_hz) < 1
    assert len(samples) >= 1
    assert np.isfinite(samples).all()


def test_silence_is_a_sound(tmp_path):
    soundfile.write(tmp_path / "silence.flac", np.zeros(50000, np.float32), 44100)
    samples = read_audio(tmp_path / "silence.flac")
    assert len(samples) > 18000
    assert not samples.any()


def test_ten_minutes_are_read_in_the_memory_of_seconds(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 48000, 2) as file:
        for _ in range(600):
            file.write(np.repeat(a_tone(1.0, 48000)[:, None], 2, axis=1))
    tracemalloc.start()
    num_samples = sum(len(block) for block in audio_blocks(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_samples == 600 * 16000
    assert peak_bytes < 4e6  # a handful of 0.5 MB blocks, where the whole takes 230 MB


@pytest.mark.speech
def test_opus_recordings_last_as_long_as_their_manifest_says(shared):
    path = shared / "data" / "librispeech" / "dev-clean-300" / "1272" / "1272-128104-0006.opus"
    assert len(read_audio(path)) == pytest.approx(5.64 * 16000, abs=80)


def complaint(path, rate_hz=16000) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(path, rate_hz)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_missing_file_is_named(tmp_path):
    assert complaint(tmp_path / "no.wav") == "no such file; check the path"
    assert complaint(tmp_path) == "is not a file; name a sound file"


@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a.flac", "a.txt", "a"])
@pytest.mark.parametrize("content", [b"", b"this is a letter, not a sound", bytes(1000)])
def test_what_is_not_audio_is_said_to_be_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "is not sound that can be read here" in complaint(tmp_path / name)


def test_a_file_without_samples_is_said_to_be_empty(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 44100)
    assert complaint(tmp_path / "empty.wav").startswith("has no samples")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
@pytest.mark.parametrize("index", [0, 200_000])
def test_the_first_bad_sample_is_named_by_its_time(tmp_path, value, index):
    sound = np.zeros((250_000, 2), np.float32)
    sound[index:, 1] = value
    soundfile.write(tmp_path / "bad.wav", sound, 8000, subtype="FLOAT")
    message = complaint(tmp_path / "bad.wav")
    assert f"sample {np.float32(value)} at {index / 8000:.3f} s; sound is finite" in message


@pytest.mark.parametrize("rate_hz", [1, 100, 3999, 400_000])
def test_a_rate_that_is_none_for_speech_is_refused(tmp_path, rate_hz):
    soundfile.write(tmp_path / "odd.wav", np.zeros(100, np.float32), rate_hz)
    assert f"has a rate of {rate_hz} Hz; speech needs 4000 to 384000" in complaint(tmp_path / "odd.wav")


def test_a_flac_cut_in_the_middle_is_said_to_be_damaged(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 100_000), 16000)
    path.write_bytes(path.read_bytes()[:100_000])
    assert complaint(path).startswith("is damaged (")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([0.0, 1.0], "samples of shape list are not one channel"),
        (np.zeros((2, 3), np.float32), "samples of shape (2, 3) are not one channel"),
        (np.zeros((), np.float32), "samples of shape () are not one channel"),
        (np.zeros(0, np.float32), "samples are empty"),
        (np.zeros(3, np.int16), "samples are int16; pass floats within -1 to 1 (int16: divide by 32768)"),
        (np.zeros(3, np.complex64), "samples are complex64; pass floats"),
        (np.array([0, 0, 0, 0, np.nan, np.inf], np.float32), "samples: sample nan at 0.500 s"),
        (np.array([0, 1e300]), "samples: sample 1e+300 at 0.125 s"),
    ],
)
def test_an_array_that_is_no_sound_is_refused(samples, message):
    with pytest.raises(AudioError, match=re.escape(message)):
        check_samples(samples, rate_hz=8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_samples_become_float32(dtype):
    checked = check_samples(np.array([0.5, -1.0, 1.5], dtype))
    assert checked.dtype == np.float32
    assert checked.tolist() == [0.5, -1.0, 1.5]
