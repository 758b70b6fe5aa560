"""The front end as its description reads: float64, one frame, one bin, one filter at a time.

PAPERS.md section 2, and Slaney's mel scale (Auditory Toolbox, 1998): 200/3 Hz a mel to 1000 Hz,
then 27 mel for each factor of 6.4. Nothing here is taken from subtone.
"""

from __future__ import annotations

import cmath
import math


def hz_of_mel(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def mel_of_hz(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000, 6.4)


def mel_filter(
    index: int, num_mels: int, rate_hz: int, fft_size: int, low_hz: float, high_hz: float
) -> list[float]:
    """Weights of the bins in filter `index`: a triangle over Hz, of unit area."""
    low_mel, high_mel = mel_of_hz(low_hz), mel_of_hz(high_hz)
    step = (high_mel - low_mel) / (num_mels + 1)
    left, centre, right = (hz_of_mel(low_mel + (index + corner) * step) for corner in range(3))
    weights = []
    for bin_index in range(fft_size // 2 + 1):
        hz = bin_index * rate_hz / fft_size
        height = 0.0
        if left < hz <= centre:
            height = (hz - left) / (centre - left)
        elif centre < hz < right:
            height = (right - hz) / (right - centre)
        weights.append(height * 2 / (right - left))
    return weights


def log_mel(samples: list[float], frame: int, filters: list[list[float]]) -> list[float]:
    """log(mel power + 2**-24) of one frame: 16 kHz, 20 ms Hann in 512, hop 160, zeros outside."""
    emphasized = [x - 0.97 * before for x, before in zip(samples, [0.0, *samples], strict=False)]
    windowed = []
    for place in range(512):
        at = frame * 160 - 256 + place
        inside = 96 <= place < 96 + 320 and 0 <= at < len(samples)
        hann = 0.5 - 0.5 * math.cos(2 * math.pi * (place - 96) / 319)
        windowed.append(emphasized[at] * hann if inside else 0.0)
    power = []
    for k in range(257):
        total = sum(x * cmath.exp(-2j * math.pi * k * n / 512) for n, x in enumerate(windowed) if x)
        power.append(abs(total) ** 2)
    return [math.log(sum(w * p for w, p in zip(row, power, strict=True)) + 2.0**-24) for row in filters]


def normalize(features: list[list[float]]) -> list[list[float]]:
    """Each column less its mean, by its unbiased deviation + 1e-5."""
    columns = []
    for column in zip(*features, strict=True):
        mean = sum(column) / len(column)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / (len(column) - 1))
        columns.append([(x - mean) / (deviation + 1e-5) for x in column])
    return [list(row) for row in zip(*columns, strict=True)]
