"""NeMo's convolution models (ConvASREncoder: QuartzNet, Jasper) in our terms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from subtone.models.nemo_archive import Place
from subtone.models.nemo_keys import Keys, take
from subtone.models.quartznet import Block, ConvBlock, QuartzNet, QuartzNetConfig

ENCODER = Keys(
    read={"feat_in": ("whole number", ...), "jasper": ("list", ...)},
    fixed={
        "activation": "relu",
        "normalization_mode": "batch",
        "residual_mode": "add",
        "norm_groups": -1,
        "conv_mask": True,
        "frame_splicing": 1,
        "quantize": False,
    },
    ignored=frozenset({"_target_", "init_mode"}),
)
ROW = Keys(
    read={
        "filters": ("whole number", ...),
        "kernel": ("whole number, alone or in a list", ...),
        "repeat": ("whole number", ...),
        "stride": ("whole number, alone or in a list", ...),
        "dilation": ("whole number, alone or in a list", ...),
        "dropout": ("number", 0.0),
        "separable": ("true or false", False),
        "residual": ("true or false", ...),
        "residual_dense": ("true or false", False),
    },
    fixed={
        "groups": 1,
        "heads": -1,
        "residual_mode": "add",
        "se": False,
        "kernel_size_factor": 1.0,
        "stride_last": False,
        "future_context": -1,
    },
    ignored=frozenset({"se_reduction_ratio", "se_context_size", "se_interpolation_mode"}),
)


def quartznet_config(section: Any, num_outputs: int, path: Path) -> QuartzNetConfig:
    """The config of an `encoder` section."""
    encoder = take(section, ENCODER, "encoder", path)
    rows = tuple(_block(row, f"encoder.jasper[{index}]", path) for index, row in enumerate(encoder["jasper"]))
    if not rows:
        raise ValueError(f"{path}: encoder.jasper=[] has no rows; a network needs at least one")
    if encoder["feat_in"] < 1:
        raise ValueError(f"{path}: encoder.feat_in={encoder['feat_in']} must be at least 1")
    return QuartzNetConfig(num_features=encoder["feat_in"], num_outputs=num_outputs, blocks=rows)


def quartznet_places(network: QuartzNet) -> Iterator[Place]:
    """Where NeMo keeps every parameter and buffer.

    NeMo numbers a block's layers in one list: convolution(s), BatchNorm, then ReLU and dropout
    between two repeats.
    """
    norm_parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for index, module in enumerate(network.blocks):
        block = cast(ConvBlock, module)
        ours, theirs = f"blocks.{index}", f"encoder.encoder.{index}"
        position = 0
        for repeat, unit in enumerate(block.units):
            for name, _ in unit.named_children():
                source, target = f"{ours}.units.{repeat}.{name}", f"{theirs}.mconv.{position}"
                if name == "norm":
                    yield from (Place(f"{source}.{part}", f"{target}.{part}") for part in norm_parts)
                else:
                    yield Place(f"{source}.weight", f"{target}.conv.weight")
                position += 1
            position += 2
        for place in range(len(block.residuals)):
            yield Place(f"{ours}.residuals.{place}.conv.weight", f"{theirs}.res.{place}.0.conv.weight")
            yield from (
                Place(f"{ours}.residuals.{place}.norm.{part}", f"{theirs}.res.{place}.1.{part}")
                for part in norm_parts
            )
    for part in ("weight", "bias"):
        yield Place(f"head.{part}", f"decoder.decoder_layers.0.{part}")


def _block(row: Any, place: str, path: Path) -> Block:
    taken = take(row, ROW, place, path)
    try:
        return Block(
            filters=taken["filters"],
            kernel=taken["kernel"],
            repeat=taken["repeat"],
            stride=taken["stride"],
            dilation=taken["dilation"],
            dropout=taken["dropout"],
            is_separable=taken["separable"],
            has_residual=taken["residual"],
            has_dense_residual=taken["residual_dense"],
        )
    except ValueError as error:
        raise ValueError(f"{path}: {place}: {error}") from error
