"""Conditions are what they say: powers apart by so many dB, a band, one speaker's half minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import conditions
import numpy as np
import pytest
import soundfile
from conditions import (
    CONDITIONS,
    NUM_VOICES,
    RATE_HZ,
    babble,
    behind_babble,
    half_minutes,
    joined,
    mixed,
    telephone_band,
)

from subtone.speech.data import Utterance


def power_db(samples: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32)


def tone(frequency_hz: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)


def recorded(folder: Path, speakers: Sequence[str], seconds: float = 0.25) -> list[Utterance]:
    """An utterance for each entry of `speakers`, of noise."""
    utterances = []
    for index, speaker in enumerate(speakers):
        path = folder / speaker / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise(int(seconds * RATE_HZ), index), RATE_HZ, subtype="FLOAT")
        utterances.append(
            Utterance(audio_path=path, duration_s=seconds, text=f"word {index}", speaker=speaker)
        )
    return utterances


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0, 20.0])
def test_speech_and_noise_are_so_many_db_apart(snr_db: float) -> None:
    speech, other = noise(4000, 0), 7 * noise(4000, 1)
    added = mixed(speech, other, snr_db=snr_db) - speech
    # float32 sums: their rounding is 2**-24 of values near 1, 100 dB below the quieter of the two
    assert power_db(speech) - power_db(added) == pytest.approx(snr_db, abs=1e-4)


def test_noise_of_another_length_or_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise of shape \(3,\) must be as long as speech of \(4,\)"):
        mixed(noise(4, 0), noise(3, 0), snr_db=0.0)
    with pytest.raises(ValueError, match="the noise is silent; mix with a sound"):
        mixed(noise(4, 0), np.zeros(4, np.float32), snr_db=0.0)


def test_every_voice_of_a_babble_is_as_loud_whatever_its_recording() -> None:
    # Tones of whole periods are orthogonal: the power of their sum is the sum of theirs.
    voices = [tone(200) * np.float32(0.001), tone(500), tone(1300) * np.float32(30)]
    spectrum = np.abs(np.fft.rfft(babble(voices, RATE_HZ, np.random.default_rng(0)))) ** 2
    assert spectrum[[200, 500, 1300]] == pytest.approx(np.full(3, RATE_HZ**2 / 2), rel=1e-5)


def test_a_babble_longer_than_a_voice_repeats_it() -> None:
    voice = noise(50, 0)
    heard = babble([voice], 150, np.random.default_rng(3))
    np.testing.assert_array_equal(heard[:50], heard[50:100])
    np.testing.assert_allclose(np.sort(heard[:50]), np.sort(voice) / np.sqrt(np.mean(voice**2)), rtol=1e-6)


@pytest.mark.parametrize(("frequency_hz", "least_db", "most_db"), [
    (1000, -0.1, 0.1),
    (300, -3.1, -2.9),  # a Butterworth filter's edge is where half of the power passes
    (3400, -3.1, -2.9),
    (100, -400, -60),
    (6000, -400, -60),
])  # fmt: skip
def test_the_telephone_band_passes_1_khz_and_stops_what_lies_outside(
    frequency_hz: float, least_db: float, most_db: float
) -> None:
    after = telephone_band(tone(frequency_hz))[RATE_HZ // 2 :]  # once the filter has swung in
    assert least_db <= power_db(after) - power_db(tone(frequency_hz)) <= most_db


@pytest.mark.parametrize("count", [0, 1, 2, 30, 200])
def test_joined_utterances_are_neighbours_of_one_speaker_and_as_many_as_fit(count: int) -> None:
    random = np.random.default_rng(count)
    durations, speakers = random.integers(1, 40, count).tolist(), random.choice(["a", "b"], count).tolist()
    groups = joined(durations, speakers, 30.0)
    assert [index for group in groups for index in group] == list(range(count))
    sums = [sum(durations[index] for index in group) for group in groups]
    for group, total in zip(groups, sums, strict=True):
        assert len({speakers[index] for index in group}) == 1
        assert total <= 30 or len(group) == 1
    for group, total, following in zip(groups, sums, groups[1:], strict=False):
        is_same = speakers[group[0]] == speakers[following[0]]
        assert not is_same or total + durations[following[0]] > 30


def test_half_minutes_join_sounds_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "LONGEST_S", 0.6)
    sounds = list(half_minutes(recorded(tmp_path, "aaab")))
    assert [sound.text for sound in sounds] == ["word 0 word 1", "word 2", "word 3"]
    assert [len(sound.samples) for sound in sounds] == [8000, 4000, 4000]
    assert [sound.speaker for sound in sounds] == ["a", "a", "b"]
    assert len({sound.name for sound in sounds}) == 3


def test_babble_is_of_others_and_the_same_at_every_level_and_in_every_run(tmp_path: Path) -> None:
    utterances = recorded(tmp_path, "abcdefa")
    given_samples = [sound.samples.astype(np.float64) for sound in CONDITIONS["clean"](utterances)]
    loud, again, soft = (
        [sound.samples for sound in behind_babble(snr_db)(utterances)] for snr_db in (0.0, 0.0, 20.0)
    )
    assert all(map(np.array_equal, loud, again))
    of_index = {index: samples / np.sqrt(np.mean(samples**2)) for index, samples in enumerate(given_samples)}
    for index, speech in enumerate(given_samples):
        added = [heard[index] - speech for heard in (loud, soft)]
        np.testing.assert_allclose(added[0], 10 * added[1], atol=1e-5)
        scaled = added[0] / np.sqrt(np.mean(added[0] ** 2))
        # A voice that is in it correlates with 1/sqrt(NUM_VOICES) at the shift it was drawn at, noise with itself else.
        best = {
            other: np.abs(np.fft.ifft(np.fft.fft(scaled) * np.conj(np.fft.fft(voice)))).max() / len(voice)
            for other, voice in of_index.items()
        }
        voices = {"abcdefa"[other] for other, value in best.items() if value > 0.3}
        assert voices == set("abcdef") - {"abcdefa"[index]}
        assert len(voices) == NUM_VOICES


def test_a_babble_of_too_few_speakers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speakers=5 are too few for a babble of 5 others; take more utter"):
        list(behind_babble(0.0)(recorded(tmp_path, "abcde")))


def test_20_db_quieter_is_a_tenth_and_nothing_else_changes(tmp_path: Path) -> None:
    utterances = recorded(tmp_path, "ab")
    before, after = (list(CONDITIONS[name](utterances)) for name in ("clean", "20 dB quieter"))
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(second.samples, first.samples * np.float32(0.1))
        assert power_db(first.samples) - power_db(second.samples) == pytest.approx(20, abs=1e-4)
        assert (first.name, first.text, first.speaker) == (second.name, second.text, second.speaker)
