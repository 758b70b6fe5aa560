"""What a Conformer is made of, as data, and the Conformers of the papers.

A variant is a row below, not another class. Widths that a paper does not publish are solved for its
count of parameters, and say so.

Contexts (`left`, `right`) count rows of the encoder: 40 ms each where frames come every 10 ms and are
subsampled by four.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

from subtone.models.operators import UNLIMITED

Norm = Literal["layer", "batch"]
AT_LEAST_ONE = (
    "num_features",
    "stacked_frames",
    "width",
    "feed_forward_width",
    "num_blocks",
    "heads",
    "kernel",
)
NOT_NEGATIVE = ("conv2d_channels", "num_blocks_without_attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """An encoder, as a checkpoint stores it.

    * `num_features`: width of an input frame; `stacked_frames` of them side by side enter at once;
      `conv2d_channels` in the two convolutions that then take every fourth, 0 for none.
    * `width`, `feed_forward_width`, `heads`, `num_blocks`: of the blocks; the first
      `num_blocks_without_attention` have none.
    * `left`, `right`: rows that attention sees before and behind each; -1: all.
    * `kernel`: taps of the depthwise convolution. `is_convolution_causal`: it and the subsampling see
      no future; otherwise centred, the extra tap of an even kernel in the past.
    * `norm`: behind the depthwise convolution.
    * `is_input_scaled`: rows enter the first block times sqrt(width) (Vaswani et al. 2017, 3.4).
    * `is_open`: the last block ends at the hidden layer of its second feed-forward (GQ, Table 1).
    * `projection_width`: of one more linear layer behind the blocks; None for none.
    """

    num_features: int
    stacked_frames: int = 1
    conv2d_channels: int
    width: int
    feed_forward_width: int
    num_blocks: int
    num_blocks_without_attention: int = 0
    heads: int
    kernel: int
    left: int = UNLIMITED
    right: int = UNLIMITED
    is_convolution_causal: bool = False
    norm: Norm = "batch"
    is_input_scaled: bool = False
    is_open: bool = False
    projection_width: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        lowest = {**dict.fromkeys(AT_LEAST_ONE, 1), **dict.fromkeys(NOT_NEGATIVE, 0)}
        lowest |= {"left": UNLIMITED, "right": UNLIMITED}
        if self.projection_width is not None:
            lowest["projection_width"] = 1
        for name, least in lowest.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"conformer {name}={value!r} must be a whole number of at least {least}")
        for name in ("is_convolution_causal", "is_input_scaled", "is_open"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"conformer {name}={getattr(self, name)!r} must be true or false")
        if self.width % 2:
            raise ValueError(f"conformer width={self.width} must be even, for pairs of sines and cosines")
        if self.width % self.heads:
            raise ValueError(
                f"conformer heads={self.heads} does not divide width={self.width}; use a divisor"
            )
        if self.num_blocks_without_attention > self.num_blocks:
            raise ValueError(
                f"conformer num_blocks_without_attention={self.num_blocks_without_attention} is more than "
                f"num_blocks={self.num_blocks}"
            )
        if self.norm not in get_args(Norm):
            raise ValueError(f"conformer norm={self.norm!r} must be one of {', '.join(get_args(Norm))}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"conformer dropout={self.dropout!r} must lie in [0, 1)")

    @property
    def is_causal(self) -> bool:
        """Whether no row depends on a later frame than its own."""
        return self.is_convolution_causal and self.right == 0

    @property
    def frames_per_step(self) -> int:
        """Input frames from one row of the result to the next."""
        return self.stacked_frames * (4 if self.conv2d_channels else 1)

    @property
    def result_width(self) -> int:
        """Width of a row of the result."""
        return self.projection_width or (self.feed_forward_width if self.is_open else self.width)

    def to_json(self) -> dict:
        return {"family": "conformer", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping) -> ConformerConfig:
        """The config of `to_json`; ValueError names a key it does not know."""
        try:
            return cls(**{name: value for name, value in document.items() if name != "family"})
        except TypeError as error:
            raise ValueError(f"not a Conformer config: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerCtcConfig:
    """An encoder and a linear layer to labels and blank, as a checkpoint stores them."""

    encoder: ConformerConfig
    num_outputs: int = 29

    def __post_init__(self) -> None:
        if type(self.num_outputs) is not int or self.num_outputs < 2:
            raise ValueError(
                f"num_outputs={self.num_outputs!r} must be at least 2 (a label and the blank), a whole number"
            )

    @property
    def num_features(self) -> int:
        return self.encoder.num_features

    def with_ends(self, *, num_features: int, num_outputs: int) -> ConformerCtcConfig:
        """The same network for other features and labels."""
        encoder = dataclasses.replace(self.encoder, num_features=num_features)
        return dataclasses.replace(self, encoder=encoder, num_outputs=num_outputs)

    def to_json(self) -> dict:
        return {
            "family": "conformer-ctc",
            "encoder": self.encoder.to_json(),
            "num_outputs": self.num_outputs,
        }

    @classmethod
    def from_json(cls, document: Mapping) -> ConformerCtcConfig:
        """The config of `to_json`; ValueError names a key it does not know."""
        values = {name: value for name, value in document.items() if name != "family"}
        encoder = values.pop("encoder", None)
        if not isinstance(encoder, Mapping):
            raise ValueError(f"not a Conformer-CTC config: encoder={encoder!r:.80} is not a Conformer's")
        try:
            return cls(encoder=ConformerConfig.from_json(encoder), **values)
        except TypeError as error:
            raise ValueError(f"not a Conformer-CTC config: {error}") from error


def gulati(width: int, num_blocks: int, heads: int) -> ConformerConfig:
    """Gulati et al. 2020, Table 1; the subsampling has as many channels as a block is wide."""
    return ConformerConfig(
        num_features=80,
        conv2d_channels=width,
        width=width,
        feed_forward_width=4 * width,
        num_blocks=num_blocks,
        heads=heads,
        kernel=32,
    )


def causal(config: ConformerConfig, left: int) -> ConformerConfig:
    """The same network without a look ahead.

    LayerNorm replaces the BatchNorm, whose statistics a stream of few utterances would not settle.
    """
    return dataclasses.replace(config, left=left, right=0, is_convolution_causal=True, norm="layer")


STREAMING_LEFT = 64
"""Rows of left context where a paper publishes none: 2.6 s at 40 ms a row, 7.7 s at GQ's 120 ms."""

