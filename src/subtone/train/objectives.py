"""What a network is asked for: the loss of its texts, and what it hears; CTC and the transducer's.

A module trains any network by an objective, and tuning adds the distance from a float teacher to it. So
an objective takes the forward pass apart from the loss: what one pass gave serves both.

* CTC: logits (B, T, V) of every frame.
* A transducer: logits (B, T, U + 1, V) of every frame behind every part of the text; a cascade gives two
  such lattices, and its loss is the mean of theirs (int4, section 2.1: both passes learn from one text).

Losses are a label: nats divided by the labels of an utterance, the mean over utterances, so that long texts
weigh no more than short ones and rates mean the same for both objectives.

Letters: B utterances, T frames, U labels of the longest, V labels and the blank.
"""

from __future__ import annotations

import abc
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from subtone.models import is_transducer
from subtone.models.hearing import TorchTransducer, encoded
from subtone.models.losses import rnnt_loss
from subtone.speech.decode import greedy_ctc
from subtone.speech.transducer_search import TransducerGreedySearch
from subtone.train.data import Batch


class Given(NamedTuple):
    """One forward pass: logits of each of the network's passes, and the rows (B,) of each utterance."""

    logits: tuple[Tensor, ...]
    lengths: Tensor


class Objective(abc.ABC):
    """How labels and logits meet; `blank_index` is the last of V."""

    def __init__(self, blank_index: int) -> None:
        self.blank_index = blank_index

    @abc.abstractmethod
    def pass_through(self, network: nn.Module, features: Tensor, batch: Batch) -> Given:
        """What `network` gives for `features`, those of `batch` as it is to hear them."""

    @abc.abstractmethod
    def loss(self, given: Given, batch: Batch) -> Tensor:
        """A scalar: nats a label, the mean over utterances and passes."""

    @abc.abstractmethod
    def is_valid(self, given: Given, batch: Batch) -> Tensor:
        """Which distributions of a pass are of sound and text and not of padding: logits' shape less V."""

    @abc.abstractmethod
    def hear(self, network: nn.Module, batch: Batch) -> list[list[int]]:
        """The labels that `network`, in eval mode, hears in each utterance."""


class Ctc(Objective):
    """Connectionist temporal classification: a label or the blank in each frame."""

    def pass_through(self, network: nn.Module, features: Tensor, batch: Batch) -> Given:
        logits, lengths = network(features, batch.lengths)
        return Given((logits,), lengths)

    def loss(self, given: Given, batch: Batch) -> Tensor:
        log_probabilities = given.logits[0].float().log_softmax(dim=-1)
        return nn.functional.ctc_loss(
            log_probabilities.transpose(0, 1),
            batch.labels,
            given.lengths,
            batch.label_lengths,
            blank=self.blank_index,
        )

    def is_valid(self, given: Given, batch: Batch) -> Tensor:
        return _within(given.lengths, given.logits[0].shape[1])

    @torch.no_grad()
    def hear(self, network: nn.Module, batch: Batch) -> list[list[int]]:
        logits, lengths = network(batch.features, batch.lengths)
        rows = logits.float().cpu().numpy()
        return [
            greedy_ctc(of_one[: int(length)], self.blank_index)
            for of_one, length in zip(rows, lengths, strict=True)
        ]


class Rnnt(Objective):
    """A transducer: any number of labels in each frame, then the blank (`models.losses.rnnt_loss`)."""

    def pass_through(self, network: nn.Module, features: Tensor, batch: Batch) -> Given:
        logits, lengths = network(features, batch.lengths, labels_by_utterance(batch), batch.label_lengths)
        return Given(logits if isinstance(logits, tuple) else (logits,), lengths)

    def loss(self, given: Given, batch: Batch) -> Tensor:
        labels = labels_by_utterance(batch)
        each = [
            rnnt_loss(
                logits,
                labels,
                given.lengths,
                batch.label_lengths,
                blank_index=self.blank_index,
                reduction="none",
            )
            for logits in given.logits
        ]
        return (torch.stack(each) / batch.label_lengths.to(each[0].device)).mean()

    def is_valid(self, given: Given, batch: Batch) -> Tensor:
        _, frames, prefixes, _ = given.logits[0].shape
        of_frames = _within(given.lengths, frames)
        of_labels = _within(batch.label_lengths.to(of_frames.device) + 1, prefixes)
        return of_frames[:, :, None] & of_labels[:, None, :]

    @torch.no_grad()
    def hear(self, network: nn.Module, batch: Batch) -> list[list[int]]:
        """By greedy search, a cascade's second pass; utterances one by one, so that no padding is heard."""
        assert is_transducer(network)
        model, heard = TorchTransducer.of(network), []
        for features, length in zip(batch.features, batch.lengths.tolist(), strict=True):
            search = TransducerGreedySearch(model)
            search.push(encoded(network, features[None, :, :length])[0].float().cpu().numpy())
            heard.append(list(search.best().labels))
        return heard


def objective_of(network: nn.Module, *, blank_index: int) -> Objective:
    """The transducer's loss where `network` needs labels to compute, else CTC."""
    return Rnnt(blank_index) if is_transducer(network) else Ctc(blank_index)


def labels_by_utterance(batch: Batch) -> Tensor:
    """Labels (B, U), the padding 0, of those that lie end to end in `batch`.

    >>> of_two = Batch(torch.zeros(2, 1, 1), torch.ones(2), torch.tensor([5, 6, 7]), torch.tensor([1, 2]), ("", ""))
    >>> labels_by_utterance(of_two).tolist()
    [[5, 0], [6, 7]]
    """
    parts = cast(tuple[Tensor, ...], batch.labels.split(batch.label_lengths.tolist()))  # type: ignore[no-untyped-call]
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def _within(lengths: Tensor, size: int) -> Tensor:
    """(B, size), true in the first `lengths` (B,) places."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
