"""Kaldi's filterbank, stacking and causal normalization as their descriptions read: one number at a time.

Kaldi's feature-window.cc and mel-computations.cc, in float64; 16 kHz, 25 ms, hop 10 ms, 512 points.
Nothing here is taken from subtone.
"""

from __future__ import annotations

import cmath
import math


def mel_of_hz(hz: float) -> float:
    return 1127 * math.log(1 + hz / 700)


def mel_filter(
    index: int, num_mels: int, rate_hz: int, fft_size: int, low_hz: float, high_hz: float
) -> list[float]:
    """Weights of the bins in filter `index`: a triangle over mel, of height 1, without the last bin."""
    low_mel, high_mel = mel_of_hz(low_hz), mel_of_hz(high_hz)
    step = (high_mel - low_mel) / (num_mels + 1)
    left, centre, right = (low_mel + (index + corner) * step for corner in range(3))
    weights = []
    for bin_index in range(fft_size // 2):
        mel = mel_of_hz(bin_index * rate_hz / fft_size)
        height = 0.0
        if left < mel <= centre:
            height = (mel - left) / (centre - left)
        elif centre < mel < right:
            height = (right - mel) / (right - centre)
        weights.append(height)
    return [*weights, 0.0]


def mirrored_sample(samples: list[float], at: int) -> float:
    while not 0 <= at < len(samples):
        at = -at - 1 if at < 0 else 2 * len(samples) - 1 - at
    return samples[at]


def powers(samples: list[float], frame: int) -> list[float]:
    """Power spectrum of one frame, (257,)."""
    start = frame * 160 + 80 - 200
    frame_samples = [mirrored_sample(samples, start + place) for place in range(400)]
    mean = sum(frame_samples) / 400
    centred = [x - mean for x in frame_samples]
    windowed = []
    for place, x in enumerate(centred):
        emphasized = x - 0.97 * centred[max(0, place - 1)]
        povey = (0.5 - 0.5 * math.cos(2 * math.pi * place / 399)) ** 0.85
        windowed.append(emphasized * povey)
    spectrum = (
        sum(x * cmath.exp(-2j * math.pi * k * n / 512) for n, x in enumerate(windowed)) for k in range(257)
    )
    return [abs(value) ** 2 for value in spectrum]


def log_mel(samples: list[float], frame: int, filters: list[list[float]]) -> list[float]:
    power = powers(samples, frame)
    sums = (sum(w * p for w, p in zip(row, power, strict=True)) for row in filters)
    return [math.log(max(total, 2.0**-23)) for total in sums]


def stacked(frames: list[list[float]], stack: int, stride: int) -> list[list[float]]:
    """`stack` frames joined every `stride`, the last one repeated where frames are missing."""
    rows = []
    for start in range(0, len(frames), stride):
        chosen = [frames[min(start + place, len(frames) - 1)] for place in range(stack)]
        rows.append([value for frame in chosen for value in frame])
    return rows


def normalized_so_far(
    column: list[float], prior_frames: float, mean: float | None, deviation: float | None
) -> list[float]:
    """One feature, each value by the mean and deviation of prior and values up to it; two passes.

    A prior without a mean lies around whatever mean was heard, with a deviation of 3.5.
    """
    found = []
    for end in range(1, len(column) + 1):
        heard, weight = column[:end], prior_frames + end
        if mean is None:
            mean_now = sum(heard) / end
            spread = prior_frames * 3.5**2
        else:
            mean_now = (prior_frames * mean + sum(heard)) / weight
            # P frames with the prior's mean and deviation lie deviation^2 + (mean - mean_now)^2 away.
            spread = prior_frames * (deviation**2 + (mean - mean_now) ** 2)
        variance = (spread + sum((x - mean_now) ** 2 for x in heard)) / weight
        found.append((heard[-1] - mean_now) / (math.sqrt(variance) + 1e-5))
    return found