GQ_CONFORMER = ConformerConfig(
    num_features=192,  # three frames of 64 mels, stacked by the front end
    conv2d_channels=128,
    width=256,
    feed_forward_width=1024,
    num_blocks=14,
    heads=4,
    kernel=32,
    left=STREAMING_LEFT,
    right=0,
    is_convolution_causal=True,
    norm="layer",
    is_open=True,
    projection_width=256,
)
"""GQ, section 4.1 and Table 1. The table's "(256, 100)" has the 0.26 M weights of 1024 x 256: we read it
as what brings the open last block back to 256. Left context and norm are not published."""

CASCADED_CAUSAL = ConformerConfig(
    num_features=512,  # four frames of 128 mels every three frames, stacked by the front end
    conv2d_channels=0,
    width=552,
    feed_forward_width=2208,
    num_blocks=7,
    num_blocks_without_attention=3,
    heads=8,
    kernel=15,
    left=23,
    right=0,
    is_convolution_causal=True,
    norm="layer",
)
"""int4, section 4.2, first pass. The width is solved for its 47 M: 552 gives 47.1 M."""

CASCADED_NONCAUSAL = dataclasses.replace(
    CASCADED_CAUSAL,
    num_features=552,
    width=640,
    feed_forward_width=2560,
    num_blocks=6,
    num_blocks_without_attention=0,
    right=5,
)
"""int4, section 4.2, second pass, which reads the rows of the first: six blocks that look five rows ahead
each, 900 ms in all; convolutions stay causal. The width is solved for its 60 M: 640 gives 59.5 M, the
next multiple of eight 61.0 M."""

CONFORMERS: dict[str, ConformerConfig] = {
    "conformer-s": gulati(144, 16, 4),
    "conformer-m": gulati(256, 16, 4),
    "conformer-l": gulati(512, 17, 8),
    "conformer-s-causal": causal(gulati(144, 16, 4), STREAMING_LEFT),
    "conformer-m-causal": causal(gulati(256, 16, 4), STREAMING_LEFT),
    "conformer-l-causal": causal(gulati(512, 17, 8), STREAMING_LEFT),
    "conformer-gq": GQ_CONFORMER,
    "cascaded-causal": CASCADED_CAUSAL,
    "cascaded-noncausal": CASCADED_NONCAUSAL,
}
"""Name -> encoder."""

CONFORMER_CTCS: dict[str, ConformerCtcConfig] = {
    "conformer-ctc-demo": ConformerCtcConfig(
        encoder=ConformerConfig(
            num_features=64,
            conv2d_channels=32,
            width=96,
            feed_forward_width=384,
            num_blocks=4,
            heads=4,
            kernel=9,
            left=40,
            right=0,
            is_convolution_causal=True,
            norm="layer",
        )
    ),
    "conformer-ctc-l": ConformerCtcConfig(
        encoder=dataclasses.replace(gulati(512, 18, 8), kernel=31, is_input_scaled=True), num_outputs=129
    ),
}
"""Name -> CTC model: a small one for minutes on two cores, and NeMo's large one (128 word pieces)."""
