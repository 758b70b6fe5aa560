"""Every network refuses lengths that its features cannot have."""

from __future__ import annotations

import pytest
import torch
from tests.test_streaming_models import network_of

from subtone.models.quartznet import Block, QuartzNet, QuartzNetConfig

NAMES = ("s8bqat-m1", "bifocal", "conformer-transducer-s", "conformer-ctc-demo")


def encoders() -> list[torch.nn.Module]:
    quartznet = QuartzNet(QuartzNetConfig(num_features=12, blocks=(Block(filters=4, kernel=3),)))
    return [quartznet, *(network_of(name).encoder for name in NAMES)]


@pytest.mark.parametrize("lengths", [[0, 9], [9, 10]])
def test_lengths_beyond_the_padding_or_of_nothing_are_refused(lengths: list[int]) -> None:
    for encoder in encoders():
        with pytest.raises(ValueError, match=r"lengths=\[\d+, \d+\] of 9 frames: each must be 1 to 9"):
            encoder(torch.zeros(2, 12, 9), torch.tensor(lengths))
        with pytest.raises(ValueError, match="for 2 utterances; give one each"):
            encoder(torch.zeros(2, 12, 9), torch.tensor([9]))
