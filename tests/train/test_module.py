"""The CTC module: masks stay inside what is valid, the loss is torch's, the dev set is counted."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig
from subtone.speech.text import WordErrors
from subtone.train.data import Batch
from subtone.train.fitting import ENGLISH
from subtone.train.module import SpeechModule, mask_features, random_span
from subtone.train.settings import TrainSettings

SETTINGS = TrainSettings(name="x", model="quartznet-demo", steps=10, batch_s=5.0, learning_rate=0.1)


def batch_of(texts: tuple[str, ...], frames: int = 40) -> Batch:
    labels = [ENGLISH.encode(text) for text in texts]
    return Batch(
        features=torch.randn(len(texts), 64, frames),
        lengths=torch.full((len(texts),), frames),
        labels=torch.tensor([label for of_one in labels for label in of_one]),
        label_lengths=torch.tensor([len(of_one) for of_one in labels]),
        texts=texts,
    )


def test_masks_hide_at_most_what_is_allowed_and_nothing_else() -> None:
    torch.manual_seed(0)
    features = torch.ones(500, 64, 50)
    lengths = torch.full((500,), 30)
    masked = mask_features(features, lengths, masks=1, mask_mels=10, mask_frames=8)
    hidden = masked == 0
    assert torch.all(masked[~hidden] == 1)
    bands = hidden.all(dim=2).sum(dim=1)
    spans = hidden.all(dim=1).sum(dim=1)
    # 500 draws of 11 and of 9 widths meet every one (a miss: 9 * (8/9)**500 < 1e-24).
    assert set(bands.tolist()) == set(range(11))
    assert set(spans.tolist()) == set(range(9))
    assert not hidden.all(dim=1)[:, 30:].any()


def test_a_band_is_hidden_in_every_frame_of_a_stacked_row() -> None:
    torch.manual_seed(0)
    masked = mask_features(
        torch.ones(50, 12, 9), torch.full((50,), 9), masks=1, mask_mels=3, mask_frames=0, num_mels=4
    )
    by_frame = masked.unflatten(1, (3, 4))
    assert torch.equal(by_frame, by_frame[:, :1].expand_as(by_frame))
    assert set((masked[:, :, 0] == 0).sum(1).tolist()) == {0, 3, 6, 9}  # of 3 frames, 0 to 3 mels each


def test_a_mask_never_exceeds_a_short_utterance() -> None:
    span = random_span(torch.tensor([0, 1, 3]), longest=100, size=5)
    assert span.sum(dim=1).le(torch.tensor([0, 1, 3])).all()
    assert (
        not mask_features(torch.ones(1, 2, 3), torch.tensor([3]), masks=0, mask_mels=2, mask_frames=3)
        .eq(0)
        .any()
    )


def test_the_loss_is_the_mean_of_single_losses() -> None:
    torch.manual_seed(0)
    network = QuartzNet(QuartzNetConfig(blocks=(Block(filters=8, kernel=3),))).eval()
    module = SpeechModule(network, tokenizer=ENGLISH, settings=SETTINGS)
    texts = ("one two", "it's")
    batch = batch_of(texts)
    together = float(module.loss(batch.features, batch).detach())
    singles = []
    for index, text in enumerate(texts):
        one = batch_of((text,))._replace(features=batch.features[index : index + 1])
        singles.append(float(module.loss(one.features, one).detach()))
    assert together == pytest.approx(sum(singles) / 2, rel=1e-5)


def test_words_of_the_dev_set_are_counted_up_to_each_length() -> None:
    class Spell(nn.Module):
        """Says "a b", then "c", which lies beyond the length of the first utterance."""

        def forward(self, features, lengths):
            labels = [*ENGLISH.encode("a b"), *ENGLISH.encode(" c")]
            return nn.functional.one_hot(torch.tensor([labels, labels]), 29).float(), lengths

    module = SpeechModule(Spell(), tokenizer=ENGLISH, settings=SETTINGS)
    batch = batch_of(("a b", "a x c"))._replace(lengths=torch.tensor([3, 5]))
    module.validation_step(batch, 0)
    assert module.errors == WordErrors(substitutions=1, words=5)
    module.on_validation_epoch_start()
    assert module.errors == WordErrors()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.11, 0.15, 0.9, 0.99])
@pytest.mark.parametrize("steps", [2, 10])
def test_every_warmup_that_is_taken_gives_a_rate_to_each_step(share: float, steps: int) -> None:
    settings = TrainSettings.model_validate({**SETTINGS.model_dump(), "warmup_share": share, "steps": steps})
    module = SpeechModule(nn.Linear(1, 1), tokenizer=ENGLISH, settings=settings)
    parts = cast(dict[str, Any], module.configure_optimizers())
    for _ in range(steps):
        assert 0 < parts["optimizer"].param_groups[0]["lr"] <= SETTINGS.learning_rate
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()


def test_a_loss_that_is_not_finite_is_named_by_its_step() -> None:
    """As on a GPU, where many are looked at together."""
    module = SpeechModule(nn.Linear(1, 1), tokenizer=ENGLISH, settings=SETTINGS)
    module._steps_before = 3
    module._losses = [torch.tensor(1.0)]
    module.check_losses()
    module._losses += [torch.tensor(value) for value in (2.0, float("inf"), float("nan"))]
    with pytest.raises(ValueError, match=r"at step 6 of 10 the loss is inf; lower learning_rate=0.1\."):
        module.check_losses()


def test_the_learning_rate_rises_and_falls_within_the_steps() -> None:
    module = SpeechModule(nn.Linear(1, 1), tokenizer=ENGLISH, settings=SETTINGS)
    parts = cast(dict[str, Any], module.configure_optimizers())
    optimizer, schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(SETTINGS.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(SETTINGS.learning_rate, rel=0.2)
    assert rates[0] < 0.1 * max(rates)
    assert rates[-1] < 0.01 * max(rates)
