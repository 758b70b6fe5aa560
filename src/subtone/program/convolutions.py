"""Operations that see several rows at once: convolutions over frames, and frames joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from subtone.program.operation import (
    MAX_SIZE,
    Constants,
    Operation,
    require,
    require_integer_product,
    require_size,
    require_vector,
)

SAME = -1
"""A padding behind that is as long as the one in front."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverFrames(Operation):
    """What all convolutions have: the rows that they see, and the weight that meets them."""

    input: str
    output: str
    weight: str
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    padding_behind: int = SAME
    groups: int = 1

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        return rows_out(self, ends["input"], padding_behind(self) if is_last else 0)

    def first_needed(self, row: int) -> dict[str, int]:
        return {"input": row * self.stride - self.padding}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverFeatures(OverFrames):
    """And those of a convolution over images: the features of a row that it sees."""

    in_channels: int
    feature_kernel: int = 1
    feature_stride: int = 1
    feature_padding: int = 0
    feature_padding_behind: int = SAME

    def features_out(self, features: int) -> int:
        """Features of each output channel for `features` of each input channel."""
        behind = self.feature_padding if self.feature_padding_behind == SAME else self.feature_padding_behind
        return (features + self.feature_padding + behind - self.feature_kernel) // self.feature_stride + 1


def rows_out(op: OverFrames, rows: int, padding_behind: int) -> int:
    """Rows of a convolution's output for `rows` of its input; none of nothing."""
    span = op.dilation * (op.kernel - 1) + 1
    return max(0, (rows + op.padding + padding_behind - span) // op.stride + 1) if rows else 0


def padding_behind(op: OverFrames) -> int:
    return op.padding if op.padding_behind == SAME else op.padding_behind


def check_conv1d(op: OverFrames, width: int, shape: tuple[int, ...], where: str) -> int:
    """Outputs of a convolution over rows of `width` with a weight of `shape`; ValueError where they do not fit."""
    require(
        len(shape) in (2, 3),
        f"{where} needs a weight (out, in, kernel), {op.weight} has {shape}",
    )
    out = shape[0]
    for field in ("kernel", "stride", "dilation"):
        require_size(op, field, where)
    require_size(op, "padding", where, lowest=0)
    require_size(op, "padding_behind", where, lowest=SAME)
    require(1 <= out <= MAX_SIZE, f"{where} has {out} outputs; use 1 to {MAX_SIZE}")
    require(
        op.groups >= 1 and width % op.groups == 0 and out % op.groups == 0,
        f"{where} has groups={op.groups} for {width} inputs and {out} outputs; use 1, or what divides both",
    )
    kernel = () if op.kernel == 1 and len(shape) == 2 else (op.kernel,)
    expected = (out, width // op.groups, *kernel)
    require(shape == expected, f"{where} needs a weight of {expected}, {op.weight} has {shape}")
    return out


def check_conv2d(op: OverFeatures, width: int, shape: tuple[int, ...], where: str) -> int:
    """Width of the result of a convolution over images; ValueError where it does not fit a weight of `shape`."""
    for field in ("in_channels", "kernel", "stride", "feature_kernel", "feature_stride"):
        require_size(op, field, where)
    require(op.dilation == 1, f"{where} has dilation={op.dilation}; use 1")
    for field in ("padding", "feature_padding"):
        require_size(op, field, where, lowest=0)
        require_size(op, f"{field}_behind", where, lowest=SAME)
    require(
        width % op.in_channels == 0,
        f"{where} has in_channels={op.in_channels}, which does not divide {width}",
    )
    out = shape[0] if shape else 0
    require(
        op.groups in (1, op.in_channels) and 1 <= out <= MAX_SIZE and out % op.groups == 0,
        f"{where} has groups={op.groups} for {op.in_channels} channels and {out} outputs; use 1, or depthwise",
    )
    expected = (out, op.in_channels // op.groups, op.kernel, op.feature_kernel)
    require(shape == expected, f"{where} needs a weight of {expected}, {op.weight} has {shape}")
    features = op.features_out(width // op.in_channels)
    require(features >= 1, f"{where} has more taps than features and padding")
    require(out * features <= MAX_SIZE, f"{where} is {out * features} wide; use at most {MAX_SIZE}")
    return out * features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv1d(OverFrames):
    """Convolution over frames; with `kernel` 1 also what torch calls Linear.

    `y = gain * (W * x) + bias`, then ReLU if `relu`. Shapes: W (out, in / groups, kernel); gain
    and bias float32 (out,), absent where ""; x (T, in); y (T', out) with
    T' = (T + padding + padding_behind - dilation (kernel - 1) - 1) // stride + 1: zeros stand in front
    and behind, as many behind as in front unless `padding_behind` says otherwise.

    `activation_bits` 0: float products with the decoded weight. 2..8: x gets one scale a frame
    and the product is one of integers (docs/numerics.md); only with kernel 1, stride 1 and
    groups 1, since a scale may not span frames. `groups` divides in and out; `in` of them: depthwise.
    """

    ROLES: ClassVar = ("weight", "gain", "bias")
    REQUIRED: ClassVar = ("weight",)
    gain: str = ""
    bias: str = ""
    relu: bool = False
    activation_bits: int = 0
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        width, weight = widths["input"], constants[self.weight]
        out = check_conv1d(self, width, tuple(weight.shape), where)
        if self.activation_bits:
            paddings = self.padding, padding_behind(self)
            is_pointwise = (self.kernel, self.stride, *paddings, self.groups) == (1, 1, 0, 0, 1)
            require(
                is_pointwise,
                f"{where} spans frames or channels; integer activations need kernel 1, stride 1, padding 0, groups 1",
            )
            require_integer_product(self.activation_bits, weight, width, where)
        for role in ("gain", "bias"):
            require_vector(constants, getattr(self, role), role, out, where)
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv2d(OverFeatures):
    """Convolution over frames and features: x (T, in_channels * features), channel by channel, as torch's
    (C, F) is laid out; y (T', out * features') with both T' and features' as in Conv1d.

    `y = W * x + bias`, then ReLU if `relu`; W (out, in_channels / groups, kernel, feature_kernel), decoded to
    float; bias (out,). `groups` is 1 or `in_channels`.
    """

    ROLES: ClassVar = ("weight", "bias")
    REQUIRED: ClassVar = ("weight",)
    bias: str = ""
    relu: bool = False
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        shape = tuple(constants[self.weight].shape)
        width = check_conv2d(self, widths["input"], shape, where)
        require_vector(constants, self.bias, "bias", shape[0], where)
        return width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack(Operation):
    """`count` consecutive rows side by side: (T, D) to (T // count, count * D); an incomplete last stack is dropped."""

    ARITHMETIC: ClassVar = "none"
    input: str
    output: str
    count: int
    source: str = ""

    def width(self, widths: Mapping[str, int], constants: Constants, where: str) -> int:
        require_size(self, "count", where)
        width = widths["input"] * self.count
        require(width <= MAX_SIZE, f"{where} is {width} wide; use at most {MAX_SIZE}")
        return width

    def end(self, ends: Mapping[str, int], *, is_last: bool) -> int:
        return ends["input"] // self.count

    def first_needed(self, row: int) -> dict[str, int]:
        return {"input": row * self.count}
