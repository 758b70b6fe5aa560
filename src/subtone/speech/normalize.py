"""Features brought to mean 0 and deviation 1, each for itself, by what is known of them.

| kind | mean and deviation | streams |
|---|---|---|
| "none" | | yes |
| "per_feature" | of the whole utterance (NeMo) | no: the first frame would need the last |
| "global" | given, of a corpus | yes |
| "causal" | of the frames heard so far, and a prior | yes |

Causal, for frames x[0], x[1], .. of one feature, with a prior of mean m and deviation s worth P
frames, and n = t + 1; Q = P:

    d[i]    = x[i] - m
    mean[t] = (d[0] + .. + d[t]) / (Q + n)
    var[t]  = (P s^2 + d[0]^2 + .. + d[t]^2 - (Q + n) mean[t]^2) / (P + n)
    y[t]    = (d[t] - mean[t]) / (sqrt(var[t]) + 1e-5)

which are the mean and deviation of P frames like the prior followed by n real ones. Without a
given prior only the deviation is worth P frames: m = x[0] with Q = 0, so that the mean is that of
what was heard, and s = 3.5. The first frame is then 0 exactly, and a change of loudness moves no
feature (it adds a constant to all that are above the floor).

Sums are float64, added one after the other, so that they have the same bits wherever a stream is
cut; taking m away first keeps their difference as exact as var itself. Rejected: a forgetting
factor. It would follow a change of room, but also forget the speaker in a pause.

Measured on 40 utterances of test-clean-a (KaldiFbank; root mean square distance to "per_feature",
in deviations, over the first second and over all): global 0.43 and 0.43; a prior from train-clean
0.52 and 0.25 worth 30 frames, 0.41 and 0.23 worth 100, 0.40 and 0.28 worth 300; without a prior
0.95 and 0.44 worth 100, but 1.68 and 0.82 if the first frame and a deviation of 1 were worth 100.

Letters: T frames, F features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

STD_FLOOR = np.float32(1e-5)
"""Added to each feature's deviation: silence becomes zeros instead of a division by 0."""
SPEECH_DEVIATION = 3.5
"""Of a log-mel feature in speech, about: KaldiFbank's 80 have 2.4 to 4.6 in 40 utterances of train-clean."""
BY_NAME = ("per_feature", "none")
LARGEST_VALUE = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalNormalize:
    """Less a given mean, by a given deviation, one of each per feature; `statistics_of` makes them.

    ValueError: they are no finite numbers, not equally many, or a deviation is not above 0.
    """

    kind: ClassVar[str] = "global"
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_statistics(self.mean, self.deviation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalNormalize:
    """By the frames heard so far and a prior worth `prior_frames` of them; the module's equation.

    `mean` and `deviation` are the prior's, one of each per feature, or both None: no mean, and a
    deviation of 3.5 for all.

    ValueError: `prior_frames` is below 0, or the prior is none.
    """

    kind: ClassVar[str] = "causal"
    prior_frames: float = 100.0
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        is_number = type(self.prior_frames) in (int, float)
        if not (is_number and 0 <= self.prior_frames <= LARGEST_VALUE):
            raise ValueError(
                f"prior_frames={self.prior_frames!r} must be a number of 0 or more, such as 100 (1 s of 10 ms hops)"
            )
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("a prior has mean and deviation, or neither; give both or leave both out")
        if self.mean is not None:
            _check_statistics(self.mean, self.deviation)


Normalize: TypeAlias = str | GlobalNormalize | CausalNormalize
"""As a front end takes it: "none", "per_feature", or one of the two with numbers of their own."""


def check_normalize(normalize: Normalize, num_mels: int) -> None:
    """ValueError unless it is one of the four, for so many features."""
    if isinstance(normalize, GlobalNormalize | CausalNormalize):
        if normalize.mean is not None and len(normalize.mean) != num_mels:
            raise ValueError(
                f"normalize has mean and deviation of {len(normalize.mean)} features, the front end "
                f"num_mels={num_mels}; take statistics of this front end's own features"
            )
    elif normalize not in BY_NAME:
        raise ValueError(
            f"normalize={normalize!r} is unknown; use {' or '.join(BY_NAME)}, GlobalNormalize(mean=.., "
            "deviation=..) or CausalNormalize(..)"
        )


def normalize_to_json(normalize: Normalize) -> str | dict:
    """A name, or an object with its "kind"."""
    return (
        normalize if isinstance(normalize, str) else {"kind": normalize.kind, **dataclasses.asdict(normalize)}
    )


def normalize_from_json(document: object) -> Normalize:
    """What `normalize_to_json` wrote; ValueError on another key, type or value. Names are left to the front end."""
    if not isinstance(document, Mapping):
        return document  # type: ignore[return-value]  # `check_normalize` refuses what is no name
    kinds = {cls.kind: cls for cls in (GlobalNormalize, CausalNormalize)}
    kind = document.get("kind")
    if kind not in kinds:
        raise ValueError(f"normalize has kind={kind!r}; use {' or '.join(kinds)}")
    known = {field.name for field in dataclasses.fields(kinds[kind])}
    if set(document) != {"kind", *known}:
        raise ValueError(
            f"normalize of kind={kind!r} has keys {sorted(document)}, not kind and {sorted(known)}"
        )
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in document.items()
        if name != "kind"
    }
    return kinds[kind](**fields)


