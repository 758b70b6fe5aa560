"""What a model hears: log-mel features, the same code in training and in a packed file.

The chain of FrontEnd is NeMo's for QuartzNet, because that is what the published models were
trained on (PAPERS.md section 2). One deviation: no dither, so that features are a function of the
sound. KaldiFbank is the other front end; `front_end_from_json` makes either of a document.

Letters: S samples, T frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from subtone.speech.fbank import KaldiFbank
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.mel import FilterSizes, hann_window
from subtone.speech.normalize import Normalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontEnd(MelFrontEnd):
    """Sound (S,) to log-mel features (T, num_mels); the defaults are QuartzNet's.

    1. Pre-emphasis `y[n] = x[n] - preemphasis * x[n-1]`, the first sample kept.
    2. Frame t is centred at sample `t * hop`, with zeros beyond both ends, under a symmetric Hann
       window of `window_ms`, centred in `fft_size`.
    3. Power spectrum, `num_mels` triangular filters from `low_hz` to `high_hz` on Slaney's mel
       scale, each of unit area; `log(x + log_floor)`.
    4. `normalize="per_feature"`: less the mean over the utterance, by the unbiased deviation
       + 1e-5. One frame alone has deviation 0 (the formula divides 0 by 0), so it becomes zeros.
       Or another way that streams; then `stack` and `stride`: as in MelFrontEnd.

    T = ceil(S / hop): what NeMo calls the valid length. A frame centred beyond the last sample,
    which `torch.stft` adds when hop divides S, is left out. ceil of that by `stride` rows.

    >>> FrontEnd()(np.zeros(16000, np.float32)).shape
    (100, 64)
    >>> [FrontEnd().num_frames(samples) for samples in (1, 160, 161)]
    [1, 1, 2]
    """

    kind: ClassVar[str] = "log_mel"

    window_ms: int = 20
    num_mels: int = 64
    low_hz: float = 0.0
    high_hz: float = 8000.0
    log_floor: float = 2.0**-24
    normalize: Normalize = "per_feature"

    @property
    def window(self) -> NDArray[np.float32]:
        """The Hann window, shape (window_samples,), read-only."""
        return hann_window(self.window_samples)

    @property
    def _is_mirrored(self) -> bool:
        return False

    @property
    def _filter_sizes(self) -> FilterSizes:
        return FilterSizes("slaney", self.rate_hz, self.fft_size, self.num_mels, self.low_hz, self.high_hz)

    def _before_framing(self, samples: NDArray[np.float32], previous: np.float32) -> NDArray[np.float32]:
        emphasized = np.empty_like(samples)
        emphasized[:1] = previous
        emphasized[1:] = samples[:-1]
        emphasized *= np.float32(-self.preemphasis)
        emphasized += samples
        return emphasized

    def _windowed(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        return frames * self.window

    def _lift(self, features: NDArray[np.float32]) -> None:
        features += np.float32(self.log_floor)


FRONT_ENDS: dict[str, type[MelFrontEnd]] = {cls.kind: cls for cls in (FrontEnd, KaldiFbank)}


def front_end_from_json(document: Mapping) -> MelFrontEnd:
    """The front end that a packed file or a checkpoint describes, by its "kind" (none: "log_mel").

    ValueError on a kind, key, type or size that cannot be.

    >>> front_end_from_json(KaldiFbank(num_mels=40).to_json()).num_features
    40
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"the front end is not a JSON object: {document!r:.80}")
    kind = document.get("kind", "log_mel")
    if not isinstance(kind, str) or kind not in FRONT_ENDS:
        raise ValueError(f"the front end has kind={kind!r}; use {' or '.join(FRONT_ENDS)}")
    return FRONT_ENDS[kind].from_json(document)
