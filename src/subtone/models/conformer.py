"""Conformer encoders and the CTC model on top of one; causal ones can stream.

Gulati et al. 2020: subsampling, a stack of blocks of attention and convolution, rows out. What tells
one from another is in `conformer_config`, what a block does in `conformer_blocks`.

Letters: B batch, F features, T frames, D width, V labels and blank.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from subtone.models import operators
from subtone.models.conformer_blocks import ConformerBlock
from subtone.models.conformer_config import ConformerConfig, ConformerCtcConfig
from subtone.models.lengths import check_lengths
from subtone.models.operators import UNLIMITED
from subtone.models.subsampling import Subsampling


class Conformer(nn.Module):
    """Features in, encoded rows out.

    >>> import torch
    >>> config = ConformerConfig(
    ...     num_features=8, conv2d_channels=4, width=16, feed_forward_width=32, num_blocks=1, heads=2, kernel=3
    ... )
    >>> rows, lengths = Conformer(config).eval()(torch.zeros(1, 8, 21), torch.tensor([21]))
    >>> rows.shape, lengths
    (torch.Size([1, 6, 16]), tensor([6]))
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(config)
        self.dropout = nn.Dropout(config.dropout)
        last = config.num_blocks - 1
        self.blocks = nn.ModuleList(
            ConformerBlock(
                config,
                has_attention=index >= config.num_blocks_without_attention,
                is_open=config.is_open and index == last,
            )
            for index in range(config.num_blocks)
        )
        self.projection: nn.Linear | None = None
        if config.projection_width is not None:
            inner = config.feed_forward_width if config.is_open else config.width
            self.projection = nn.Linear(inner, config.projection_width)
        # With limited contexts the same few distances occur in every utterance: a constant.
        table = None
        if UNLIMITED not in (config.left, config.right):
            table = operators.sinusoid_table(range(config.left, -config.right - 1, -1), config.width)
        self.register_buffer("table", table, persistent=False)

    @property
    def frames_per_step(self) -> int:
        """Input frames from one row of the result to the next."""
        return self.config.frames_per_step

    @property
    def width(self) -> int:
        """Width of a row of the result."""
        return self.config.result_width

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows (B, T', D) and their valid lengths (B,), from features (B, F, T).

        Without `lengths` every frame is valid (and None comes back): one utterance, or export. Rows
        beyond a length are finite and mean nothing.
        """
        check_lengths(features, lengths)
        rows, lengths = self.subsampling(features, lengths)
        if self.config.is_input_scaled:
            rows = rows * math.sqrt(self.config.width)
        rows = self.dropout(rows)
        table = operators.sinusoids(rows, self.config.width) if self.table is None else self.table
        for block in self.blocks:
            rows = block(rows, table, lengths)
        return rows if self.projection is None else self.projection(rows), lengths


class ConformerCtc(nn.Module):
    """Log-mel features in, label logits out, for CTC: an encoder and a linear head."""

    def __init__(self, config: ConformerCtcConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Conformer(config.encoder)
        self.head = nn.Linear(self.encoder.width, config.num_outputs)

    @property
    def frames_per_step(self) -> int:
        """Input frames from one row of logits to the next."""
        return self.encoder.frames_per_step

    @property
    def width(self) -> int:
        """Labels and blank."""
        return self.config.num_outputs

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T', V) and their valid lengths (B,), from features (B, F, T)."""
        rows, lengths = self.encoder(features, lengths)
        return self.head(rows), lengths
