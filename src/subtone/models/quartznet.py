"""QuartzNet and Jasper: one network of convolution blocks, told apart by their tables.

Kriman et al. 2020 (QuartzNet), Li et al. 2019 (Jasper); sizes in PAPERS.md section 3. A block
repeats (convolution, BatchNorm, ReLU) and adds its input through a 1x1 convolution and a
BatchNorm before the last ReLU; with dense residuals it adds the inputs of all earlier blocks.

Letters: B batch, F features, C channels, T frames, V labels and blank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from subtone.models.lengths import check_lengths

BATCH_NORM_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One row of the table."""

    filters: int
    kernel: int
    repeat: int = 1
    stride: int = 1
    dilation: int = 1
    dropout: float = 0.0
    is_separable: bool = True
    has_residual: bool = False
    has_dense_residual: bool = False

    def __post_init__(self) -> None:
        for name in ("filters", "kernel", "repeat", "stride", "dilation"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"block {name}={value!r} must be a whole number of at least 1")
        if self.kernel % 2 == 0:
            raise ValueError(f"block kernel={self.kernel} must be odd, so that frames stay centred")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"block dropout={self.dropout} must lie in [0, 1)")
        if self.has_residual and self.stride > 1:
            raise ValueError(f"a residual cannot cross stride={self.stride}; use stride 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuartzNetConfig:
    """The network, as a checkpoint stores it."""

    num_features: int = 64
    num_outputs: int = 29
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("blocks is empty; a network needs at least one")

    def with_ends(self, *, num_features: int, num_outputs: int) -> QuartzNetConfig:
        """The same network for other features and labels."""
        return dataclasses.replace(self, num_features=num_features, num_outputs=num_outputs)

    def to_json(self) -> dict:
        return {
            "family": "quartznet",
            **dataclasses.asdict(self),
            "blocks": [dataclasses.asdict(row) for row in self.blocks],
        }

    @classmethod
    def from_json(cls, document: Mapping) -> QuartzNetConfig:
        """The config of `to_json`; ValueError names a key it does not know."""
        values = {name: value for name, value in document.items() if name != "family"}
        try:
            return cls(**{**values, "blocks": tuple(Block(**row) for row in values.get("blocks", ()))})
        except TypeError as error:
            raise ValueError(f"not a QuartzNet config: {error}") from error


def conv1d(inputs: int, outputs: int, block: Block, *, kernel: int, is_depthwise: bool = False) -> nn.Conv1d:
    """Convolution that keeps frames centred; no bias, since a BatchNorm follows."""
    stride, dilation = (block.stride, block.dilation) if kernel > 1 else (1, 1)
    return nn.Conv1d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        dilation=dilation,
        padding=dilation * (kernel - 1) // 2,
        groups=inputs if is_depthwise else 1,
        bias=False,
    )


def masked(features: Tensor, lengths: Tensor | None) -> Tensor:
    """`features` (B, C, T) with zeros from `lengths` (B,) on; as they are where `lengths` is None."""
    if lengths is None:
        return features
    frames = torch.arange(features.shape[2], device=features.device)
    return features.masked_fill((frames >= lengths[:, None])[:, None], 0.0)


def lengths_after(conv: nn.Conv1d, lengths: Tensor | None) -> Tensor | None:
    """Valid frames (B,) behind `conv`."""
    if lengths is None:
        return None
    span = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    return torch.div(lengths + 2 * int(conv.padding[0]) - span, conv.stride[0], rounding_mode="floor") + 1


