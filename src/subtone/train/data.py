"""Utterances as batches of features: Lhotse draws the batches, a front end computes the features.

Lhotse's part is a map-style dataset and a bucketing sampler: batches of like lengths, each
utterance once an epoch, split between processes where there are several. (Its iterable wrapper
repeats data across workers.) Features come from the same front end that serves, so what is trained
on is what is heard; they are kept in memory after the first epoch, up to a limit.

Letters: B utterances, F features, T frames, U labels of all utterances together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import soxr
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut, MixedCut
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from subtone.speech.audio import read_audio
from subtone.speech.data import Utterance
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.text import Tokenizer, reference_of
from subtone.train.epochs import Epochs

MAX_CACHE_BYTES = 4 * 2**30
"""Features kept in memory: 40 hours at 64 float32 a frame."""


class Batch(NamedTuple):
    """Padded features (B, F, T) with valid lengths (B,); labels (U,) end to end with theirs (B,)."""

    features: Tensor
    lengths: Tensor
    labels: Tensor
    label_lengths: Tensor
    texts: tuple[str, ...]


def cuts_of(utterances: Sequence[Utterance], *, rate_hz: int, speeds: Sequence[float] = (1.0,)) -> CutSet:
    """Lhotse's view of `utterances`, each once for every speed; no file is opened."""
    cuts = []
    for index, utterance in enumerate(utterances):
        for speed in speeds:
            name, num_samples = f"{index}x{speed:g}", num_samples_of(utterance, rate_hz, speed)
            duration_s = num_samples / rate_hz
            source = AudioSource(type="file", channels=[0], source=str(utterance.audio_path))
            recording = Recording(
                id=name, sources=[source], sampling_rate=rate_hz, num_samples=num_samples, duration=duration_s
            )
            said = SupervisionSegment(
                id=name,
                recording_id=name,
                start=0,
                duration=duration_s,
                text=utterance.text,
                speaker=utterance.speaker,
            )
            cuts.append(
                MonoCut(
                    id=name,
                    start=0,
                    duration=duration_s,
                    channel=0,
                    recording=recording,
                    supervisions=[said],
                    custom={"speed": speed},
                )
            )
    return CutSet.from_cuts(cuts)


def num_samples_of(utterance: Utterance, rate_hz: int, speed: float) -> int:
    """How many the manifest promises, as it is heard at `speed`."""
    return round(utterance.duration_s * rate_hz / speed)


def longest_s(cuts: CutSet) -> float:
    """Seconds of the longest of `cuts`."""
    return max(cut.duration for cut in cuts)


