"""Training, on Lightning and Lhotse: settings, batches, the module, one run; and the callbacks that
bring quantization into anybody's training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from subtone.train.callbacks import Quantize
from subtone.train.fitting import Fitted, fit
from subtone.train.module import SpeechModule
from subtone.train.settings import TrainSettings, TuneSettings
from subtone.train.tuning import Tuned, tune

if TYPE_CHECKING:
    from subtone.train.hf_callback import HfQuantize


def __getattr__(name: str) -> Any:
    """`HfQuantize` on demand: transformers is an extra, and takes seconds to import."""
    if name == "HfQuantize":
        from subtone.train.hf_callback import HfQuantize

        return HfQuantize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Fitted",
    "HfQuantize",
    "Quantize",
    "SpeechModule",
    "TrainSettings",
    "TuneSettings",
    "Tuned",
    "fit",
    "tune",
]