class Unit(nn.Module):
    """Convolution (depthwise then pointwise where separable) and its BatchNorm."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        if block.is_separable:
            self.depthwise = conv1d(inputs, inputs, block, kernel=block.kernel, is_depthwise=True)
            self.pointwise = conv1d(inputs, block.filters, block, kernel=1)
        else:
            self.conv = conv1d(inputs, block.filters, block, kernel=block.kernel)
        self.norm = nn.BatchNorm1d(block.filters, eps=BATCH_NORM_EPSILON)

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        features = masked(features, lengths)
        spanning = self.depthwise if hasattr(self, "depthwise") else self.conv
        features, lengths = spanning(features), lengths_after(spanning, lengths)
        if hasattr(self, "pointwise"):
            features = self.pointwise(features)
        return self.norm(features), lengths


class Residual(nn.Module):
    """1x1 convolution and BatchNorm from an earlier block's input."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        self.conv = conv1d(inputs, block.filters, block, kernel=1)
        self.norm = nn.BatchNorm1d(block.filters, eps=BATCH_NORM_EPSILON)

    def forward(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        return self.norm(self.conv(masked(features, lengths)))


class ConvBlock(nn.Module):
    """`repeat` units; residuals join before the last ReLU. `inputs`: channels of each source."""

    def __init__(self, inputs: list[int], block: Block) -> None:
        super().__init__()
        widths = [inputs[-1], *[block.filters] * (block.repeat - 1)]
        self.units = nn.ModuleList(Unit(width, block) for width in widths)
        self.residuals = nn.ModuleList(Residual(width, block) for width in residual_sources(inputs, block))
        self.dropout = nn.Dropout(block.dropout)

    def forward(self, sources: list[Tensor], lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        features, lengths_in = sources[-1], lengths
        for index, unit in enumerate(self.units):
            if index:
                features = self.dropout(torch.relu(features))
            features, lengths = unit(features, lengths)
        joining = sources[-len(self.residuals) :] if len(self.residuals) else []
        for source, residual in zip(joining, self.residuals, strict=True):
            features = features + residual(source, lengths_in)
        return self.dropout(torch.relu(features)), lengths


def residual_sources(inputs: list, block: Block) -> list:
    """Which of the block inputs seen so far join this block: none, the last, or all but the sound."""
    if not block.has_residual:
        return []
    return inputs[1:] if block.has_dense_residual else inputs[-1:]


class QuartzNet(nn.Module):
    """Log-mel features in, label logits out, for CTC.

    >>> config = QuartzNetConfig(blocks=(Block(filters=8, kernel=3, stride=2),))
    >>> logits, lengths = QuartzNet(config).eval()(torch.zeros(1, 64, 10), torch.tensor([10]))
    >>> logits.shape, lengths
    (torch.Size([1, 5, 29]), tensor([5]))
    """

    def __init__(self, config: QuartzNetConfig) -> None:
        super().__init__()
        self.config = config
        inputs, blocks = [config.num_features], []
        for block in config.blocks:
            blocks.append(ConvBlock(inputs, block))
            inputs.append(block.filters)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv1d(inputs[-1], config.num_outputs, 1)

    @property
    def frames_per_step(self) -> int:
        """Input frames from one row of logits to the next."""
        stride = 1
        for block in self.config.blocks:
            stride *= block.stride**block.repeat
        return stride

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T', V) and their valid lengths (B,), from features (B, F, T).

        Without `lengths` every frame is valid (and None comes back): one utterance, or export.
        """
        check_lengths(features, lengths)
        sources = [features]
        for block in self.blocks:
            features, lengths = block(sources, lengths)
            sources.append(features)
        return self.head(features).transpose(1, 2), lengths


def quartznet_blocks(blocks_per_row: int) -> tuple[Block, ...]:
    """QuartzNet (5 * blocks_per_row) x 5."""
    rows = ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75))
    body = [
        Block(filters=filters, kernel=kernel, repeat=5, has_residual=True)
        for filters, kernel in rows
        for _ in range(blocks_per_row)
    ]
    first = Block(filters=256, kernel=33, stride=2)
    return (
        first,
        *body,
        Block(filters=512, kernel=87, dilation=2),
        Block(filters=1024, kernel=1, is_separable=False),
    )


def jasper_blocks() -> tuple[Block, ...]:
    """Jasper DR 10x5: dense residuals, full convolutions."""
    rows = ((256, 11, 0.2), (384, 13, 0.2), (512, 17, 0.2), (640, 21, 0.3), (768, 25, 0.3))
    full = {"is_separable": False}
    dense = {"has_residual": True, "has_dense_residual": True, **full}
    body = [
        Block(filters=filters, kernel=kernel, repeat=5, dropout=dropout, **dense)
        for filters, kernel, dropout in rows
        for _ in range(2)
    ]
    return (
        Block(filters=256, kernel=11, stride=2, dropout=0.2, **full),
        *body,
        Block(filters=896, kernel=29, dilation=2, dropout=0.4, **full),
        Block(filters=1024, kernel=1, dropout=0.4, **full),
    )


def demo_blocks() -> tuple[Block, ...]:
    """Small enough to learn a hundred words in minutes on two cores; 30 ms a step, to save time."""
    body = [Block(filters=128, kernel=kernel, repeat=2, has_residual=True) for kernel in (9, 11, 13)]
    first = Block(filters=128, kernel=11, stride=3)
    last = Block(filters=192, kernel=1, is_separable=False)
    return (first, *body, Block(filters=128, kernel=17), last)


PRESETS: dict[str, tuple[Block, ...]] = {
    "quartznet-demo": demo_blocks(),
    "quartznet5x5": quartznet_blocks(1),
    "quartznet10x5": quartznet_blocks(2),
    "quartznet15x5": quartznet_blocks(3),
    "jasper10x5": jasper_blocks(),
}
