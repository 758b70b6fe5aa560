"""Sound cut into frames that overlap: the same frames whether it comes at once or piece by piece.

Frame t of `window_samples` starts at sample `t * hop_samples - before_samples`. Two conventions
for where that is, how many frames there are, and what lies beyond the ends of S samples:

* centred (NeMo, torch.stft): frame t is centred at `t * hop`; ceil(S / hop) frames, each centred
  on a sample; zeros beyond both ends.
* mirrored (Kaldi without snip_edges): frame t is centred in hop t, at `t * hop + hop // 2`;
  (S + hop // 2) // hop frames; sample -1 is sample 0 once more, sample S is sample S-1, and so on,
  back and forth as often as needed where the sound is shorter than what is missing.

Letters: S samples, T frames.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Framing:
    """Where frames lie; `hop_samples <= window_samples`."""

    window_samples: int
    hop_samples: int
    is_mirrored: bool

    @property
    def before_samples(self) -> int:
        """How far the first frame reaches before the first sample."""
        return self.window_samples // 2 - (self.hop_samples // 2 if self.is_mirrored else 0)

    def num_frames(self, num_samples: int) -> int:
        """T for S samples.

        >>> sizes = {"window_samples": 400, "hop_samples": 160}
        >>> [Framing(**sizes, is_mirrored=False).num_frames(samples) for samples in (0, 1, 160, 161)]
        [0, 1, 1, 2]
        >>> [Framing(**sizes, is_mirrored=True).num_frames(samples) for samples in (0, 79, 80, 240)]
        [0, 0, 1, 2]
        """
        more = self.hop_samples // 2 if self.is_mirrored else self.hop_samples - 1
        return (num_samples + more) // self.hop_samples


class FrameStream:
    """Frames as soon as all their samples are there: `push`, any number of times, then `finish`.

    Between two calls it holds at most `window_samples` samples. That is enough for the mirrored
    end: the last frame is centred at S or before, so at most half a window of it, rounded up, is
    missing, and the samples that mirror into it lie in the frames still to come; but for an odd
    window centred at S, which needs the one sample before them too.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._num_samples = 0
        self._num_frames = 0
        self._has_start = not framing.is_mirrored
        self._held = np.zeros(0 if framing.is_mirrored else framing.before_samples, np.float32)
        """What comes from the next frame's first sample on, the start's edge included once it is known."""
        self._before_held = np.zeros(0, np.float32)
        """The sample before those, once a frame has passed it."""

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The frames (t, window_samples) that (n,) more samples complete: a view, to be read at once."""
        self._num_samples += len(samples)
        self._held = np.concatenate([self._held, samples])
        before = self._framing.before_samples
        if not self._has_start:
            if len(self._held) < before:
                return self._take(0)
            self._held = np.concatenate([self._held[:before][::-1], self._held])
            self._has_start = True
        num_beyond = len(self._held) - self._framing.window_samples
        return self._take(max(0, num_beyond // self._framing.hop_samples + 1))

    def finish(self) -> NDArray[np.float32]:
        """The frames that reach beyond the last sample."""
        framing, num_samples = self._framing, self._num_samples
        num_frames = framing.num_frames(num_samples) - self._num_frames
        if num_frames <= 0:
            return self._take(0)
        # Positions count from the sound's first sample, as the frames do.
        start = self._num_frames * framing.hop_samples - framing.before_samples
        end = start + (num_frames - 1) * framing.hop_samples + framing.window_samples
        if framing.is_mirrored:
            first_held = start - len(self._before_held) if self._has_start else 0
            held = np.concatenate([self._before_held, self._held])
            self._held = held[mirrored(np.arange(start, end), num_samples) - first_held]
        else:
            self._held = np.concatenate([self._held, np.zeros(end - num_samples, np.float32)])
        return self._take(num_frames)

    def _take(self, num_frames: int) -> NDArray[np.float32]:
        window, hop = self._framing.window_samples, self._framing.hop_samples
        if num_frames == 0:
            return np.zeros((0, window), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(self._held, window)[::hop][:num_frames]
        end = num_frames * hop
        self._before_held = self._held[end - 1 : end].copy()  # a view would keep the whole push alive
        self._held = self._held[end:].copy()
        self._num_frames += num_frames
        return frames


def mirrored(positions: NDArray[np.intp], num_samples: int) -> NDArray[np.intp]:
    """The sample that stands at each of `positions`, of `num_samples` >= 1 mirrored at both ends.

    >>> mirrored(np.arange(-3, 6), 3).tolist()
    [2, 1, 0, 0, 1, 2, 2, 1, 0]
    """
    within = positions % (2 * num_samples)
    return np.minimum(within, 2 * num_samples - 1 - within)
