"""What a model hears: log-mel features, the same code in training and in a packed file.

The chain is NeMo's for QuartzNet, because that is what the published models were trained on
(PAPERS.md section 2). One deviation: no dither, so that features are a function of the sound.

Precision: float32 up to the logarithm, float64 for the mean and deviation. Rounding in the
transform lies about 2**-23 below a frame's loudest bin in amplitude, 2**-46 in power, far
below `log_floor` for sound within -1 to 1. On real speech the features lie within 6e-5 of those
computed in float64 throughout, where one deviation is 1; float64 takes half as long again and
twice the memory. tests/speech/test_features.py holds the derived bound.

Letters: S samples, T frames.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from subtone.speech.audio import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, check_samples

NORMALIZATIONS = ("per_feature", "none")
STD_FLOOR = np.float32(1e-5)
"""Added to each feature's deviation: silence becomes zeros instead of a division by 0."""
LARGEST_FFT_SIZE = 8192
FRAMES_AT_ONCE = 128
"""Frames transformed together: 1 MB of scratch, which stays in a core's cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Sound (S,) to log-mel features (T, num_mels); the defaults are QuartzNet's.

    1. Pre-emphasis `y[n] = x[n] - preemphasis * x[n-1]`, the first sample kept.
    2. Frame t is centred at sample `t * hop`, with zeros beyond both ends, under a symmetric Hann
       window of `window_ms`, centred in `fft_size`.
    3. Power spectrum, `num_mels` triangular filters from `low_hz` to `high_hz` on Slaney's mel
       scale, each of unit area; `log(x + log_floor)`.
    4. `normalize="per_feature"`: less the mean over the utterance, by the unbiased deviation
       + 1e-5. One frame alone has deviation 0 (the formula divides 0 by 0), so it becomes zeros.

    T = ceil(S / hop): what NeMo calls the valid length. A frame centred beyond the last sample,
    which `torch.stft` adds when hop divides S, is left out.

    >>> FrontEnd()(np.zeros(16000, np.float32)).shape
    (100, 64)
    """

    rate_hz: int = 16000
    window_ms: int = 20
    hop_ms: int = 10
    fft_size: int = 512
    num_mels: int = 64
    low_hz: float = 0.0
    high_hz: float = 8000.0
    preemphasis: float = 0.97
    log_floor: float = 2.0**-24
    normalize: str = "per_feature"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            allowed = {"int": (int,), "float": (int, float), "str": (str,)}[str(field.type)]
            is_right = type(value) in allowed and (type(value) is str or abs(value) < 1e9)
            _require(is_right, f"{field.name}={value!r} is not a finite {field.type}")
        self._check_sizes()
        empty = np.flatnonzero(~self.mel_filters.any(axis=1))
        _require(
            empty.size == 0,
            f"num_mels={self.num_mels} leaves mel filter {empty[:1]} between two bins of "
            f"fft_size={self.fft_size}; use fewer filters or a larger fft_size",
        )

    def _check_sizes(self) -> None:
        _require(
            LOWEST_RATE_HZ <= self.rate_hz <= HIGHEST_RATE_HZ,
            f"rate_hz={self.rate_hz} is no rate for speech; use {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ}",
        )
        for name in ("window_ms", "hop_ms"):
            value = getattr(self, name)
            _require(
                value > 0 and self.rate_hz * value % 1000 == 0,
                f"{name}={value} is not a whole number of samples at rate_hz={self.rate_hz}; "
                "use another length or rate_hz=16000",
            )
        _require(
            2 <= self.window_samples <= self.fft_size <= LARGEST_FFT_SIZE and self.fft_size % 2 == 0,
            f"fft_size={self.fft_size} must be even, hold a window of {self.window_samples} samples "
            f"(2 or more) and be at most {LARGEST_FFT_SIZE}",
        )
        _require(
            self.hop_samples <= self.window_samples,
            f"hop_ms={self.hop_ms} skips sound between windows of window_ms={self.window_ms}",
        )
        _require(
            1 <= self.num_mels <= self.fft_size // 2,
            f"num_mels={self.num_mels} must lie in 1..{self.fft_size // 2}, half of fft_size",
        )
        _require(
            0 <= self.low_hz < self.high_hz <= self.rate_hz / 2,
            f"low_hz={self.low_hz} and high_hz={self.high_hz} must ascend within 0..{self.rate_hz / 2:g}",
        )
        _require(0 <= self.preemphasis < 1, f"preemphasis={self.preemphasis} must lie in [0, 1)")
        _require(2.0**-100 <= self.log_floor <= 1, f"log_floor={self.log_floor} must lie in [2**-100, 1]")
        _require(
            self.normalize in NORMALIZATIONS,
            f"normalize={self.normalize!r} is unknown; use {' or '.join(NORMALIZATIONS)}",
        )

    @property
    def window_samples(self) -> int:
        return self.rate_hz * self.window_ms // 1000

    @property
    def hop_samples(self) -> int:
        return self.rate_hz * self.hop_ms // 1000

    @property
    def window(self) -> NDArray[np.float32]:
        """The Hann window, shape (window_samples,), read-only."""
        return hann_window(self.window_samples)

    @property
    def mel_filters(self) -> NDArray[np.float32]:
        """What each feature sums, shape (num_mels, fft_size // 2 + 1), read-only."""
        return slaney_filters(*self._filter_sizes)

    @property
    def _filter_sizes(self) -> tuple[int, int, int, float, float]:
        return self.rate_hz, self.fft_size, self.num_mels, self.low_hz, self.high_hz

    def num_frames(self, num_samples: int) -> int:
        """T for S samples: ceil(S / hop).

        >>> [FrontEnd().num_frames(samples) for samples in (1, 160, 161)]
        [1, 1, 2]
        """
        return -(-num_samples // self.hop_samples)

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features of one utterance, or of one window of a long one.

        Args:
            samples: shape (S,), S >= 1, floating, finite, within -1 to 1 as a rule.

        Returns:
            float32 (T, num_mels). ValueError where `check_samples` says so.
        """
        emphasized = self._emphasize(check_samples(samples))
        hop, size = self.hop_samples, self.window_samples
        num_frames = self.num_frames(len(samples))
        # The window's place within fft_size only turns phases, and the power has none: so the
        # frames are cut to the window, and the zeros all lie behind it.
        frames = np.lib.stride_tricks.sliding_window_view(emphasized, size)[::hop][:num_frames]
        bins, weights, starts = nonzero_bins(*self._filter_sizes)
        features = np.empty((num_frames, self.num_mels), np.float32)
        for start in range(0, num_frames, FRAMES_AT_ONCE):
            part = slice(start, start + FRAMES_AT_ONCE)
            spectrum = np.fft.rfft(frames[part] * self.window, self.fft_size, axis=1)
            power = np.square(spectrum.real) + np.square(spectrum.imag)
            np.add.reduceat(power[:, bins] * weights, starts, axis=1, out=features[part])
        features += np.float32(self.log_floor)
        np.log(features, out=features)
        if self.normalize == "per_feature":
            normalize_features(features)
        return features

    def _emphasize(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Step 1, between the zeros that the first and the last frame reach into."""
        half = self.window_samples // 2
        padded = np.zeros(len(samples) + self.window_samples + self.hop_samples, np.float32)
        inner = padded[half : half + len(samples)]
        np.multiply(samples[:-1], np.float32(-self.preemphasis), out=inner[1:])
        inner += samples
        return padded

    def to_json(self) -> dict:
        """All fields, as a packed file holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping) -> FrontEnd:
        """The front end a file describes; ValueError on a key, type or size that cannot be."""
        _require(isinstance(document, Mapping), f"the front end is not a JSON object: {document!r:.80}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown, absent = sorted(set(map(str, document)) - known), sorted(known - set(document))
        _require(not unknown, f"the front end has unknown keys {unknown}; known are {sorted(known)}")
        _require(not absent, f"the front end lacks {absent}")
        return cls(**document)


def normalize_features(features: NDArray[np.float32]) -> None:
    """In place: each column less its mean, by its unbiased deviation + 1e-5; shape (T, num_mels)."""
    features -= features.mean(axis=0, dtype=np.float64).astype(np.float32)
    if len(features) > 1:
        features /= features.std(axis=0, dtype=np.float64, ddof=1).astype(np.float32) + STD_FLOOR


@functools.lru_cache(maxsize=16)
def hann_window(num_samples: int) -> NDArray[np.float32]:
    """Symmetric Hann window: 0 at both ends, shape (num_samples,), read-only."""
    phase = 2 * np.pi * np.arange(num_samples) / (num_samples - 1)
    return _frozen(0.5 - 0.5 * np.cos(phase))


@functools.lru_cache(maxsize=16)
def slaney_filters(
    rate_hz: int, fft_size: int, num_mels: int, low_hz: float, high_hz: float
) -> NDArray[np.float32]:
    """Triangles between neighbouring mel frequencies, each divided by half its width in Hz.

    Shape (num_mels, fft_size // 2 + 1), read-only. Slaney's Auditory Toolbox: corners equally
    spaced in mel, triangles straight in Hz, of unit area.
    """
    corners_hz = _mel_to_hz(np.linspace(_hz_to_mel(low_hz), _hz_to_mel(high_hz), num_mels + 2))
    bins_hz = np.arange(fft_size // 2 + 1) * (rate_hz / fft_size)
    low, centre, high = corners_hz[:-2, None], corners_hz[1:-1, None], corners_hz[2:, None]
    rising, falling = (bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)
    return _frozen(np.maximum(0, np.minimum(rising, falling)) * (2 / (high - low)))


@functools.lru_cache(maxsize=16)
def nonzero_bins(
    rate_hz: int, fft_size: int, num_mels: int, low_hz: float, high_hz: float
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.intp]]:
    """The filters without their zeros: each entry's bin and weight, and where each filter starts.

    498 entries of 16448 for QuartzNet. Summed one after the other they take 1 ms for 10 s of
    sound. A matrix product takes 0.3 ms alone, but 70 ms when BLAS spins its threads on cores that
    others use, and its bits then depend on how many frames go in together.
    """
    filters = slaney_filters(rate_hz, fft_size, num_mels, low_hz, high_hz)
    rows, bins = np.nonzero(filters)
    return bins, filters[rows, bins], np.searchsorted(rows, np.arange(num_mels))


# Slaney's scale: straight to 1000 Hz (15 mel), then 27 mel for each factor of 6.4.
_HZ_PER_MEL, _BEND_HZ, _BEND_MEL = 200 / 3, 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _BEND_HZ else _BEND_MEL + math.log(hz / _BEND_HZ) / _LOG_STEP


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BEND_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BEND_MEL) - _BEND_MEL))
    return np.where(mel < _BEND_MEL, mel * _HZ_PER_MEL, above)


def _frozen(values: NDArray[np.float64]) -> NDArray[np.float32]:
    frozen = values.astype(np.float32)
    frozen.setflags(write=False)
    return frozen


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