def num_steps(num_frames: int, frames_per_step: int) -> int:
    """Rows of logits for so many frames of features: a stride pads, and counts a last part as whole.

    >>> [num_steps(num_frames, 3) for num_frames in (27, 28, 30)]
    [9, 10, 10]
    """
    return -(-num_frames // frames_per_step)


def frames_needed(labels: Sequence[int]) -> int:
    """Rows of logits that CTC needs: one a label, and a blank between two equal ones.

    >>> frames_needed([3, 5, 5, 3])
    5
    """
    return len(labels) + sum(one == other for one, other in pairwise(labels))


def check_utterances(
    name: str,
    utterances: Sequence[Utterance],
    front_end: MelFrontEnd,
    tokenizer: Tokenizer,
    frames_per_step: int,
    *,
    fastest: float,
    is_ctc: bool = True,
) -> None:
    """ValueError unless each text has labels and, by its manifest, frames enough for them.

    Without `is_ctc` that is one row: a transducer says any number of labels at each. No file is opened: what
    a file really holds, FeatureDataset checks when it reads it.
    """
    if not utterances:
        raise ValueError(f"{name} has no utterances; give at least one")
    for utterance in utterances:
        labels = tokenizer.encode(reference_of(utterance.text, tokenizer, utterance.audio_path))
        frames = front_end.num_frames(num_samples_of(utterance, front_end.rate_hz, fastest))
        if not labels:
            raise ValueError(
                f"{utterance.audio_path}: no label for any character of text={utterance.text!r:.60}; "
                f"write the words in {''.join(tokenizer.alphabet)!r} or leave it out of {name}"
            )
        steps = num_steps(frames, frames_per_step)
        if is_ctc and frames_needed(labels) > steps:
            raise ValueError(
                f"{utterance.audio_path} has {steps} frames for {frames_needed(labels)} labels of "
                f"{utterance.text!r:.60}; leave it out of {name}"
            )
        if not is_ctc and frames < frames_per_step:
            raise ValueError(
                f"{utterance.audio_path} has frames={frames} of features, and a row of the encoder takes "
                f"{frames_per_step}; leave it out of {name}"
            )


class FeatureDataset(Dataset[Batch]):
    """What the sampler drew, as a Batch; features are computed once and kept.

    `frames_per_step`: feature frames from one row of the network's logits to the next. A sound
    that gives fewer rows than CTC needs for its text has an infinite loss, and is refused. Without
    `is_ctc`, for a transducer, one that gives no row is.

    Raises, when a batch is drawn:
        ValueError: a text with digits that the labels lack; a sound too short for its text.
        AudioError: sound that cannot be read. Each names the file.
    """

    def __init__(
        self, front_end: MelFrontEnd, tokenizer: Tokenizer, *, frames_per_step: int = 1, is_ctc: bool = True
    ) -> None:
        self.front_end = front_end
        self.tokenizer = tokenizer
        self.frames_per_step = frames_per_step
        self.is_ctc = is_ctc
        self._kept: dict[str, NDArray[np.float32]] = {}
        self._kept_bytes = 0
        self._keeping = threading.Lock()

    def __getitem__(self, cuts: CutSet) -> Batch:
        drawn = list(cuts)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy's transform lets other threads run
            features = list(pool.map(self.features, drawn))
        texts = tuple(" ".join(map(self._reference, parts_of(cut))) for cut in drawn)
        labels = [self.tokenizer.encode(text) for text in texts]
        for cut, values, of_one in zip(drawn, features, labels, strict=True):
            self._check_frames(cut, len(values), of_one)
        lengths = [len(rows) for rows in features]
        padded = torch.zeros(len(drawn), self.front_end.num_features, max(lengths))
        for row, values in zip(padded, features, strict=True):
            row[:, : len(values)] = torch.from_numpy(values).T
        return Batch(
            features=padded,
            lengths=torch.tensor(lengths),
            labels=torch.tensor([label for of_one in labels for label in of_one]),
            label_lengths=torch.tensor([len(of_one) for of_one in labels]),
            texts=texts,
        )

    def _reference(self, cut: MonoCut) -> str:
        return reference_of(cut.supervisions[0].text, self.tokenizer, path_of(cut))

    def features(self, cut: Cut) -> NDArray[np.float32]:
        """Features (T, F) of one cut or chain; any number of threads may ask at once.

        A chain's are those of its whole sound, never kept: the next pass joins others.
        """
        if cut.id in self._kept:
            return self._kept[cut.id]
        features = self.front_end(self._samples(cut))
        with self._keeping:
            is_kept = isinstance(cut, MonoCut) and cut.id not in self._kept
            if is_kept and self._kept_bytes + features.nbytes <= MAX_CACHE_BYTES:
                self._kept[cut.id] = features
                self._kept_bytes += features.nbytes
        return features

    def _samples(self, cut: Cut) -> NDArray[np.float32]:
        """What is heard; between the sounds of a chain, whatever lengths their files have, its own silences."""
        if isinstance(cut, MixedCut):
            pieces, end_s = [], 0.0
            for track in cut.tracks:
                silence = np.zeros(round((track.offset - end_s) * self.front_end.rate_hz), np.float32)
                pieces += [silence, self._samples(track.cut)]
                end_s = track.offset + track.cut.duration
            return np.concatenate(pieces)
        samples = read_audio(path_of(cut), self.front_end.rate_hz)
        speed = cut.custom["speed"]
        if speed == 1:
            return samples
        return soxr.resample(samples, speed * self.front_end.rate_hz, self.front_end.rate_hz)

    def _check_frames(self, cut: Cut, num_frames: int, labels: Sequence[int]) -> None:
        """ValueError if `num_frames` of features, as really read, are too few for `labels`."""
        parts = parts_of(cut)
        speed = parts[0].custom["speed"]
        # A transducer needs a whole row; encoders that join frames drop a part of one.
        steps = (
            num_steps(num_frames, self.frames_per_step) if self.is_ctc else num_frames // self.frames_per_step
        )
        needed = frames_needed(labels) if self.is_ctc else 1
        heard_s = num_frames * self.front_end.hop_samples / self.front_end.rate_hz * speed
        if needed > steps:
            text = " ".join(part.supervisions[0].text for part in parts)
            raise ValueError(
                f"{' + '.join(map(path_of, parts))}: its {heard_s:.2f} s of sound (by its "
                f"manifest {cut.duration * speed:.2f}) give {steps} frames for {needed} labels of "
                f"{text!r:.60}; copy the file again or leave it out"
            )


def parts_of(cut: Cut) -> list[MonoCut]:
    """The utterances of a chain in order, or the one that `cut` is."""
    return [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]


def path_of(cut: MonoCut) -> str:
    """The sound file of a cut that `cuts_of` made."""
    return cut.recording.sources[0].source


def loader(
    cuts: CutSet,
    dataset: FeatureDataset,
    *,
    batch_s: float,
    epoch_s: float | None = None,
    seed: int,
    is_shuffled: bool,
    joined: int = 1,
    epoch: int = 0,
) -> DataLoader[Batch]:
    """Batches of up to `batch_s` seconds, padding included, from `epoch` on; see Epochs."""
    epochs = Epochs(cuts, batch_s=batch_s, epoch_s=epoch_s, seed=seed, is_shuffled=is_shuffled, joined=joined)
    epochs.set_epoch(epoch)
    return DataLoader(dataset, sampler=epochs, batch_size=None)
