"""Float training, on Lightning and Lhotse: settings, batches, the CTC module, one run."""

from subtone.train.fit import Fitted, fit
from subtone.train.module import CtcModule
from subtone.train.settings import TrainSettings

__all__ = ["CtcModule", "Fitted", "TrainSettings", "fit"]
