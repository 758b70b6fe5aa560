"""What every front end does with sound: frames, mel features, normalized, stacked; whole or streamed.

    samples -> frames (framing) -> power -> mel -> log -> normalize -> stack -> rows

A front end says where frames lie, what happens to samples before they are framed and to a frame
before its transform, which filters sum its power, and how the logarithm is kept from -infinity;
the rest is here. The whole sound and a stream go through the same functions, and each does to a
frame what does not depend on the frames beside it. So rows have the same bits however the sound
is cut; tests/speech/test_streaming.py cuts it in every way.

Precision: float32 up to the logarithm, float64 for the mean and deviation. Rounding in the
transform lies about 2**-23 below a frame's loudest bin in amplitude, 2**-46 in power, far
below `log_floor` for sound within -1 to 1. On real speech the features lie within 6e-5 of those
computed in float64 throughout, where one deviation is 1; float64 takes half as long again and
twice the memory. tests/speech/test_features.py holds the derived bound.

Letters: S samples, T frames, F features of a row.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from subtone.speech.audio import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, check_samples
from subtone.speech.framing import FrameStream, Framing
from subtone.speech.mel import FilterSizes, mel_filters, nonzero_bins
from subtone.speech.normalize import (
    Normalize,
    Normalizer,
    check_normalize,
    normalize_features,
    normalize_from_json,
    normalize_to_json,
)
from subtone.speech.stacking import Stacker

LARGEST_FFT_SIZE = 8192
LARGEST_STACK = 64
FRAMES_AT_ONCE = 128
"""Frames transformed together: 1 MB of scratch, which stays in a core's cache."""
LATER_FIELDS = ("stack", "stride")
"""Fields that documents without a "kind" do not have; there they are 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelFrontEnd(abc.ABC):
    """Sound (S,) to rows of log-mel features (T, F), F = `num_features` = `num_mels * stack`.

    `normalize` is "none", "per_feature", or GlobalNormalize or CausalNormalize (subtone.speech.normalize),
    of single frames; then `stack` frames are joined every `stride` (subtone.speech.stacking).

    ValueError: a field of another type, or sizes that do not fit each other.
    """

    kind: ClassVar[str]
    """Its name in a document."""

    rate_hz: int = 16000
    window_ms: int
    hop_ms: int = 10
    fft_size: int = 512
    num_mels: int
    low_hz: float
    high_hz: float
    preemphasis: float = 0.97
    log_floor: float
    normalize: Normalize
    stack: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        allowed = {"int": (int,), "float": (int, float)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "normalize":
                is_right = not isinstance(value, int | float | None)
            else:
                is_right = type(value) in allowed[str(field.type)] and abs(value) < 1e9
            expected = "str" if field.name == "normalize" else field.type
            _require(is_right, f"{field.name}={value!r} is not a finite {expected}")
        self._check_sizes()
        check_normalize(self.normalize, self.num_mels)
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
            self.hop_ms <= self.window_ms,
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
        _require(1 <= self.stack <= LARGEST_STACK, f"stack={self.stack} must lie in 1..{LARGEST_STACK}")
        _require(
            1 <= self.stride <= self.stack,
            f"stride={self.stride} must lie in 1..{self.stack}: a larger one skips frames between rows of stack={self.stack}",
        )

    @property
    def window_samples(self) -> int:
        return self.rate_hz * self.window_ms // 1000

    @property
    def hop_samples(self) -> int:
        """Samples from one row to the next: a hop for each of `stride` frames."""
        return self.framing.hop_samples * self.stride

    @property
    def num_features(self) -> int:
        """F, the width of a row.

        >>> from subtone.speech import KaldiFbank
        >>> KaldiFbank(num_mels=64, stack=3, stride=3).num_features
        192
        """
        return self.num_mels * self.stack

    @property
    def framing(self) -> Framing:
        """Where frames lie, and what lies beyond the ends."""
        hop_samples = self.rate_hz * self.hop_ms // 1000
        return Framing(
            window_samples=self.window_samples, hop_samples=hop_samples, is_mirrored=self._is_mirrored
        )

    @property
    def mel_filters(self) -> NDArray[np.float32]:
        """What each feature sums, shape (num_mels, fft_size // 2 + 1), read-only."""
        return mel_filters(self._filter_sizes)

    @property
    @abc.abstractmethod
    def window(self) -> NDArray[np.float32]:
        """By which a frame is multiplied, shape (window_samples,), read-only."""

    @property
    @abc.abstractmethod
    def _is_mirrored(self) -> bool: ...

    @property
    @abc.abstractmethod
    def _filter_sizes(self) -> FilterSizes: ...

    def _before_framing(self, samples: NDArray[np.float32], previous: np.float32) -> NDArray[np.float32]:
        """What is done to (n,) samples that follow `previous` (0 at the start)."""
        return samples

    @abc.abstractmethod
    def _windowed(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frames (t, window_samples) as they are transformed; a new array."""

    @abc.abstractmethod
    def _lift(self, features: NDArray[np.float32]) -> None:
        """In place: mel powers (t, num_mels) kept from 0 by `log_floor`."""

    def num_frames(self, num_samples: int) -> int:
        """T, the rows of S samples; a front end's own docstring has the formula."""
        return -(-self.framing.num_frames(num_samples) // self.stride)

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """Rows of one utterance, or of one window of a long one.

        Args:
            samples: shape (S,), S >= 1, floating, finite, within -1 to 1 as a rule.

        Returns:
            float32 (T, num_features). AudioError (a ValueError) where `check_samples` says so.
        """
        samples = check_samples(samples, rate_hz=self.rate_hz)
        frames = FrameStream(self.framing)
        pushed = frames.push(self._before_framing(samples, np.float32(0)))
        features = self._log_mels(pushed, frames.finish())
        if self.normalize == "per_feature":
            if len(features):
                normalize_features(features)
        else:
            features = Normalizer(self.normalize).push(features)
        stacker = self._stacker()
        rows = stacker.push(features)
        return rows if self.stack == 1 else np.concatenate([rows, stacker.finish()])

    def stream(self) -> FeatureStream:
        """Rows as the sound comes, the same bits as of the whole sound.

        ValueError with `normalize="per_feature"`, which needs the whole utterance.
        """
        return FeatureStream(self)

    def _log_mels(self, *parts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frames, in parts (t, window_samples), to log-mel features of all, (T, num_mels)."""
        bins, weights, starts = nonzero_bins(self._filter_sizes)
        features = np.empty((sum(map(len, parts)), self.num_mels), np.float32)
        done = 0
        for frames in parts:
            for start in range(0, len(frames), FRAMES_AT_ONCE):
                windowed = self._windowed(frames[start : start + FRAMES_AT_ONCE])
                # A window's place within fft_size only turns phases, and the power has none: so all
                # zeros lie behind it.
                spectrum = np.fft.rfft(windowed, self.fft_size, axis=1)
                power = np.square(spectrum.real) + np.square(spectrum.imag)
                found = features[done : done + len(windowed)]
                np.add.reduceat(power[:, bins] * weights, starts, axis=1, out=found)
                done += len(windowed)
        self._lift(features)
        return np.log(features, out=features)

    def _stacker(self) -> Stacker:
        return Stacker(stack=self.stack, stride=self.stride, num_features=self.num_mels)

    def to_json(self) -> dict:
        """All fields and the kind, as a packed file holds them.

        A log-mel front end with none of `LATER_FIELDS` is written as it was before there were kinds:
        the same bytes, which files and training runs of then know it by.
        """
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document["normalize"] = normalize_to_json(self.normalize)
        is_as_ever = isinstance(self.normalize, str) and all(document[name] == 1 for name in LATER_FIELDS)
        if self.kind == "log_mel" and is_as_ever:
            return {name: value for name, value in document.items() if name not in LATER_FIELDS}
        return {"kind": self.kind, **document}

    @classmethod
    def from_json(cls, document: Mapping) -> Self:
        """The front end a file describes; ValueError on a key, type or size that cannot be."""
        _require(isinstance(document, Mapping), f"the front end is not a JSON object: {document!r:.80}")
        kind = document.get("kind", "log_mel")
        _require(kind == cls.kind, f"the front end has kind={kind!r}, not {cls.kind!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        known = {"kind", *known} if "kind" in document else known - set(LATER_FIELDS)
        unknown, absent = sorted(set(map(str, document)) - known), sorted(known - set(document))
        _require(not unknown, f"the front end has unknown keys {unknown}; known are {sorted(known)}")
        _require(not absent, f"the front end lacks {absent}")
        fields = {name: value for name, value in document.items() if name != "kind"}
        return cls(**{**fields, "normalize": normalize_from_json(fields["normalize"])})


class FeatureStream:
    """Rows of a sound that comes piece by piece: `push` as it comes, `finish` at its end.

    All rows together are those of the whole sound, bit for bit, in memory that does not grow: it
    holds less than a window of samples and `stack` frames. A row comes as soon as its last sample
    is there. A sound of no samples has no rows.
    """

    def __init__(self, front_end: MelFrontEnd) -> None:
        self._front_end = front_end
        self._normalizer = Normalizer(front_end.normalize)
        self._frames = FrameStream(front_end.framing)
        self._stacker = front_end._stacker()
        self._previous = np.float32(0)
        self._num_samples = 0
        self._is_finished = False

    def push(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """The rows (t, num_features) that `samples` (n,) complete, n >= 0; float32.

        Raises:
            AudioError: they are no sound; says when, in seconds from the stream's start. The stream
                is as before.
            ValueError: the stream is finished.
        """
        self._check_open("push")
        rate_hz = self._front_end.rate_hz
        samples = check_samples(samples, rate_hz=rate_hz, num_before=self._num_samples, may_be_empty=True)
        prepared = self._front_end._before_framing(samples, self._previous)
        if len(samples):
            self._previous = samples[-1]
        self._num_samples += len(samples)
        return self._stacker.push(self._normalized(self._frames.push(prepared)))

    def finish(self) -> NDArray[np.float32]:
        """The rows (t, num_features) that reach beyond the last sample; ValueError if called twice."""
        self._check_open("finish")
        self._is_finished = True
        rows = self._stacker.push(self._normalized(self._frames.finish()))
        return np.concatenate([rows, self._stacker.finish()])

    def _normalized(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._normalizer.push(self._front_end._log_mels(frames))

    def _check_open(self, name: str) -> None:
        _require(not self._is_finished, f"{name} after finish: this sound has ended; take a new stream()")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
