"""Small Conformers that differ in what a Conformer can differ in, with random weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from subtone.models.conformer import Conformer
from subtone.models.conformer_config import ConformerConfig

FULL = ConformerConfig(
    num_features=6, conv2d_channels=3, width=8, feed_forward_width=12, num_blocks=2, heads=2, kernel=4
)
STREAMING = dataclasses.replace(
    FULL, kernel=3, left=3, right=0, is_convolution_causal=True, norm="layer", is_input_scaled=True
)
OPEN = dataclasses.replace(STREAMING, kernel=4, is_open=True, projection_width=10)
STACKED = dataclasses.replace(
    STREAMING, stacked_frames=3, conv2d_channels=0, num_blocks_without_attention=1, right=2
)
STACKED_BEFORE = dataclasses.replace(FULL, stacked_frames=2, kernel=5, left=2, right=1)
PAST = dataclasses.replace(STREAMING, left=-1, norm="batch")
VARIANTS = {
    "full": FULL,
    "streaming": STREAMING,
    "open": OPEN,
    "stacked": STACKED,
    "stacked before": STACKED_BEFORE,
    "past": PAST,
}


def randomize(model: torch.nn.Module) -> None:
    """Every norm, statistic and attention bias random, so that none can be left out unseen."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif "norm" in name and value.is_floating_point():
                value.normal_(1.0, 0.5)
            elif "_bias" in name:
                value.normal_()


def random_encoder(config: ConformerConfig) -> Conformer:
    """In eval mode."""
    torch.manual_seed(0)
    encoder = Conformer(config).eval()
    randomize(encoder)
    return encoder


def random_frames(frames: int, batch: int = 1, num_features: int = 6) -> Tensor:
    torch.manual_seed(frames)
    return torch.randn(batch, num_features, frames)
