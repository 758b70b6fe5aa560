"""Kaldi's filterbank features, which most published streaming models (icefall, WeNet, sherpa) hear.

Ours in NumPy, and not the library kaldi-native-fbank: 10 s of sound take it 15 ms, us 5 ms at once
and 10 ms in pieces of 100 ms (one core, in turn); it would be one more binary that every device
needs; and it streams bare frames only. It is the oracle instead: tests/golden/fbank.npz holds its
features. lhotse's are compared where lhotse is installed.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from subtone.speech.front_end import MelFrontEnd
from subtone.speech.mel import FilterSizes, povey_window
from subtone.speech.normalize import Normalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class KaldiFbank(MelFrontEnd):
    """Sound (S,) to Kaldi's log-mel features (T, num_mels); the defaults are lhotse's and icefall's.

    Kaldi's compute-fbank-feats with `--snip-edges=false --dither=0 --high-freq=-400`, of sound
    within -1 to 1 (for sound of 16-bit range, scale the samples: the log then shifts by 20.8):

    1. Frame t is centred at sample `t * hop + hop // 2`, the sound mirrored at both ends.
    2. Less the frame's mean; pre-emphasis `y[n] = x[n] - preemphasis * x[n-1]` within the frame,
       its first sample by itself; the Povey window (Hann to the power 0.85).
    3. Power spectrum of `fft_size` points (Kaldi takes the power of two that holds the window),
       `num_mels` filters from `low_hz` to `high_hz`, triangles of height 1 on the mel scale
       `1127 ln(1 + Hz / 700)`; `log(max(x, log_floor))`, the floor being float32's 2**-23.
    4. `normalize`, `stack` and `stride` as in MelFrontEnd.

    T = (S + hop // 2) // hop frames, so a sound shorter than half a hop has none; ceil of that
    by `stride` rows.

    >>> KaldiFbank()(np.zeros(16000, np.float32)).shape
    (100, 80)
    """

    kind: ClassVar[str] = "fbank"

    window_ms: int = 25
    num_mels: int = 80
    low_hz: float = 20.0
    high_hz: float = 7600.0
    log_floor: float = 2.0**-23
    normalize: Normalize = "none"

    @property
    def window(self) -> NDArray[np.float32]:
        """The Povey window, shape (window_samples,), read-only."""
        return povey_window(self.window_samples)

    @property
    def _is_mirrored(self) -> bool:
        return True

    @property
    def _filter_sizes(self) -> FilterSizes:
        return FilterSizes("kaldi", self.rate_hz, self.fft_size, self.num_mels, self.low_hz, self.high_hz)

    def _windowed(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        centred = frames - frames.mean(axis=1, keepdims=True)
        before = np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
        before *= np.float32(-self.preemphasis)
        before += centred
        before *= self.window
        return before

    def _lift(self, features: NDArray[np.float32]) -> None:
        np.maximum(features, np.float32(self.log_floor), out=features)
