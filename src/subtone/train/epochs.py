"""Which utterances an epoch holds and how they form batches."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator

import numpy as np
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler
from torch.utils.data import Sampler

MOST_BUCKETS = 10
CUTS_PER_BUCKET = 64


class Epochs(Sampler[CutSet]):
    """Batches of up to `batch_s` seconds, padding included, of utterances of like lengths.

    A pass over the corpus is divided into as many epochs of about `epoch_s` seconds, so that a run
    that is shorter than a pass can be saved and resumed too; without `epoch_s` a pass is an epoch.
    Each utterance comes once a pass. A new pass is divided anew, by `seed` and its number; without
    `is_shuffled` all passes are divided and drawn alike.

    Raises:
        ValueError: an utterance that lasts longer than a batch, more epochs than utterances.
    """

    def __init__(
        self, cuts: CutSet, *, batch_s: float, epoch_s: float | None, seed: int, is_shuffled: bool
    ) -> None:
        super().__init__()
        self._cuts = list(cuts)
        self._batch_s, self._seed, self._is_shuffled = batch_s, seed, is_shuffled
        longest = max(self._cuts, key=lambda cut: cut.duration)
        if longest.duration > batch_s:
            raise ValueError(
                f"{longest.recording.sources[0].source} lasts {longest.duration:.2f} s as it is heard, longer "
                f"than a batch of batch_s={batch_s}; raise batch_s, or leave it out"
            )
        durations_s = [cut.duration for cut in self._cuts]
        self.epochs_per_pass = max(1, round(sum(durations_s) / epoch_s)) if epoch_s else 1
        if self.epochs_per_pass > len(self._cuts):
            raise ValueError(
                f"epoch_s={epoch_s} makes {self.epochs_per_pass} epochs of {len(self._cuts)} utterances, and "
                f"some would hold none; use their mean of {np.mean(durations_s):.2f} s, or more"
            )
        num_buckets = min(MOST_BUCKETS, max(2, len(durations_s) // CUTS_PER_BUCKET))
        borders_s = np.quantile(durations_s, np.linspace(0, 1, num_buckets + 1)[1:-1])
        self._borders_s = np.unique(borders_s).tolist()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through; Lightning says so."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[CutSet]:
        index, part = divmod(self.epoch, self.epochs_per_pass)
        cuts = self._cuts
        if self._is_shuffled and self.epochs_per_pass > 1:
            cuts = random.Random(f"{self._seed} {index}").sample(cuts, len(cuts))
        cuts = cuts[part :: self.epochs_per_pass]
        with warnings.catch_warnings():
            # It would save memory to read cuts lazily; they take a few MB, and are made here anyway.
            warnings.filterwarnings("ignore", message=".*eagerly read CutSet")
            sampler = DynamicBucketingSampler(
                CutSet.from_cuts(cuts),
                max_duration=self._batch_s,
                duration_bins=self._borders_s,
                shuffle=self._is_shuffled,
                drop_last=False,
                seed=self._seed,
            )
        sampler.set_epoch(self.epoch)
        yield from sampler
