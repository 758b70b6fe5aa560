"""How frames enter a Conformer: fewer of them, each as wide as its blocks.

Frames may be stacked, and two convolutions of stride 2 over time and frequency may then take every
fourth; a linear layer ends both. Behind the convolutions there are ceil(ceil(T / 2) / 2) rows.

Letters: B batch, F features, T frames, C channels, D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from subtone.models.conformer_config import ConformerConfig
from subtone.models.operators import stack_frames

KERNEL, STRIDE = 3, 2


def masked_rows(rows: Tensor, lengths: Tensor | None, axis: int = 1) -> Tensor:
    """`rows` with zeros from `lengths` (B,) on along `axis`; as they are where `lengths` is None."""
    if lengths is None:
        return rows
    is_beyond = torch.arange(rows.shape[axis], device=rows.device) >= lengths[:, None]
    shape = [1] * rows.dim()
    shape[0], shape[axis] = is_beyond.shape
    return rows.masked_fill(is_beyond.view(shape), 0.0)


class Subsampling(nn.Module):
    """Features (B, F, T) to rows (B, T', D), and their lengths."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.stacked_frames = config.stacked_frames
        inputs, channels = config.num_features * config.stacked_frames, config.conv2d_channels
        # Frames to the left and right of an utterance: a causal kernel sees two before its own.
        self.padding = (KERNEL - 1, 0) if config.is_convolution_causal else (KERNEL // 2, KERNEL // 2)
        pads_frequency = (0, KERNEL // 2)
        self.convolutions = nn.ModuleList()
        if channels:
            for sources in (1, channels):
                self.convolutions.append(
                    nn.Conv2d(sources, channels, KERNEL, stride=STRIDE, padding=pads_frequency)
                )
                inputs = -(-inputs // STRIDE)
            inputs *= channels
        self.out = nn.Linear(inputs, config.width)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        rows = features.transpose(1, 2)
        if self.stacked_frames > 1:
            rows = stack_frames(rows, self.stacked_frames)
            lengths = None if lengths is None else lengths // self.stacked_frames
        if len(self.convolutions):
            rows, lengths = self._convolved(rows, lengths)
        return self.out(rows), lengths

    def _convolved(self, rows: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        grid = rows.unsqueeze(1)  # (B, 1, T, F), then (B, C, T', F')
        for module in self.convolutions:
            grid = nn.functional.pad(masked_rows(grid, lengths, axis=2), (0, 0, *self.padding))
            grid = torch.relu(cast(nn.Conv2d, module)(grid))
            lengths = None if lengths is None else torch.div(lengths + 1, STRIDE, rounding_mode="floor")
        return grid.transpose(1, 2).flatten(2), lengths
