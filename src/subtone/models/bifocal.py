"""Bifocal encoder: layers of a large and a small LSTM cell, a gate that picks one for each frame.

Macoskey et al. 2021, as GQ section 4.1 has it: five layers of 1024 units beside as many of 256, "to
process less intentful input frames". The papers' switch is a keyword spotter, not described; ours is a
small network on the features of the frame. One decision holds for all layers of a frame. The cells of a
layer share a state, which is our reading (`switched_lstm`); the small path of a layer reads the first
`small_width` units of the layer below, which is all the small path there has written.

    gate = linear(relu(linear(x)))                     one logit a frame; large cells work where > 0
    x_n  = switched_lstm(x_(n-1), gate, ...)           x_0 the features

Letters: B batch, F features, T frames, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from subtone.models.lengths import check_lengths
from subtone.models.strict_config import from_keys, require_whole, without_family
from subtone.models.switched_lstm import Rounding, switched_lstm

FAMILY = "bifocal"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BifocalConfig:
    """The encoder, as a checkpoint stores it; `gate_width` is that of the gate's hidden layer."""

    num_features: int = 192
    num_layers: int = 5
    width: int = 1024
    small_width: int = 256
    gate_width: int = 64

    def __post_init__(self) -> None:
        require_whole(FAMILY, **dataclasses.asdict(self))
        if self.small_width >= self.width:
            raise ValueError(f"bifocal small_width={self.small_width} must be less than width={self.width}")

    def to_json(self) -> dict:
        return {"family": FAMILY, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping) -> BifocalConfig:
        """The config of `to_json`; ValueError names a key it does not know."""
        return from_keys(cls, FAMILY, without_family(document))


class SwitchedLayer(nn.Module):
    """The two cells of a layer.

    `large` and `small` hold the weights as any LSTM does, so that they are quantized as any LSTM's;
    they are never called. Each cell has one bias, beside them.
    """

    def __init__(self, inputs: int, small_inputs: int, width: int, small_width: int) -> None:
        super().__init__()
        self.large = nn.LSTM(inputs, width, bias=False, batch_first=True)
        self.small = nn.LSTM(small_inputs, small_width, bias=False, batch_first=True)
        self.large_bias = nn.Parameter(torch.zeros(4 * width))
        self.small_bias = nn.Parameter(torch.zeros(4 * small_width))

    def forward(self, rows: Tensor, gate: Tensor, rounding: Rounding | None = None) -> Tensor:
        return switched_lstm(
            rows,
            gate,
            cast(Tensor, self.large.weight_ih_l0),
            cast(Tensor, self.large.weight_hh_l0),
            self.large_bias,
            cast(Tensor, self.small.weight_ih_l0),
            cast(Tensor, self.small.weight_hh_l0),
            self.small_bias,
            rounding,
        )


class BifocalEncoder(nn.Module):
    """Features in, one row a frame out.

    >>> encoder = BifocalEncoder(BifocalConfig(num_features=6, num_layers=2, width=8, small_width=2))
    >>> rows, lengths = encoder(torch.zeros(1, 6, 9), torch.tensor([7]))
    >>> rows.shape, lengths
    (torch.Size([1, 9, 8]), tensor([7]))
    """

    frames_per_step = 1

    def __init__(self, config: BifocalConfig) -> None:
        super().__init__()
        self.config = config
        self.gate_hidden = nn.Linear(config.num_features, config.gate_width)
        self.gate_out = nn.Linear(config.gate_width, 1)
        inputs = [(config.num_features, config.num_features)]
        inputs += [(config.width, config.small_width)] * (config.num_layers - 1)
        self.layers = nn.ModuleList(
            SwitchedLayer(large, small, config.width, config.small_width) for large, small in inputs
        )

    @property
    def width(self) -> int:
        """Of a row."""
        return self.config.width

    def gates(self, features: Tensor) -> Tensor:
        """Logits (B, T) from features (B, F, T): where they are above 0, the large cells work."""
        hidden = torch.relu(self.gate_hidden(features.transpose(1, 2)))
        return self.gate_out(hidden).squeeze(2)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows (B, T, D) and their valid lengths (B,), from features (B, F, T)."""
        check_lengths(features, lengths)
        gate, rows = self.gates(features), features.transpose(1, 2)
        for layer in self.layers:
            rows = layer(rows, gate)
        return rows, lengths