def normalize_features(features: NDArray[np.float32]) -> None:
    """In place: each column less its mean, by its unbiased deviation + 1e-5; shape (T, F)."""
    features -= features.mean(axis=0, dtype=np.float64).astype(np.float32)
    if len(features) > 1:
        features /= features.std(axis=0, dtype=np.float64, ddof=1).astype(np.float32) + STD_FLOOR


class Normalizer:
    """Frames in, normalized frames out, piece by piece, for all that streams."""

    def __init__(self, normalize: Normalize) -> None:
        if normalize == "per_feature":
            raise ValueError(
                "normalize='per_feature' needs the whole utterance and cannot stream; use CausalNormalize(), "
                "GlobalNormalize(mean=.., deviation=..) or normalize='none', and train the model with it"
            )
        self._causal = _Running(normalize) if isinstance(normalize, CausalNormalize) else None
        self._global: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        if isinstance(normalize, GlobalNormalize):
            mean, deviation = normalize.mean, normalize.deviation
            self._global = np.array(mean, np.float32), np.array(deviation, np.float32)

    def push(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next frames (t, F), normalized."""
        if self._global is not None:
            mean, deviation = self._global
            return (features - mean) / deviation
        return features if self._causal is None else self._causal.push(features)


class _Running:
    """Mean and deviation so far: P, n and two sums of each feature."""

    def __init__(self, prior: CausalNormalize) -> None:
        self._prior = prior
        self._num_frames = 0
        self._mean = None if prior.mean is None else np.array(prior.mean, np.float64)
        self._sums = np.zeros((2, 1, 1))
        """Of d and d^2, (2, 1, F) once there is a frame."""

    def push(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if not len(features):
            return features
        prior_frames = float(self._prior.prior_frames)
        if self._mean is None:
            self._mean = features[0].astype(np.float64)
        away = features - self._mean
        shape = (2, 1, features.shape[1])
        added = np.concatenate([np.broadcast_to(self._sums, shape), np.stack([away, away * away])], axis=1)
        sums = np.add.accumulate(added, axis=1)[:, 1:]
        heard = self._num_frames + np.arange(1, len(features) + 1)[:, None]
        weight = prior_frames + heard
        deviation = np.array(self._prior.deviation or SPEECH_DEVIATION, np.float64)
        of_mean = heard if self._prior.mean is None else weight
        mean = sums[0] / of_mean
        variance = (prior_frames * deviation * deviation + sums[1] - of_mean * mean * mean) / weight
        self._sums = sums[:, -1:].copy()
        self._num_frames += len(features)
        return ((away - mean) / (np.sqrt(np.maximum(variance, 0)) + 1e-5)).astype(np.float32)


def statistics_of(
    features: Iterable[NDArray[np.float32]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each feature over many utterances, as GlobalNormalize takes them.

    Args:
        features: arrays (T, F) of a front end with `normalize="none"` and one frame a row.

    Raises:
        ValueError: there is no frame, or a feature is the same in all.

    >>> statistics_of([np.float32([[1.0], [2.0]]), np.float32([[6.0]])])
    ((3.0,), (2.160246899469287,))
    """
    total, num_frames = None, 0
    for of_one in features:
        values = of_one.astype(np.float64)
        # Pairs of sums around the first utterance's mean: float64 then has digits to spare.
        if total is None:
            around = values.mean(axis=0) if len(values) else np.zeros(values.shape[1])
            total = np.zeros((2, values.shape[1]))
        away = values - around
        total += away.sum(axis=0), (away * away).sum(axis=0)
        num_frames += len(values)
    if total is None or num_frames == 0:
        raise ValueError("features have no frame; give those of at least one utterance")
    mean = total[0] / num_frames
    deviation = np.sqrt(np.maximum(total[1] / num_frames - mean * mean, 0))
    if not deviation.all():
        index = int(np.flatnonzero(deviation == 0)[0])
        raise ValueError(f"feature {index} is the same in all {num_frames} frames; give real speech")
    return tuple((around + mean).tolist()), tuple(deviation.tolist())


def _check_statistics(mean: object, deviation: object) -> None:
    for name, values in (("mean", mean), ("deviation", deviation)):
        if not isinstance(values, tuple) or not values or not all(map(_is_finite, values)):
            raise ValueError(f"{name}={values!r:.60} is no tuple of finite numbers; give one per feature")
    assert isinstance(mean, tuple)
    assert isinstance(deviation, tuple)
    if len(mean) != len(deviation):
        raise ValueError(f"mean has {len(mean)} features, deviation {len(deviation)}; give as many of both")
    smallest = min(deviation)
    if smallest < STD_FLOOR:
        raise ValueError(f"deviation={smallest} of feature {deviation.index(smallest)} must be 1e-5 or more")


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST_VALUE  # type: ignore[arg-type,operator]
