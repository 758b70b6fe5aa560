"""A Conformer block and its three parts (Gulati et al. 2020, section 2 and Fig. 1).

    x = x + feed_forward1(x) / 2
    x = x + attention(x)
    x = x + convolution(x)
    x = norm(x + feed_forward2(x) / 2)

Each part begins with its own LayerNorm. Rows stay (B, T, D) throughout, so that a 1x1 convolution is a
linear layer; only the depthwise convolution turns them.

Letters: B batch, T frames, D width, R relative positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subtone.models import operators
from subtone.models.conformer_config import ConformerConfig
from subtone.models.subsampling import masked_rows


class FeedForward(nn.Module):
    """Norm, a wide layer, Swish, and back; `is_open`: not back, the wide rows are the result."""

    def __init__(self, config: ConformerConfig, *, is_open: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.feed_forward_width)
        self.linear2 = None if is_open else nn.Linear(config.feed_forward_width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.dropout(nn.functional.silu(self.linear1(self.norm(rows))))
        return rows if self.linear2 is None else self.dropout(self.linear2(rows))


class RelativeAttention(nn.Module):
    """Attention to the rows in its contexts, by content and by distance (`operators.attention`).

    There is dropout on what it gives, none on its weights.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.left, self.right = config.heads, config.left, config.right
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(width))
        self.position_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: Tensor, table: Tensor, lengths: Tensor | None) -> Tensor:
        """`table` (R, D): sinusoids of all distances."""
        rows = self.norm(rows)
        seen = operators.attention(
            self.query(rows),
            self.key(rows),
            self.value(rows),
            self.position(table),
            self.content_bias,
            self.position_bias,
            self.heads,
            self.left,
            self.right,
            lengths,
        )
        return self.dropout(self.out(seen))


class Convolution(nn.Module):
    """Pointwise to twice the width, GLU, depthwise over time, norm, Swish, pointwise.

    An even kernel, centred, has its extra tap in the past: 32 taps see 16 rows before and 15 behind.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width, kernel = config.width, config.kernel
        self.padding = (kernel - 1, 0) if config.is_convolution_causal else (kernel // 2, (kernel - 1) // 2)
        self.norm = nn.LayerNorm(width)
        self.pointwise1 = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        is_batch_norm = config.norm == "batch"
        self.inner_norm: nn.Module = nn.BatchNorm1d(width) if is_batch_norm else nn.LayerNorm(width)
        self.pointwise2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, rows: Tensor, lengths: Tensor | None) -> Tensor:
        rows = nn.functional.glu(self.pointwise1(self.norm(rows)), dim=2)
        channels = masked_rows(rows, lengths).transpose(1, 2)
        channels = self.depthwise(nn.functional.pad(channels, self.padding))
        if isinstance(self.inner_norm, nn.BatchNorm1d):
            rows = self.inner_norm(channels).transpose(1, 2)
        else:
            rows = self.inner_norm(channels.transpose(1, 2))
        return self.dropout(self.pointwise2(nn.functional.silu(rows)))


class ConformerBlock(nn.Module):
    """One block; `attention` is None where it has none."""

    def __init__(self, config: ConformerConfig, *, has_attention: bool = True, is_open: bool = False) -> None:
        super().__init__()
        self.feed_forward1 = FeedForward(config)
        self.attention = RelativeAttention(config) if has_attention else None
        self.convolution = Convolution(config)
        self.feed_forward2 = FeedForward(config, is_open=is_open)
        self.norm = nn.LayerNorm(config.feed_forward_width if is_open else config.width)

    def forward(self, rows: Tensor, table: Tensor, lengths: Tensor | None) -> Tensor:
        rows = rows + 0.5 * self.feed_forward1(rows)
        if self.attention is not None:
            rows = rows + self.attention(rows, table, lengths)
        rows = rows + self.convolution(rows, lengths)
        last = self.feed_forward2(rows)
        # An open block ends in wide rows, to which nothing can be added.
        return self.norm(last if self.feed_forward2.linear2 is None else rows + 0.5 * last)
