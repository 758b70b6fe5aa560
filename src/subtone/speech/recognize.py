"""A model made into a recognizer: the same for a float checkpoint and for a packed file.

A whole-utterance model needs memory in proportion to what it hears at once. So a long sound is
heard in windows that overlap, its labels joined inside the overlaps, and neither the file nor
its features are ever held whole.

Letters: S samples, T feature frames, V labels and the blank.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from subtone.speech.audio import audio_blocks, check_samples
from subtone.speech.decode import collapse_ctc
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.text import Tokenizer

Logits = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was heard, and how long the sound was."""

    text: str
    duration_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recognizer:
    """Sound to words by a CTC model that hears whole utterances.

    * `logits`: features (T, num_features) to (T', V), T' = ceil(T / frames_per_step), V one more
      than the tokenizer's labels. Frame j of them lies at feature frame `j * frames_per_step`.
    * A sound of at most `window_s` is one window: front end, model, greedy CTC, nothing else.
    * A longer one is cut into windows of `window_s` which share `overlap_s`; the last two are
      equally long, so that none is much shorter than half a window (features are normalized
      over the window). Windows start at whole steps, so that their frames coincide. They are
      joined inside the overlap where both hear a blank, at such a frame nearest to its middle;
      if there is none, in the middle.
    """

    front_end: MelFrontEnd
    tokenizer: Tokenizer
    frames_per_step: int
    logits: Logits
    window_s: float = 30.0
    overlap_s: float = 4.0

    def __post_init__(self) -> None:
        if self.frames_per_step < 1:
            raise ValueError(f"frames_per_step={self.frames_per_step} must be 1 or more")
        if not (
            self.step_samples <= self.overlap_samples and 2 * self.overlap_samples <= self.window_samples
        ):
            raise ValueError(
                f"overlap_s={self.overlap_s} must hold a step of {self.step_samples} samples and "
                f"be at most half of window_s={self.window_s}"
            )

    @property
    def step_samples(self) -> int:
        """Samples from one logit frame to the next."""
        return self.front_end.hop_samples * self.frames_per_step

    @property
    def window_samples(self) -> int:
        return self._whole_steps(self.window_s)

    @property
    def overlap_samples(self) -> int:
        return self._whole_steps(self.overlap_s)

    def hear(self, samples: NDArray[np.floating]) -> str:
        """The words in `samples`, shape (S,), mono at the front end's rate.

        AudioError (a ValueError) where `check_samples` says so.
        """
        return self._hear([check_samples(samples, rate_hz=self.front_end.rate_hz)]).text

    def hear_file(self, path: str | os.PathLike) -> str:
        """The words in a sound file of any format, rate and length; AudioError as `audio_blocks`."""
        return self.transcript(path).text

    def transcript(
        self, path: str | os.PathLike, *, progress: Callable[[int, int | None], None] | None = None
    ) -> Transcript:
        """`hear_file` with the duration of what was heard.

        `progress(done, total)` counts seconds of sound after each window; how many there will be is
        not known beforehand: None.
        """
        return self._hear(audio_blocks(path, self.front_end.rate_hz), progress)

    def _hear(
        self,
        blocks: Iterable[NDArray[np.float32]],
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Transcript:
        best, num_samples = np.zeros(0, np.intp), 0
        sizes = {"length": self.window_samples, "overlap": self.overlap_samples, "step": self.step_samples}
        for start, window in cut_windows(blocks, **sizes):
            best = join_paths(
                best, self._path(window), start // self.step_samples, self.tokenizer.blank_index
            )
            num_samples = start + len(window)
            if progress:
                progress(num_samples // self.front_end.rate_hz, None)
        text = self.tokenizer.decode(collapse_ctc(best, self.tokenizer.blank_index))
        return Transcript(text=" ".join(text.split()), duration_s=num_samples / self.front_end.rate_hz)

    def _path(self, window: NDArray[np.float32]) -> NDArray[np.intp]:
        """The model's best label at each step of one window."""
        features = self.front_end(window)
        if not len(features):  # Kaldi's convention has no frame for less than half a hop
            return np.zeros(0, np.intp)
        logits = self.logits(features)
        expected = (-(-len(features) // self.frames_per_step), self.tokenizer.blank_index + 1)
        if logits.shape != expected:
            raise ValueError(
                f"the model gave logits of shape {logits.shape} for {len(features)} frames, not {expected}; "
                f"check frames_per_step={self.frames_per_step} and the labels"
            )
        return np.argmax(logits, axis=1)

    def _whole_steps(self, seconds: float) -> int:
        return int(seconds * self.front_end.rate_hz) // self.step_samples * self.step_samples


def cut_windows(
    blocks: Iterable[NDArray[np.float32]], *, length: int, overlap: int, step: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first sample, samples) of overlapping windows over a sound given block by block.

    All sizes in samples, `length` and `overlap` whole steps, `overlap` at most half of `length`.
    A sound of at most `length` is one window. Otherwise windows of `length` share `overlap`
    samples, until two cover the rest: those are equally long but for a step. Every window starts
    at a whole step; at most two windows and a block are held.

    >>> blocks = [np.zeros(25, np.float32)]
    >>> [(start, len(window)) for start, window in cut_windows(blocks, length=10, overlap=2, step=1)]
    [(0, 10), (8, 10), (16, 9)]
    """
    most = 2 * length - overlap  # what two windows cover
    start, held = 0, np.zeros(0, np.float32)
    for block in blocks:
        # A block may be a whole sound of hours: it is taken in pieces.
        for piece in np.split(block, range(length, len(block), length)):
            held = np.concatenate([held, piece])
            while len(held) > most:
                yield start, held[:length]
                start, held = start + length - overlap, held[length - overlap :]
    if len(held) <= length:
        yield start, held
        return
    first = -(-(len(held) + overlap) // (2 * step)) * step
    yield start, held[:first]
    yield start + first - overlap, held[first - overlap :]


def join_paths(
    left: NDArray[np.intp], right: NDArray[np.intp], start: int, blank_index: int
) -> NDArray[np.intp]:
    """One path of two that overlap: `right` begins at step `start` of `left`.

    Cut where both are blank, as near to the overlap's middle as can be (of two the earlier), else
    in the middle: there a label may be heard twice or not at all.

    >>> join_paths(np.array([0, 9, 9, 1]), np.array([9, 9, 1, 2]), start=1, blank_index=9).tolist()
    [0, 9, 9, 1, 2]
    """
    shared = len(left) - start
    assert 0 <= shared <= len(right)
    both_blank = np.flatnonzero((left[start:] == blank_index) & (right[:shared] == blank_index))
    cut = shared // 2
    if both_blank.size:
        cut = int(both_blank[np.argmin(np.abs(both_blank - cut))])
    return np.concatenate([left[: start + cut], right[cut:]])
