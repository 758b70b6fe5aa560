"""What a mel feature sums: windows, and triangular filters on two mel scales.

* "slaney" (Auditory Toolbox, 1998; what NeMo takes from librosa): straight to 1000 Hz, then
  logarithmic. Triangles straight in Hz, each of unit area.
* "kaldi" (HTK's scale, `1127 ln(1 + Hz / 700)`): triangles straight in mel, each of height 1.
  Kaldi leaves out the highest bin; so do these, whose triangles are 0 there.

All in float64, rounded once to float32, computed once for each set of sizes, read-only.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_HZ_PER_MEL, _BEND_HZ, _BEND_MEL = 200 / 3, 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27
"""Slaney's scale: straight to 1000 Hz (15 mel), then 27 mel for each factor of 6.4."""


class FilterSizes(NamedTuple):
    """A set of mel filters: `scale` is "slaney" or "kaldi"."""

    scale: str
    rate_hz: int
    fft_size: int
    num_mels: int
    low_hz: float
    high_hz: float


@functools.lru_cache(maxsize=16)
def hann_window(num_samples: int) -> NDArray[np.float32]:
    """Symmetric Hann window: 0 at both ends, shape (num_samples,), read-only."""
    return _frozen(_hann(num_samples))


@functools.lru_cache(maxsize=16)
def povey_window(num_samples: int) -> NDArray[np.float32]:
    """Kaldi's window, the Hann window to the power 0.85: wider, 0 at both ends; (num_samples,), read-only."""
    return _frozen(_hann(num_samples) ** 0.85)


@functools.lru_cache(maxsize=16)
def mel_filters(sizes: FilterSizes) -> NDArray[np.float32]:
    """What each feature sums of a power spectrum, shape (num_mels, fft_size // 2 + 1), read-only."""
    to_mel = _slaney_mel if sizes.scale == "slaney" else _kaldi_mel
    low_mel, high_mel = to_mel(np.array([sizes.low_hz, sizes.high_hz], np.float64)).tolist()
    corners = np.linspace(low_mel, high_mel, sizes.num_mels + 2, dtype=np.float64)
    bins = np.arange(sizes.fft_size // 2 + 1, dtype=np.float64) * (sizes.rate_hz / sizes.fft_size)
    if sizes.scale == "slaney":
        corners = _slaney_hz(corners)
    else:
        bins = to_mel(bins)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    if sizes.scale == "slaney":
        return _frozen(triangles * (2 / (high - low)))
    triangles[:, -1] = 0  # and not a rounding of 0, where high_hz is half the rate
    return _frozen(triangles)


@functools.lru_cache(maxsize=16)
def nonzero_bins(sizes: FilterSizes) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.intp]]:
    """The filters without their zeros: each entry's bin and weight, and where each filter starts.

    498 entries of 16448 for QuartzNet. Summed one after the other they take 1 ms for 10 s of
    sound. A matrix product takes 0.3 ms alone, but 70 ms when BLAS spins its threads on cores that
    others use, and its bits then depend on how many frames go in together.
    """
    filters = mel_filters(sizes)
    rows, bins = np.nonzero(filters)
    return bins, filters[rows, bins], np.searchsorted(rows, np.arange(sizes.num_mels))


def _hann(num_samples: int) -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(num_samples) / (num_samples - 1))


def _slaney_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BEND_MEL + np.log(np.maximum(hz, _BEND_HZ) / _BEND_HZ) / _LOG_STEP
    return np.where(hz < _BEND_HZ, hz / _HZ_PER_MEL, above)


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BEND_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BEND_MEL) - _BEND_MEL))
    return np.where(mel < _BEND_MEL, mel * _HZ_PER_MEL, above)


def _kaldi_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127 * np.log1p(hz / 700)


def _frozen(values: NDArray[np.float64]) -> NDArray[np.float32]:
    frozen = values.astype(np.float32)
    frozen.setflags(write=False)
    return frozen
