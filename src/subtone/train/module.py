"""Training of any network that hears: one with a CTC head, or a transducer.

Letters: B utterances, F features, T frames, V labels and the blank.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from subtone.speech.text import Tokenizer, WordErrors, word_errors
from subtone.train.data import Batch
from subtone.train.objectives import objective_of
from subtone.train.schedules import schedule_of
from subtone.train.settings import Learning

STEPS_BETWEEN_LOOKS = 50
"""On a GPU, where to look at a loss is to wait for it; a CPU looks at each."""


log = logging.getLogger(__name__)


class SpeechModule(lightning.LightningModule):
    """Trains `network` by the objective of its kind (objectives.py).

    * With a CTC head: `network(features (B, F, T), lengths (B,))` gives logits (B, T', V) and lengths (B,).
    * A transducer also takes labels (B, U) and their lengths, and gives a lattice of logits, or two.

    What is random in a step (masks, dropout) follows from the seed and the number of the step
    alone, so that a resumed run draws what the uninterrupted one would have.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        tokenizer: Tokenizer,
        settings: Learning,
        recipe: Mapping[str, Any] | None = None,
        num_mels: int | None = None,
    ) -> None:
        super().__init__()
        self.num_mels = num_mels
        """Of a single frame, where several are stacked in a row: what is masked is a band of all of them."""
        self.network = network
        self.tokenizer = tokenizer
        self.settings = settings
        self.objective = objective_of(network, blank_index=tokenizer.blank_index)
        self.recipe = dict(recipe or {})
        """What decides the run beside `settings`, as plain JSON; it travels in the checkpoint."""
        self.data = ""
        """A digest of what is learned from; it travels in the checkpoint."""
        self.errors = WordErrors()
        """Of the latest pass over the dev set."""
        self.curve: list[dict[str, float]] = []
        """A row an epoch: `step`, `loss` (its mean over the epoch), with a dev set `dev_wer_percent`, and
        what else was logged by then (subtone.train.Quantize: the metrics of its method)."""
        self._losses: list[Tensor] = []
        self._steps_before = 0
        self._num_checked = 0

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        batches_a_step = self.settings.batches_per_step
        index = self.global_step * batches_a_step + batch_index % batches_a_step
        torch.manual_seed(self.settings.seed * 1_000_003 + index)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        settings = self.settings
        features = mask_features(
            batch.features,
            batch.lengths,
            masks=settings.masks,
            mask_mels=settings.mask_mels,
            mask_frames=settings.mask_frames,
            num_mels=self.num_mels,
        )
        loss = self.loss(features, batch)
        self._losses.append(loss.detach())
        if loss.device.type == "cpu" or len(self._losses) % STEPS_BETWEEN_LOOKS == 0:
            self.check_losses()
        return loss

    def loss(self, features: Tensor, batch: Batch) -> Tensor:
        """Of `features`, those of `batch` as the network is to hear them."""
        return self.objective.loss(self.objective.pass_through(self.network, features, batch), batch)

    def check_losses(self) -> None:
        """ValueError at the first loss since the last look that is not finite."""
        fresh = torch.tensor([float(loss) for loss in self._losses[self._num_checked :]])
        wrong = (~torch.isfinite(fresh)).nonzero().flatten().tolist()
        if wrong:
            step = self._steps_before + (self._num_checked + wrong[0]) // self.settings.batches_per_step + 1
            raise self._diverged(
                f"at step {step} of {self.settings.steps} the loss is {float(fresh[wrong[0]])}"
            )
        self._num_checked = len(self._losses)

    def _diverged(self, what: str) -> ValueError:
        rate = self.settings.learning_rate
        return ValueError(
            f"training diverged: {what}; lower learning_rate={rate:g}. No state of it was saved"
        )

    def on_train_epoch_start(self) -> None:
        self._losses, self._num_checked, self._steps_before = [], 0, self.global_step

    def on_train_epoch_end(self) -> None:
        """After validation and other callbacks, and before the state is saved."""
        if not self._losses:  # a finished run, taken up again
            return
        self.check_losses()
        for name, value in self.state_dict().items():  # the last step has no loss after it
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise self._diverged(f"after step {self.global_step} {name} is not finite")
        row = {"step": float(self.global_step), "loss": float(torch.stack(self._losses).mean())}
        if self.errors.words:
            row["dev_wer_percent"] = 100 * self.errors.rate
        row |= {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        self.curve.append(row)
        told = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        log.info("step %d of %d: %s", self.global_step, self.settings.steps, told)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self.settings.model_dump(mode="json")
        checkpoint["recipe"] = self.recipe
        checkpoint["data"] = self.data
        checkpoint["curve"] = self.curve
        checkpoint["errors"] = dataclasses.asdict(self.errors)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.curve = checkpoint["curve"]
        self.errors = WordErrors(**checkpoint["errors"])

    def on_validation_epoch_start(self) -> None:
        self.errors = WordErrors()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        for labels, text in zip(self.objective.hear(self.network, batch), batch.texts, strict=True):
            self.errors += word_errors(text, self.tokenizer.decode(labels))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters with the highest learning rate of each group, as torch's optimizers take them."""
        return [{"params": list(self.parameters()), "lr": self.settings.learning_rate}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.parameter_groups(), betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        schedule = schedule_of(optimizer, settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def mask_features(
    features: Tensor,
    lengths: Tensor,
    *,
    masks: int,
    mask_mels: int,
    mask_frames: int,
    num_mels: int | None = None,
) -> Tensor:
    """`features` (B, F, T) with bands and spans set to 0, their mean over the utterance.

    SpecAugment (Park et al. 2019) without time warping: in each utterance `masks` bands, each of
    0 to `mask_mels` features, and `masks` spans, each of 0 to `mask_frames` valid frames. Rows of several
    frames of `num_mels` lose the same band of each.
    """
    batch_size, num_features, num_frames = features.shape
    is_hidden = torch.zeros(features.shape, dtype=torch.bool, device=features.device)
    num_mels = num_mels or num_features
    whole = torch.full((batch_size,), num_mels, device=features.device)
    for _ in range(masks):
        band = random_span(whole, mask_mels, num_mels).repeat(1, num_features // num_mels)
        is_hidden |= band[:, :, None]
        is_hidden |= random_span(lengths, mask_frames, num_frames)[:, None, :]
    return features.masked_fill(is_hidden, 0.0)


def random_span(lengths: Tensor, longest: int, size: int) -> Tensor:
    """(B, size), true on one span of 0 to `longest` places within the first `lengths` (B,)."""
    draws = torch.rand(2, len(lengths), device=lengths.device)
    width = torch.minimum((draws[0] * (longest + 1)).long(), lengths)
    start = (draws[1] * (lengths - width + 1)).long()
    places = torch.arange(size, device=lengths.device)
    return (places >= start[:, None]) & (places < (start + width)[:, None])
