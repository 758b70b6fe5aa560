"""Sound as it comes, words as they are known: for models that stream, and for transducers that do not.

    samples -> front end -> encoder -> search -> words so far

Each stage takes what is new and keeps what it still needs, so that memory does not grow with the
utterance and a chunk costs what it holds. Whatever the cuts, the words at the end are the same.

Letters: S samples, T feature frames, D width of an encoder's row.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from subtone.speech.audio import audio_blocks, check_samples
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.recognize import Recognizer, Transcript
from subtone.speech.search import Hypothesis
from subtone.speech.text import Tokenizer

Matrix = NDArray[np.float32]


class Listening(Protocol):
    """What a search is to a listener: see `Search`."""

    def push(self, frames: Matrix) -> None: ...

    def best(self) -> Hypothesis: ...

    def finish(self) -> Hypothesis: ...


class Encoder(Protocol):
    """Features (T, F) to rows (T', D), chunk by chunk; an engine of the run time is one."""

    def start(self) -> Any:
        """The state before the first frame."""

    def step(self, state: Any, features: Matrix, *, is_last: bool = False) -> tuple[Matrix, Any]:
        """The rows that new features add, and the state behind them."""


@dataclasses.dataclass(frozen=True)
class Token:
    """A label as it was heard: its text and when, in seconds from the start."""

    text: str
    start_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StreamRecognizer:
    """Sound to words by an encoder and a search, as the sound comes.

    * `encoder`: as `Encoder`; `new_search`: the search of one utterance over its rows.
    * `frames_per_step`: feature frames from one row to the next.
    * `can_stream`: whether rows come before the sound ends; else `Listener.text` is empty until then, and memory
      grows with the sound.
    """

    front_end: MelFrontEnd
    tokenizer: Tokenizer
    encoder: Encoder
    new_search: Callable[[], Listening]
    frames_per_step: int
    can_stream: bool = True

    @property
    def step_s(self) -> float:
        """Seconds from one row of the encoder to the next."""
        return self.frames_per_step * self.front_end.hop_samples / self.front_end.rate_hz

    def listen(self) -> Listener:
        """A new utterance."""
        return Listener(self)

    def hear(self, samples: NDArray[np.floating]) -> str:
        """The words in `samples`, shape (S,), mono at the front end's rate; AudioError where `check_samples` says so."""
        return self._hear([check_samples(samples, rate_hz=self.front_end.rate_hz)]).text

    def hear_file(self, path: str | os.PathLike) -> str:
        """The words in a sound file of any format, rate and length; AudioError as `audio_blocks`."""
        return self.transcript(path).text

    def transcript(
        self, path: str | os.PathLike, *, progress: Callable[[int, int | None], None] | None = None
    ) -> Transcript:
        """`hear_file` with the duration; `progress(done, None)` counts seconds of sound."""
        return self._hear(audio_blocks(path, self.front_end.rate_hz), progress)

    def _hear(
        self,
        blocks: Iterable[NDArray[np.float32]],
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Transcript:
        listener = self.listen()
        for block in blocks:
            listener.push(block)
            if progress:
                progress(int(listener.duration_s), None)
        return Transcript(text=listener.finish(), duration_s=listener.duration_s)


AnyRecognizer = Recognizer | StreamRecognizer
"""Both hear samples and files: `hear`, `hear_file`, `transcript`."""


class Listener:
    """One utterance on its way: `push` sound, read `text`, `finish` once.

    After `finish` a push is a ValueError, as is sound that is not finite.
    """

    def __init__(self, recognizer: StreamRecognizer) -> None:
        self._recognizer = recognizer
        self._features = _features_of(recognizer.front_end)
        self._state = recognizer.encoder.start()
        self._search = recognizer.new_search()
        self._num_samples = 0
        self._final: Hypothesis | None = None

    @property
    def duration_s(self) -> float:
        """Of the sound so far."""
        return self._num_samples / self._recognizer.front_end.rate_hz

    @property
    def text(self) -> str:
        """The words so far; later sound may change the last of them, with a beam."""
        return self._text(self._best)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The labels so far, each with the time of the encoder's row that gave it."""
        best, step_s = self._best, self._recognizer.step_s
        labels = self._recognizer.tokenizer.labels
        return tuple(
            Token(labels[label], round(frame * step_s, 3))
            for label, frame in zip(best.labels, best.frames, strict=True)
        )

    def push(self, samples: NDArray[np.floating]) -> None:
        """Takes the next samples (n,), mono at the front end's rate; any n from 0."""
        self._take(self._features.push(samples), is_last=False)
        self._num_samples += len(samples)

    def finish(self) -> str:
        """The words of the whole utterance."""
        self._take(self._features.finish(), is_last=True)
        self._final = self._search.finish()
        return self._text(self._final)

    @property
    def _best(self) -> Hypothesis:
        return self._final or self._search.best()

    def _take(self, features: Matrix, *, is_last: bool) -> None:
        if len(features) or is_last:
            rows, self._state = self._recognizer.encoder.step(self._state, features, is_last=is_last)
            self._search.push(rows)

    def _text(self, best: Hypothesis) -> str:
        return " ".join(self._recognizer.tokenizer.decode(list(best.labels)).split())


class WholeEncoder:
    """An encoder that needs the whole utterance, as one that streams: all rows come with the last chunk.

    Args:
        run: features (T, F) of a whole utterance to rows (T', D).
        width: D, of the rows that do not come yet.
    """

    def __init__(self, run: Callable[[Matrix], Matrix], *, width: int) -> None:
        self._run, self._width = run, width

    def start(self) -> tuple[Matrix, ...]:
        return ()

    def step(
        self, state: tuple[Matrix, ...], features: Matrix, *, is_last: bool = False
    ) -> tuple[Matrix, tuple[Matrix, ...]]:
        state = (*state, features)
        if is_last:
            return self._run(np.concatenate(state)), ()
        return np.empty((0, self._width), np.float32), state


class _WholeFeatures:
    """A front end that needs the whole utterance, as one that streams."""

    def __init__(self, front_end: MelFrontEnd) -> None:
        self._front_end = front_end
        self._held: list[NDArray[np.float32]] = []
        self._num_samples = 0
        self._is_finished = False

    def push(self, samples: NDArray[np.floating]) -> Matrix:
        self._check_open("push")
        samples = check_samples(
            samples, rate_hz=self._front_end.rate_hz, num_before=self._num_samples, may_be_empty=True
        )
        self._held.append(samples)
        self._num_samples += len(samples)
        return np.empty((0, self._front_end.num_features), np.float32)

    def finish(self) -> Matrix:
        self._check_open("finish")
        self._is_finished = True
        if not self._num_samples:
            return np.empty((0, self._front_end.num_features), np.float32)
        return self._front_end(np.concatenate(self._held))

    def _check_open(self, doing: str) -> None:
        if self._is_finished:
            raise ValueError(f"{doing} after finish: listen anew for the next utterance")


def _features_of(front_end: MelFrontEnd) -> Any:
    return _WholeFeatures(front_end) if front_end.normalize == "per_feature" else front_end.stream()
