"""Networks as recognizers, in torch: the same front ends and searches as behind a packed file.

A transducer hears whole utterances here, and its predictor reads all labels anew for each: slow, and plain.

Letters: T frames, D width, N hypotheses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from subtone.models import Network, TransducerNetwork, is_transducer
from subtone.models.cascaded import Cascaded
from subtone.speech.front_end import MelFrontEnd
from subtone.speech.listening import AnyRecognizer, StreamRecognizer, WholeEncoder
from subtone.speech.recognize import Recognizer
from subtone.speech.search import Hypothesis
from subtone.speech.text import Tokenizer
from subtone.speech.transducer_search import TransducerGreedySearch

Matrix = NDArray[np.float32]


def recognizer_of(
    network: Network | TransducerNetwork, *, front_end: MelFrontEnd, tokenizer: Tokenizer
) -> AnyRecognizer:
    """Hears with `network`, which is in eval mode; a cascade with its second pass."""

    @torch.inference_mode()
    def rows(features: Matrix) -> Matrix:
        heard = torch.from_numpy(features).T[None]
        if not is_transducer(network):
            return network(heard)[0][0].numpy()
        return encoded(network, heard)[0].numpy()

    if not is_transducer(network):
        return Recognizer(
            front_end=front_end,
            tokenizer=tokenizer,
            frames_per_step=network.frames_per_step,
            logits=rows,
        )
    model = TorchTransducer.of(network)
    return StreamRecognizer(
        front_end=front_end,
        tokenizer=tokenizer,
        encoder=WholeEncoder(rows, width=network.config.joint_width),
        new_search=lambda: TransducerGreedySearch(model),
        frames_per_step=network.frames_per_step,
        can_stream=False,
    )


@torch.inference_mode()
def hear_through(network: TransducerNetwork, features: torch.Tensor, paths: Sequence[Hypothesis]) -> None:
    """Run every part of `network` on features (1, F, T) as it is served along `paths`, one for each pass.

    What a hook sees meanwhile is what each module meets when the packed file hears: the joiner only those
    pairs of a frame and a prefix that the search visits.
    """
    entries, frames = network.entries(), features
    for last, path in zip(("", "2"), paths, strict=False):
        rows = entries[f"encoder{last}"](frames)
        frames = rows[:, :, network.config.joint_width :]
        labels = torch.tensor([[network.blank_index, *path.labels]], device=features.device)
        predicted = entries[f"predictor{last}"](labels)
        visited = visited_pairs(path, rows.shape[1])
        at = torch.tensor(visited, dtype=torch.int64, device=features.device)
        encoded_at = rows[:, at[:, 0], : network.config.joint_width]
        entries[f"joiner{last}"](encoded_at, predicted[:, at[:, 1]])


def visited_pairs(path: Hypothesis, num_frames: int) -> list[tuple[int, int]]:
    """(frame, labels so far) of each call of the joiner on the way of `path`, in order.

    >>> visited_pairs(Hypothesis((7, 8), (1, 1), 0.0), num_frames=3)
    [(0, 0), (1, 0), (1, 1), (1, 2), (2, 2)]
    """
    pairs, said = [], 0
    for frame in range(num_frames):
        pairs.append((frame, said))
        while said < len(path.labels) and path.frames[said] == frame:
            said += 1
            pairs.append((frame, said))
    return pairs


@torch.inference_mode()
def paths_of(network: TransducerNetwork, features: torch.Tensor) -> list[Hypothesis]:
    """What each pass of `network` hears in features (1, F, T), by greedy search."""
    entries, frames, found = network.entries(), features, []
    for last in ("", "2")[: 1 + isinstance(network, Cascaded)]:
        rows = entries[f"encoder{last}"](frames)
        frames = rows[:, :, network.config.joint_width :]
        model = TorchTransducer(
            entries[f"predictor{last}"], entries[f"joiner{last}"], network.width, network.blank_index
        )
        search = TransducerGreedySearch(model)
        search.push(rows[0, :, : network.config.joint_width].float().cpu().numpy())
        found.append(search.best())
    return found


def encoded(network: TransducerNetwork, features: torch.Tensor) -> torch.Tensor:
    """Frames (B, T', J) of features (B, F, T) as the (last) joiner takes them."""
    entries = network.entries()
    rows = entries["encoder"](features)
    if isinstance(network, Cascaded):
        return entries["encoder2"](rows[:, :, network.config.joint_width :])
    return rows


@dataclasses.dataclass(frozen=True)
class TorchTransducer:
    """`TransducerModel` of torch modules, as `Transducer.entries` gives them; a state is the labels so far."""

    predictor: nn.Module
    joiner: nn.Module
    num_labels: int
    blank_index: int

    @classmethod
    def of(cls, network: TransducerNetwork) -> TorchTransducer:
        """The (last) predictor and joiner of `network`."""
        entries, last = network.entries(), "2" if isinstance(network, Cascaded) else ""
        return cls(entries[f"predictor{last}"], entries[f"joiner{last}"], network.width, network.blank_index)

    def start(self) -> tuple[int, ...]:
        return ()

    @torch.inference_mode()
    def predict(self, label: int, state: tuple[int, ...]) -> tuple[Matrix, tuple[int, ...]]:
        labels = (*state, label)
        return self.predictor(torch.tensor([labels], device=self._device))[
            0, -1
        ].float().cpu().numpy(), labels

    @torch.inference_mode()
    def join(self, frame: Matrix, predicted: Matrix) -> Matrix:
        rows = torch.from_numpy(np.ascontiguousarray(predicted)).to(self._device)
        frames = torch.from_numpy(np.ascontiguousarray(frame)).to(self._device).expand_as(rows)
        return self.joiner(frames[None], rows[None])[0].float().cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.predictor.parameters()).device
