"""Which utterances an epoch holds and how they form batches."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.cut import Cut, MixedCut, MixTrack
from lhotse.dataset import DynamicBucketingSampler
from torch.utils.data import Sampler

MOST_BUCKETS = 10
CUTS_PER_BUCKET = 64
PAUSE_S = (0.1, 0.6)
"""Shortest and longest silence between two utterances of a chain."""


def chains_of(cuts: Sequence[MonoCut], *, joined: int, batch_s: float, rng: random.Random) -> list[Cut]:
    """`cuts` in another order, each once: 2 to `joined` of one speed after each other, silence between.

    A network that has heard single utterances only does not know that another may follow, and what it remembers of the
    first spoils the second (docs/lab-log.md). In a chain all that goes on in a stream goes on in training: the
    statistics of causal normalization, states of LSTMs, what attention looks back on, the predictor's labels.

    A chain is Lhotse's MixedCut whose tracks do not overlap. One that would last longer than `batch_s` ends before;
    a cut that is left alone comes as it is.
    """
    chains: list[Cut] = []
    for speed in sorted({cut.custom["speed"] for cut in cuts}):
        of_speed = [cut for cut in cuts if cut.custom["speed"] == speed]
        tracks: list[MixTrack] = []
        end_s, size = 0.0, 0
        for cut in rng.sample(of_speed, len(of_speed)):
            start_s = end_s + rng.uniform(*PAUSE_S)
            if len(tracks) == size or start_s + cut.duration > batch_s:
                chains += _chain(tracks)
                tracks, start_s, size = [], 0.0, rng.randint(2, joined)
            tracks.append(MixTrack(cut=cut, offset=start_s))
            end_s = start_s + cut.duration
        chains += _chain(tracks)
    return chains


def _chain(tracks: Sequence[MixTrack]) -> list[Cut]:
    """None of no track, the cut itself of one."""
    if len(tracks) < 2:
        return [track.cut for track in tracks]
    return [MixedCut(id="+".join(track.cut.id for track in tracks), tracks=list(tracks))]


class Epochs(Sampler[CutSet]):
    """Batches of up to `batch_s` seconds, padding included, of utterances of like lengths.

    A pass over the corpus is divided into as many epochs of about `epoch_s` seconds, so that a run
    that is shorter than a pass can be saved and resumed too; without `epoch_s` a pass is an epoch.
    Each utterance comes once a pass, and if `joined` is more than 1 once more in a chain of up to so many.
    A new pass is divided and joined anew, by `seed` and its number; without `is_shuffled` all passes are
    divided and drawn alike.

    Raises:
        ValueError: an utterance that lasts longer than a batch, more epochs than utterances.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        batch_s: float,
        epoch_s: float | None,
        seed: int,
        is_shuffled: bool,
        joined: int = 1,
    ) -> None:
        super().__init__()
        self._cuts = list(cuts)
        self._batch_s, self._seed, self._is_shuffled, self._joined = batch_s, seed, is_shuffled, joined
        longest = max(self._cuts, key=lambda cut: cut.duration)
        if longest.duration > batch_s:
            raise ValueError(
                f"{longest.recording.sources[0].source} lasts {longest.duration:.2f} s as it is heard, longer "
                f"than a batch of batch_s={batch_s}; raise batch_s, or leave it out"
            )
        durations_s = [cut.duration for cut in self._pass(0)]
        self.epochs_per_pass = max(1, round(sum(durations_s) / epoch_s)) if epoch_s else 1
        if self.epochs_per_pass > len(self._cuts):
            raise ValueError(
                f"epoch_s={epoch_s} makes {self.epochs_per_pass} epochs of {len(self._cuts)} utterances, and "
                f"some would hold none; use {sum(durations_s) / len(self._cuts):.2f} s, or more"
            )
        num_buckets = min(MOST_BUCKETS, max(2, len(durations_s) // CUTS_PER_BUCKET))
        borders_s = np.quantile(durations_s, np.linspace(0, 1, num_buckets + 1)[1:-1])
        self._borders_s = np.unique(borders_s).tolist()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through; Lightning says so."""
        self.epoch = epoch

    def _pass(self, index: int) -> list[Cut]:
        """Each utterance as it is, and in a chain."""
        if self._joined == 1:
            return self._cuts
        rng = random.Random(f"{self._seed} {index if self._is_shuffled else 0} joined")
        return [*self._cuts, *chains_of(self._cuts, joined=self._joined, batch_s=self._batch_s, rng=rng)]

    def __iter__(self) -> Iterator[CutSet]:
        index, part = divmod(self.epoch, self.epochs_per_pass)
        cuts = self._pass(index)
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
