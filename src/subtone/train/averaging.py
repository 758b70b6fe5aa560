"""The mean of the weights at the end of the last epochs (checkpoint averaging, Vaswani et al. 2017, 6.1).

A schedule that never ends, as "noam", leaves the weights moving about a good place; their mean is nearer to
it. The weights of the last epochs travel in the run's state, so that a resumed run ends on the same mean:
it is so many times as large.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from subtone.train.module import SpeechModule

State = dict[str, Tensor]


def mean_of(states: Sequence[State]) -> State:
    """Each value's mean over `states`; of what is no float, such as a count of batches, the last.

    >>> mean_of([{"a": torch.tensor([1.0])}, {"a": torch.tensor([4.0])}])
    {'a': tensor([2.5000])}
    """
    mean = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = torch.stack([state[name].double() for state in states]).mean(0)
            mean[name] = total.to(last.dtype)
        else:
            mean[name] = last.clone()
    return mean


class KeepEpochs(Callback):
    """Holds the network's weights at the end of the last `num_epochs` epochs."""

    def __init__(self, num_epochs: int) -> None:
        self.states: deque[State] = deque(maxlen=num_epochs)
        self._step = 0

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.global_step == self._step:  # a finished run, taken up again
            return
        assert isinstance(module, SpeechModule)
        self._step = trainer.global_step
        state = module.network.state_dict()
        self.states.append({name: value.detach().cpu().clone() for name, value in state.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"states": list(self.states), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.states.clear()
        self.states.extend(state_dict["states"])
        self._step = state_dict["step"]
