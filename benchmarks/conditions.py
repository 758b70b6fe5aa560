"""The same utterances under worse conditions: other voices behind them, a telephone's band, half a minute at once, quiet.

Everything is made from the set itself and a seed, so that every model hears the same samples. Samples are floats and
are not clipped: what a mixture adds beyond 1 is heard as it is.

Letters: S samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance

RATE_HZ = 16000
SEED = 20225
NUM_VOICES = 5
"""Behind an utterance, all of other speakers than its own."""
BAND_HZ = (300.0, 3400.0)
BAND_ORDER = 8
"""Of the Butterworth prototype: 48 dB an octave on either side of the band, forward only, as a telephone's filter is."""
LONGEST_S = 30.0
QUIETER = np.float32(0.1)
"""20 dB."""

Samples = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """What is heard, and what is said in it; `name` is the same for every model."""

    name: str
    speaker: str
    text: str
    samples: Samples


Condition = Callable[[Sequence[Utterance]], Iterator[Sound]]


def mixed(speech: Samples, noise: Samples, *, snr_db: float) -> Samples:
    """`speech` (S,) with `noise` (S,) scaled so that their powers over the whole utterance are `snr_db` apart.

    ValueError: other lengths; a noise without power.

    >>> mixed(np.float32([2, -2]), np.float32([3, 3]), snr_db=0.0).tolist()
    [4.0, 0.0]
    """
    if speech.shape != noise.shape:
        raise ValueError(f"noise of shape {noise.shape} must be as long as speech of {speech.shape}")
    powers = [float(np.mean(np.square(each, dtype=np.float64))) for each in (speech, noise)]
    if not powers[1]:
        raise ValueError("the noise is silent; mix with a sound")
    gain = np.sqrt(powers[0] / powers[1] / 10 ** (snr_db / 10))
    return (speech + gain * noise).astype(np.float32)


def babble(voices: Sequence[Samples], num_samples: int, random: np.random.Generator) -> Samples:
    """`num_samples` of `voices` at once, each of power 1, repeated from a place drawn for it."""
    total = np.zeros(num_samples)
    for voice in voices:
        start = int(random.integers(len(voice)))
        heard = np.take(voice, np.arange(start, start + num_samples), mode="wrap").astype(np.float64)
        total += heard / max(np.sqrt(np.mean(np.square(heard))), np.finfo(np.float32).tiny)
    return total.astype(np.float32)


def telephone_band(samples: Samples) -> Samples:
    """`samples` without what lies below 300 and above 3400 Hz; the rate stays."""
    sections = scipy.signal.butter(BAND_ORDER, BAND_HZ, "bandpass", fs=RATE_HZ, output="sos")
    return scipy.signal.sosfilt(sections, samples).astype(np.float32)


def joined(durations_s: Sequence[float], speakers: Sequence[str], longest_s: float) -> list[list[int]]:
    """Indices of neighbours of one speaker, as many to a list as `longest_s` holds; in order, every index once.

    >>> joined([20, 9, 2, 2, 40], ["a", "a", "a", "b", "b"], 30.0)
    [[0, 1], [2], [3], [4]]
    """
    groups: list[list[int]] = []
    filled_s = 0.0
    for index, (duration_s, speaker) in enumerate(zip(durations_s, speakers, strict=True)):
        if groups and speakers[groups[-1][0]] == speaker and filled_s + duration_s <= longest_s:
            groups[-1].append(index)
            filled_s += duration_s
        else:
            groups.append([index])
            filled_s = duration_s
    return groups


def clean(utterances: Sequence[Utterance]) -> Iterator[Sound]:
    for utterance in utterances:
        yield Sound(
            name="/".join(utterance.audio_path.parts[-2:]),
            speaker=utterance.speaker,
            text=utterance.text,
            samples=read_audio(utterance.audio_path, RATE_HZ),
        )


def changed(change: Callable[[Samples], Samples]) -> Condition:
    """Every utterance by itself, through `change`."""

    def heard(utterances: Sequence[Utterance]) -> Iterator[Sound]:
        for sound in clean(utterances):
            yield dataclasses.replace(sound, samples=change(sound.samples))

    return heard


def behind_babble(snr_db: float) -> Condition:
    """Every utterance with the babble of other speakers of the set; the same voices whatever the `snr_db`."""

    def heard(utterances: Sequence[Utterance]) -> Iterator[Sound]:
        sounds = {sound.name: sound for sound in clean(utterances)}
        of_speaker: dict[str, list[Sound]] = {}
        for sound in sounds.values():
            of_speaker.setdefault(sound.speaker, []).append(sound)
        if len(of_speaker) <= NUM_VOICES:
            raise ValueError(
                f"speakers={len(of_speaker)} are too few for a babble of {NUM_VOICES} others; take more utterances"
            )
        for index, sound in enumerate(sounds.values()):
            random = np.random.default_rng([SEED, index])
            others = sorted(of_speaker.keys() - {sound.speaker})
            drawn = random.choice(others, NUM_VOICES, replace=False)
            voices = [of_speaker[name][random.integers(len(of_speaker[name]))].samples for name in drawn]
            noise = babble(voices, len(sound.samples), random)
            yield dataclasses.replace(sound, samples=mixed(sound.samples, noise, snr_db=snr_db))

    return heard


def half_minutes(utterances: Sequence[Utterance]) -> Iterator[Sound]:
    """Neighbours of one speaker as one sound of up to 30 s, nothing between them."""
    groups = joined(
        [each.duration_s for each in utterances], [each.speaker for each in utterances], LONGEST_S
    )
    for group in groups:
        parts = list(clean([utterances[index] for index in group]))
        yield Sound(
            name=f"{parts[0].name}+{len(parts) - 1}",
            speaker=parts[0].speaker,
            text=" ".join(part.text for part in parts),
            samples=np.concatenate([part.samples for part in parts]),
        )


CONDITIONS: dict[str, Condition] = {
    "clean": clean,
    "babble, 10 dB": behind_babble(10.0),
    "babble, 0 dB": behind_babble(0.0),
    "300-3400 Hz": changed(telephone_band),
    "30 s at once": half_minutes,
    "20 dB quieter": changed(lambda samples: samples * QUIETER),
}
